"""Random calls of the feature rooms against NumPy and scikit-learn: feature dimensions, and bad input of all rooms."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import rankscope as rs
from fuzzing.choices import Choices
from fuzzing.class_calls import classification, deficit
from fuzzing.outcome import Outcome, Status
from rankscope.features import CentredMoments

__all__ = ["run"]

EPS32 = 2.0**-23
_HALF = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}  # unit roundoff
Matrix = NDArray[np.float64]
Verdict = tuple[Status, str]


def run(seed: int, *, verbose: bool = False) -> Outcome:
    """One random call. Never raises."""
    started = time.process_time()
    c = Choices(seed)
    call = c.one([_dimension, _dimension, classification, deficit, _bad])
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


def _features(c: Choices, generator: np.random.Generator) -> tuple[Matrix, float]:
    """Rows of generic spread in some directions, with a mean, and a scale for them."""
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
    if c.chance(0.15):
        c.use("constant column")
        rows[:, c.size(0, width - 1)] = 5.0
    if c.chance(0.15):
        c.use("repeated rows")
        rows = rows[generator.integers(max(2, count // 3), size=count)]
    if c.chance(0.15):
        c.use("whole numbers")
        return np.round(3 * rows / (np.abs(rows).max() or 1.0)), 1.0
    scale = 10.0 ** c.one([0, 0, 0, -20, 15, -43, -160, -300, 150, 290])
    if scale != 1:
        c.use("scaled")
    return rows, scale


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
    exact, scale = _features(c, generator)
    dtype = c.one([torch.float32, torch.float64, torch.bfloat16, torch.float16], [4, 3, 1, 1])
    if dtype == torch.float16:  # its range is small; below 1e-5 numbers are not normal
        scale = c.one([1.0, 1e-6]) * min(1.0, 1e3 / np.abs(exact).max())
    if not 1e-44 < scale < 1e30:
        dtype = torch.float64
    if "whole numbers" in c.used:
        dtype = c.one([torch.int32, torch.int8, torch.bool, torch.float32])
        exact = exact != 0 if dtype == torch.bool else exact
    c.use(str(dtype).removeprefix("torch."))
    given = torch.tensor(exact * scale).to(dtype)
    stored = given.double().numpy()
    exact = np.asarray(exact, dtype=np.float64)
    if not (stored != stored[0]).any():
        c.use("constant")
        try:
            found = rs.feature_rank(given)[0]
        except rs.RankscopeError as error:
            return "ambiguous", str(error)
        return ("measured" if found.pca_dimension == 0 else "wrong"), f"{found.pca_dimension} where nothing varies"
    source: Any = given
    form = c.one(["tensor", "mapping", "array", "moments", "model"])
    if (form in ("array", "model") and dtype in _HALF) or (form == "model" and not dtype.is_floating_point):
        form = "tensor"
    if form == "moments" and not 1e-100 < scale < 1e100:
        form = "tensor"  # moments hold squares: they refuse such numbers
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
    unit = stored / np.abs(stored).max()
    centre = np.abs(unit.mean(0)).max() / (np.abs(unit - unit.mean(0)).max() or 1.0)
    slack = 1e-13 * len(stored) * (1 + centre**2)
    wanted = _between(values, slack)
    # what the features were before they were rounded to their dtype is within the bounds as well
    ideal = _between(_spread(exact), 1e-12 * (1 + centre**2))
    inside = all(low <= most and high >= least for least, most in (wanted, ideal))
    wanted = min(wanted[0], ideal[0]), max(wanted[1], ideal[1])
    detail = (
        f"[{low}, {high}] where {wanted[0]} to {wanted[1]} is right, N × d = {stored.shape}, mean / spread {centre:.2g}"
    )
    if not inside:
        return "wrong", detail
    if low > found.pca_dimension or high < found.pca_dimension:
        return "wrong", f"the dimension {found.pca_dimension} is not within its bounds; {detail}"
    return ("wide" if high - low > max(1, 0.05 * high) else "measured"), detail


def _moments(c: Choices, rows: torch.Tensor) -> CentredMoments:
    moments = CentredMoments(rows.shape[1])
    for part in rows.split(c.size(1, 9)):
        moments.update(part)
    return moments


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
        "hidden entries": lambda: rs.feature_rank(np.ma.masked_array(x.numpy(), x.numpy() > 0)),
        "sparse": lambda: rs.feature_rank(x.to_sparse()),
        "whole floats as labels": lambda: rs.classification_dimension(x, labels.float(), (weight, None)),
        "one-hot labels": lambda: rs.classification_dimension(x, torch.eye(3)[labels], (weight, None)),
        "labels of -1": lambda: rs.classification_dimension(x, labels - 1, (weight, None)),
        "one class alone": lambda: rs.classification_dimension(x, labels * 0, (weight, None)),
        "probability": lambda: rs.classification_dimension(x, labels % 2, lambda r: r[:, :1].sigmoid()),
        "text as eta": lambda: rs.independence_deficit(x, torch.arange(12) % 4, eta="a"),
        "half a permutation": lambda: rs.independence_deficit(x, torch.arange(12) % 4, permutations=2.5),
        "text labels": lambda: rs.independence_deficit(x, ["a"] * 12),
    }
    name = c.one(list(calls))
    c.use(name)
    try:
        calls[name]()
    except rs.RankscopeError as error:
        return "ambiguous", str(error)
    return "wrong", f"{name} was answered"
