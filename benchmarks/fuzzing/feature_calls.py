"""Random calls of the feature rooms against NumPy and scikit-learn: dimension, classification, deficit, bad input."""

from __future__ import annotations

import inspect
import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Lasso
from torch import nn

import rankscope as rs
from fuzzing.choices import Choices
from fuzzing.outcome import Outcome, Status
from rankscope.features import CentredMoments

__all__ = ["run"]

EPS32 = 2.0**-23
_HALF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}  # unit roundoff
_SAMPLES_USED = next(
    name for name in ("samples_used", "convention") if name in inspect.signature(rs.independence_deficit).parameters
)
Matrix = NDArray[np.float64]
Verdict = tuple[Status, str]


def run(seed: int, *, verbose: bool = False) -> Outcome:
    """One random call. Never raises."""
    started = time.process_time()
    c = Choices(seed)
    call = c.one([_dimension, _dimension, _classification, _deficit, _bad])
    c.use(call.__name__.lstrip("_"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status, detail = call(c)
    except rs.RankscopeError as error:
        status, detail = "refused", f"{type(error).__name__}: {error}"
    except Exception as error:
        status, detail = "raw error", f"{type(error).__name__}: {error}"
        if verbose:
            raise
    seconds = round(time.process_time() - started, 3)
    return Outcome(seed, status, tuple(c.used), detail[:600], {status: 1}, seconds)


def _features(c: Choices, generator: np.random.Generator) -> Matrix:
    """Rows of generic spread in some directions, with a mean, at some scale."""
    count, width = c.size(3, 40), c.size(2, 24)
    inner = c.size(1, width)
    rows = generator.standard_normal((count, inner)) @ generator.standard_normal((inner, width))
    if inner < width:
        c.use("low rank")
    if c.chance(0.4):
        c.use("graded")
        rows = rows * np.logspace(0, -c.one([1, 2, 3, 6]), width)
    if c.chance(0.4):
        c.use("large mean")
        rows = rows + c.one([3.0, 100.0, 1e4]) * generator.standard_normal(width)
    scale = 10.0 ** c.one([0, 0, 0, -20, 15])
    if scale != 1:
        c.use("scaled")
    return rows * scale


def _spread(rows: Matrix) -> Matrix:
    """Eigenvalues of the centred covariance over the largest, descending, one for each column."""
    rows = rows / (np.abs(rows).max() or 1.0)  # so that no square leaves the range
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    out = np.zeros(rows.shape[1])
    out[: len(values)] = values[: rows.shape[1]]
    return out / (out[0] or 1.0)


def _between(values: Matrix, slack: float) -> tuple[int, int]:
    tau = EPS32 * len(values)
    return int((values > tau + slack).sum()), int(((values >= tau - slack) & (values > 0)).sum())


def _dimension(c: Choices) -> Verdict:
    generator = np.random.default_rng(c.seed)
    exact = _features(c, generator)
    dtype = c.one([torch.float32, torch.float64, torch.bfloat16, torch.float16], [4, 3, 1, 1])
    if dtype == torch.float16 and not 1e-2 < np.abs(exact).max() < 1e3:
        dtype = torch.float32
    c.use(str(dtype).removeprefix("torch."))
    given = torch.tensor(exact).to(dtype)
    stored = given.double().numpy()
    if not (stored != stored[0]).any():
        c.use("constant")
        try:
            found = rs.feature_rank(given)[0]
        except rs.RankscopeError as error:
            return "ambiguous", str(error)
        return ("measured" if found.pca_dimension == 0 else "wrong"), f"{found.pca_dimension} where nothing varies"
    source: Any = given
    form = c.one(["tensor", "mapping", "array", "moments", "model"])
    if form in ("array", "model") and dtype in _HALF:
        form = "tensor"
    c.use(form)
    if form == "mapping":
        source = {"layer": given}
    elif form == "array":
        source = given.numpy()
    elif form == "moments":
        source = {"layer": _moments(c, given)}
    if form == "model":
        model = nn.Sequential(nn.Identity(), nn.Flatten()).eval()
        found = rs.feature_rank(model, given, cut_points="all", batch_size=7)[0]
    else:
        found = rs.feature_rank(source)[0]
    low, high = found.pca_bounds
    values = _spread(stored)
    # float64 sums of N squares about a shifted mean: what is lost of λ_1 grows with (mean / spread)²
    centre = np.abs(stored.mean(0)).max() / (np.abs(stored - stored.mean(0)).max() or 1.0)
    slack = 1e-13 * len(stored) * (1 + centre**2)
    wanted = _between(values, slack)
    if dtype in _HALF:
        ideal = _between(_spread(exact), 1e-12)
        wanted = min(wanted[0], ideal[0]), max(wanted[1], ideal[1])
        inside = low <= ideal[1] and high >= ideal[0]
    else:
        inside = low <= wanted[1] and high >= wanted[0]
    detail = (
        f"[{low}, {high}] where {wanted[0]} to {wanted[1]} is right, N × d = {stored.shape}, mean / spread {centre:.2g}"
    )
    if not inside:
        return "wrong", detail
    return ("wide" if high - low > max(1, 0.05 * high) else "measured"), detail


def _moments(c: Choices, rows: torch.Tensor) -> CentredMoments:
    moments = CentredMoments(rows.shape[1])
    for part in rows.split(c.size(1, 9)):
        moments.update(part)
    return moments


def _classification(c: Choices) -> Verdict:
    generator = np.random.default_rng(c.seed)
    classes, width = c.size(2, 12), c.size(2, 20)
    count = classes * c.size(2, 12)
    labels = np.arange(count) % classes
    means = generator.standard_normal((classes, width)) * c.one([0.5, 1.0, 3.0])
    rows = means[labels] + generator.standard_normal((count, width)) * np.linspace(1, 0.2, width)
    if c.chance(0.4):
        c.use("large mean")
        rows = rows + 20 * generator.standard_normal(width)
    rows = rows.astype(np.float32).astype(np.float64)
    weight = (means - means.mean(0)).astype(np.float32).astype(np.float64)
    bias = (-weight @ rows.mean(0) * c.one([0, 1])).astype(np.float32).astype(np.float64)
    retain, convention = c.one([0.95, 0.8, 1.0]), c.one(["uncentred", "centred"])
    c.use(convention)
    head: Any = (torch.tensor(weight).float(), torch.tensor(bias).float())
    kind = c.one(["pair", "layer", "callable"])
    c.use(kind)
    if kind != "pair":
        layer = nn.Linear(width, classes)
        with torch.no_grad():
            layer.weight.copy_(head[0])
            layer.bias.copy_(head[1])
        head = layer if kind == "layer" else lambda x: layer(x.to(layer.weight.dtype))
    given: Any = torch.tensor(rows).to(c.one([torch.float32, torch.float64]))
    found = rs.classification_dimension(given, labels, head, retain=retain, projection=convention, bootstrap=0)
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=True)[2].T
    full = _correct(rows @ weight.T + bias, labels)
    needed = retain * full[0] / count, retain * full[1] / count
    first: list[int] = []
    for low_first in (True, False):  # the earliest and the latest k that rounding allows
        for k in range(1, width + 1):
            shift = mean if convention == "centred" else 0.0
            kept = (rows - shift) @ axes[:, :k] @ axes[:, :k].T + shift
            few, many = _correct(kept @ weight.T + bias, labels)
            if (many / count >= needed[0] - 1e-12) if low_first else (few / count >= needed[1] - 1e-12):
                first.append(k)
                break
        else:
            first.append(width)
    detail = (
        f"{found.dimension} of {found.ambient} where {first[0]} to {first[1]} is right, accuracy {full[0] / count:.3f}"
    )
    spread = np.linalg.svd(rows - mean, compute_uv=False)
    varied = int((spread > 1e-7 * spread[0]).sum())
    # axes without variance may be turned at will, and the mean has a share in them: no k beyond is more right
    if min(found.dimension, first[1]) <= varied and not first[0] <= found.dimension <= first[1]:
        return "wrong", detail
    if not full[0] / count - 1e-6 <= found.full_accuracy <= full[1] / count + 1e-6:
        return "wrong", f"accuracy {found.full_accuracy} where {full[0] / count} is right"
    return "measured", detail


def _correct(logits: Matrix, labels: NDArray[np.int64]) -> tuple[int, int]:
    """Correct samples, as the least and the most that float32 logits allow."""
    slack = 3e-6 * np.abs(logits).max()
    own = logits[np.arange(len(labels)), labels]
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    gap = own - others.max(1)
    return int((gap > slack).sum()), int((gap > -slack).sum())


def _deficit(c: Choices) -> Verdict:
    generator = np.random.default_rng(c.seed)
    classes = c.size(3, 8)
    count = classes * c.size(6, 20)
    labels = np.arange(count) % classes
    logits = generator.standard_normal((count, classes)) + 2 * np.eye(classes)[labels]
    if c.chance(0.4):
        c.use("dependent class")
        logits[:, 0] = logits[:, 1] - 0.5 * logits[:, 2] + 0.01 * generator.standard_normal(count)
    scale = 10.0 ** c.one([0, 0, 3, -3])
    convention = c.one(["all", "all", "reference"])
    c.use(convention)
    logits = logits * scale
    eta = scale**2 * c.one([0.01, 0.1, 0.5])
    found = rs.independence_deficit(
        torch.tensor(logits), labels, eta=eta, held_out=0, permutations=0, **{_SAMPLES_USED: convention}
    )
    for k in range(classes):
        entry = found[k]
        if entry.status == "not converged":
            return "uncertified", f"class {k} has not converged"
        rows = logits if convention == "all" else logits[labels == k]
        others = np.delete(rows, k, 1)
        model = Lasso(alpha=eta / 2 / scale**2, fit_intercept=convention == "all", tol=1e-12, max_iter=200_000)
        model.fit(others / scale, rows[:, k] / scale)
        weights = np.zeros(classes)
        weights[list(entry.depends_on)] = entry.weights
        ours = _objective(rows, k, weights, entry.intercept, eta)
        theirs = _objective(rows, k, np.insert(model.coef_, k, 0.0), model.intercept_ * scale, eta)
        if ours > theirs * (1 + 1e-5) + 1e-12 * scale**2:  # ten times the duality gap that counts as converged
            return "wrong", f"class {k}: objective {ours:.10g} where scikit-learn reaches {theirs:.10g}"
        residual = rows[:, k] - rows @ weights - entry.intercept
        r2 = 1 - residual.var() / rows[:, k].var() if convention == "all" else entry.r2
        if abs(r2 - entry.r2) > 1e-6:
            return "wrong", f"class {k}: R² {entry.r2} where its own weights give {r2}"
    return "measured", ""


def _objective(rows: Matrix, k: int, weights: Matrix, intercept: float, eta: float) -> float:
    residual = rows[:, k] - rows @ weights - intercept
    return float((residual**2).mean() + eta * np.abs(weights).sum())


def _bad(c: Choices) -> Verdict:
    """What cannot be answered has to be refused in the package's own words."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(c.seed))
    labels = torch.arange(12) % 3
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(c.seed + 1))
    nan = x.clone()
    nan[c.size(0, 11), c.size(0, 3)] = float("nan")
    broken = torch.full((3,), float("nan"))
    calls = {
        "NaN features": lambda: rs.feature_rank(nan),
        "NaN in moments": lambda: rs.feature_rank({"a": _moments(c, nan)}),
        "complex features": lambda: rs.feature_rank(torch.complex(x, x)),
        "no features": lambda: rs.feature_rank(torch.zeros(0, 4)),
        "one sample": lambda: rs.feature_rank(x[:1]),
        "NaN bias": lambda: rs.classification_dimension(x, labels, (weight, broken)),
        "NaN head": lambda: rs.classification_dimension(x, labels, (weight * float("nan"), None)),
        "labels outside": lambda: rs.classification_dimension(x, labels + 5, (weight, None)),
        "labels between": lambda: rs.classification_dimension(x, labels + 0.4, (weight, None)),
        "fewer labels": lambda: rs.classification_dimension(x, labels[:7], (weight, None)),
        "another width": lambda: rs.classification_dimension(x, labels, (weight[:, :3], None)),
        "NaN logits": lambda: rs.independence_deficit(nan, torch.arange(12) % 4),
        "one class": lambda: rs.independence_deficit(x, torch.zeros(12, dtype=torch.long)),
        "NaN eta": lambda: rs.independence_deficit(x, torch.arange(12) % 4, eta=float("nan")),
        "text labels": lambda: rs.independence_deficit(x, ["a"] * 12),
    }
    name = c.one(list(calls))
    c.use(name)
    try:
        calls[name]()
    except rs.RankscopeError as error:
        return "ambiguous", str(error)
    return "wrong", f"{name} was answered"
