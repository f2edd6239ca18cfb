"""Random calls of classification dimension and independence deficit against NumPy and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Lasso
from torch import nn

import rankscope as rs
from fuzzing.choices import Choices
from fuzzing.outcome import Status

__all__ = ["classification", "deficit"]

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]
Verdict = tuple[Status, str]


def classification(c: Choices) -> Verdict:
    """One random call against the projection and the argmax in float64, with what rounding of logits allows."""
    generator = np.random.default_rng(c.seed)
    kind = c.one(["pair", "layer", "callable", "weight", "log-softmax", "arrays", "binary"])
    c.use(kind)
    classes, width = (2 if kind == "binary" else c.size(2, 12)), c.size(2, 20)
    each = c.size(1, 12)
    labels = np.arange(classes * each) % classes
    if c.chance(0.3):
        c.use("unbalanced")
        labels = np.concatenate([labels, np.zeros(classes * each, dtype=np.int64)])
    count = len(labels)
    means = generator.standard_normal((classes, width)) * c.one([0.5, 1.0, 3.0])
    rows = means[labels] + generator.standard_normal((count, width)) * np.linspace(1, 0.2, width)
    if c.chance(0.3):
        c.use("large mean")
        rows = rows + c.one([20, 1e4]) * generator.standard_normal(width)
    weight = (means - means.mean(0)).astype(np.float32).astype(np.float64)
    if c.chance(0.15) and classes > 2:
        c.use("tie")
        weight[1] = weight[0]
    dtype = c.one([torch.float32, torch.float64, torch.float16, torch.bfloat16], [3, 3, 1, 1])
    c.use(str(dtype).removeprefix("torch."))
    given = torch.tensor(rows).to(dtype)
    rows = given.double().numpy()
    bias = (-weight @ rows.mean(0) * c.one([0, 1])).astype(np.float32).astype(np.float64)
    if kind == "binary":
        weight[0], bias[0] = 0, 0
    if kind == "weight":
        bias = bias * 0
    scale = 1.0
    # a softmax of tiny logits is the same for every class: that head's own answers change with the scale
    if dtype == torch.float64 and kind != "log-softmax" and not bias.any() and c.chance(0.4):
        c.use("scaled")
        scale = 2.0 ** c.one([-900, -500, 500, 900])
        given = given * scale
    if not (rows != rows[0]).any():
        return "ambiguous", "constant features"
    options: dict[str, Any] = {
        "keep": c.one([0.95, 0.8, 1.0]),
        "projection": c.one(["uncentred", "centred"]),
        "accuracy": c.one(["overall", "balanced"]),
    }
    c.use(options["projection"])
    c.use(options["accuracy"])
    fitted = rows
    if c.chance(0.2):
        c.use("fitted apart")
        fitted = rows[generator.permutation(count)[: max(2, count // 2)]]
        if not (fitted != fitted[0]).any():
            fitted = rows
        options["fit_features"] = torch.tensor(fitted * scale).to(given.dtype)
    form = c.one([torch.tensor, np.asarray, list, lambda v: v.astype(np.uint8)])
    found = rs.classification_dimension(given, form(labels), _head(kind, weight, bias), bootstrap=0, **options)
    return _judge(found, rows, labels, weight, bias, fitted)


def _head(kind: str, weight: Matrix, bias: Matrix) -> Any:
    pair = torch.tensor(weight).float(), torch.tensor(bias).float()
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(pair[0])
        layer.bias.copy_(pair[1])
    heads: dict[str, Any] = {
        "pair": pair,
        "layer": layer.float(),
        "callable": lambda x: x.double() @ pair[0].double().T + pair[1].double(),
        "weight": pair[0],
        "log-softmax": nn.Sequential(layer.double(), nn.LogSoftmax(1)),
        "arrays": lambda x: x.double().numpy() @ weight.T + bias,
        "binary": (pair[0][1:], pair[1][1:]),
    }
    return heads[kind]


def _judge(
    found: rs.ClassificationDimension, rows: Matrix, labels: Labels, weight: Matrix, bias: Matrix, fitted: Matrix
) -> Verdict:
    count, width = rows.shape
    axes = np.linalg.svd(fitted - fitted.mean(0), full_matrices=True)[2].T
    counts = np.bincount(labels)
    each = np.ones(count) if found.accuracy_kind == "overall" else count / (counts[labels] * (counts > 0).sum())
    full = _correct(rows @ weight.T + bias, labels, each)
    needed = found.keep * full[0] / count, found.keep * full[1] / count
    first: list[int] = []
    shift = fitted.mean(0) if found.projection == "centred" else np.zeros(width)
    for low_first in (True, False):  # the earliest and the latest k that rounding allows
        for k in range(1, width + 1):
            kept = (rows - shift) @ axes[:, :k] @ axes[:, :k].T + shift
            few, many = _correct(kept @ weight.T + bias, labels, each)
            if (many / count >= needed[0] - 1e-9) if low_first else (few / count >= needed[1] - 1e-9):
                first.append(k)
                break
        else:
            first.append(width)
    detail = (
        f"{found.dimension} of {found.ambient} where {first[0]} to {first[1]} is right, accuracy {full[0] / count:.3f}"
    )
    spread = np.linalg.svd(fitted - fitted.mean(0), compute_uv=False)
    varied = int((spread > 1e-7 * spread[0]).sum())
    # axes without variance may be turned at will, and the mean has a share in them: no k beyond is more right
    if min(found.dimension, first[1]) <= varied and not first[0] <= found.dimension <= first[1]:
        return "wrong", detail
    if not full[0] / count - 1e-6 <= found.full_accuracy <= full[1] / count + 1e-6:
        return "wrong", f"accuracy {found.full_accuracy} where {full[0] / count} is right"
    return "measured", detail


def _correct(logits: Matrix, labels: Labels, each: Matrix) -> tuple[float, float]:
    """What the right samples count, as the least and the most that float32 logits allow."""
    slack = 3e-6 * np.abs(logits).max()
    own = logits[np.arange(len(labels)), labels]
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    gap = own - others.max(1)
    return float(each[gap > slack].sum()), float(each[gap > -slack].sum())


def deficit(c: Choices) -> Verdict:
    """One random call: no class has a worse objective than scikit-learn's, and what is said of it holds."""
    generator = np.random.default_rng(c.seed)
    classes = c.size(2, 8)
    count = classes * c.size(6, 20)
    labels = np.arange(count) % classes
    logits = generator.standard_normal((count, classes)) + 2 * np.eye(classes)[labels]
    if c.chance(0.4) and classes > 2:
        c.use("dependent class")
        logits[:, 0] = logits[:, 1] - 0.5 * logits[:, 2] + c.one([0, 0.01]) * generator.standard_normal(count)
    if c.chance(0.2):
        c.use("large mean")
        logits = logits + c.one([1e2, 1e5]) * generator.standard_normal(classes)
    used = c.one(["all", "all", "reference"])
    c.use(used)
    scale, eta = 2.0 ** c.one([0, 0, 10, -10]), None
    if used == "all" and c.chance(0.3):
        c.use("path")
        scale = 2.0 ** c.one([0, -600, 600])
    else:
        eta = scale**2 * c.one([0.01, 0.1, 0.5])
    beside = generator.permutation(count)[: count // 2]
    found = rs.independence_deficit(
        torch.tensor(logits * scale), labels, eta=eta, held_out=(torch.tensor(logits[beside] * scale), labels[beside]),
        permutations=0, samples_used=used,
    )  # fmt: skip
    unit = scale / found.unit  # both powers of two; η of the records is that of logits divided by ``unit``
    for k in range(classes):
        verdict = _class(found[k], k, logits * unit, labels, found.unit, used, beside)
        if verdict[0] != "measured":
            return verdict
    return "measured", ""


def _class(
    entry: Any, k: int, logits: Matrix, labels: Labels, unit: float, used: str, beside: NDArray[np.int64]
) -> Verdict:
    if entry.status == "not converged":
        return "uncertified", f"class {k} has not converged"
    rows = logits if used == "all" else logits[labels == k]
    size = np.abs(rows - rows.mean(0) if used == "all" else rows).max()
    model = Lasso(
        alpha=float(entry.eta) / 2 / size**2,
        fit_intercept=used == "all",
        tol=1e-12,
        max_iter=200_000,
    )
    model.fit(np.delete(rows, k, 1) / size, rows[:, k] / size)
    weights = np.zeros(rows.shape[1])
    weights[list(entry.depends_on)] = entry.weights
    eta, intercept = float(entry.eta), entry.intercept / unit
    ours = _objective(rows, k, weights, intercept, eta)
    theirs = _objective(rows, k, np.insert(model.coef_, k, 0.0), model.intercept_ * size, eta)
    # ten times the duality gap that counts as converged, and what float64 leaves of squares beside a large mean
    if ours > theirs * (1 + 1e-5) + 1e-12 * float(np.square(rows).max()):
        return "wrong", f"class {k}: objective {ours:.10g} where scikit-learn reaches {theirs:.10g}"
    for name, part in (("r2", rows), ("r2_held_out", logits[beside])):
        if name == "r2_held_out" and used == "reference":
            part = part[labels[beside] == k]
        said = getattr(entry, name)
        total = part[:, k].var() if len(part) else 0.0
        if not total or not np.isfinite(said):
            continue
        residual = part[:, k] - part @ weights - intercept
        r2 = 1 - (residual**2).mean() / total
        if abs(r2 - said) > 1e-6 * max(1.0, abs(r2)) + 1e-12 * float(np.square(part).max()) / total:
            return "wrong", f"class {k}: {name} {said} where its own weights give {r2}"
    guess = logits.copy()
    guess[:, k] = logits @ weights + intercept
    low, high = _correct(guess, labels, np.full(len(labels), 1 / len(labels)))
    if not low - 1e-9 <= entry.accuracy_replaced <= high + 1e-9:
        return "wrong", f"class {k}: accuracy {entry.accuracy_replaced} where its own weights give {low} to {high}"
    return "measured", ""


def _objective(rows: Matrix, k: int, weights: Matrix, intercept: float, eta: float) -> float:
    residual = rows[:, k] - rows @ weights - intercept
    return float((residual**2).mean() + eta * np.abs(weights).sum())
