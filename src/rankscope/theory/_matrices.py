"""The boundary of the package: whatever a caller passes as a layer becomes a checked float64 array or a product."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope._base.arrays import dense
from rankscope._base.checks import seed_of
from rankscope._base.errors import DataError, UsageError

__all__ = [
    "Matrix",
    "apply",
    "as_matrix",
    "generator",
    "is_operator",
    "qr_step",
    "rank_limit",
    "takes_generator",
]

Matrix: TypeAlias = NDArray[np.float64]


def generator(seed: Any) -> np.random.Generator:
    """A generator from a seed that is checked first.

    >>> generator(3).integers(10) == generator(3).integers(10)
    np.True_
    """
    return np.random.default_rng(seed_of(seed))


def takes_generator(name: str, function: Callable[..., Any]) -> None:
    """Refuse a function that cannot be called with a generator as its one argument.

    >>> takes_generator("init", lambda rng: rng.standard_normal((2, 2)))
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some compiled functions have none; the call itself will tell
        return
    try:
        signature.bind(None)
    except TypeError:
        raise UsageError(
            f"{name} takes {signature}, but is called with one numpy.random.Generator; write it as "
            "lambda rng: rng.standard_normal((n, n))"
        ) from None


def as_matrix(value: Any, name: str) -> Matrix:
    """A finite two-dimensional float64 array from a tensor, array or nested list; ``name`` opens the error message.

    >>> as_matrix([[1, 2]], "layer 1").shape
    (1, 2)
    """
    if isinstance(value, torch.Tensor) or np.ma.is_masked(value):
        held = dense(value, name)
        value = held.to("cpu", torch.complex128 if held.is_complex() else torch.float64).numpy()
    array = np.asarray(value)
    if np.iscomplexobj(array):
        raise DataError(f"{name} is complex; only real matrices have the exponents given here")
    try:
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{name} is a {type(value).__name__}, which is neither a matrix nor has matmat") from None
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{name} has shape {array.shape}; a matrix with at least one row and column is needed")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise DataError(f"{name} has {bad} NaN or infinite entries; repair or leave out this layer")
    return array


def is_operator(value: Any) -> bool:
    """Whether ``value`` is known only through its products: it has ``shape`` and ``matmat`` (or ``@``), but no entries.

    >>> is_operator([[1.0]])
    False
    """
    if isinstance(value, np.ndarray | torch.Tensor | list | tuple):
        return False
    return hasattr(value, "shape") and (hasattr(value, "matmat") or hasattr(value, "__matmul__"))


def apply(layer: Any, basis: Matrix, index: int) -> Matrix:
    """layer·basis, checked: the layer is square of ``basis``'s height and the product finite; ``index`` counts from 1.

    >>> apply([[2.0]], np.ones((1, 1)), 1)
    array([[2.]])
    """
    n, name = basis.shape[0], f"layer {index} (counted from 1)"
    if is_operator(layer):
        shape = tuple(int(side) for side in layer.shape)
    else:
        layer = as_matrix(layer, name)
        shape = layer.shape
    if shape != (n, n):
        raise DataError(
            f"{name} has shape {shape}, but the chain needs {(n, n)}; exponents exist only for square layers of one "
            "width (use chain_singular_values for a chain whose widths change)"
        )
    product = layer.matmat(basis) if hasattr(layer, "matmat") else layer @ basis
    return as_matrix(product, f"the product with {name}")


def qr_step(columns: Matrix) -> tuple[Matrix, Matrix, NDArray[np.intp]]:
    """Q, R and the indices of the columns that are independent to working precision, in their own order.

    A column is dropped when what is left of it after projecting out the earlier ones is no larger than the rounding
    error that it can carry: then the factor is singular, or so ill-conditioned that float64 cannot tell the
    difference (``_dependent`` has the bound). Dropped columns must not stay in the basis: the arbitrary direction that
    QR puts in their place would take growth from the columns after them.

    Rows of very different sizes are sorted first, as Householder's QR then errs by a share of each row and not of the
    whole matrix (Cox and Higham 1998): rows that a layer like diag(1, 1e-18) makes small are no noise.

    >>> q, r, kept = qr_step(np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    >>> kept.tolist()
    [0, 2]
    """
    kept = np.flatnonzero(np.abs(columns).max(axis=0) > 0)
    sizes = np.abs(columns).max(axis=1, initial=0.0)
    graded = bool(sizes.min() < 1e-3 * sizes.max())
    order = np.argsort(-sizes, kind="stable") if graded else np.arange(len(sizes))
    if graded:
        columns = columns[order]
    while True:
        part = columns[:, kept]
        if part.shape[1] > part.shape[0]:  # more columns than rows: the excess cannot be independent
            q, r = np.linalg.qr(part, mode="complete")
        else:
            q, r = np.linalg.qr(part)
        even = _even_rows(part) if graded else part / _longest_row(part)
        factor: Matrix = np.linalg.qr(even)[1] if graded else r / _longest_row(part)
        dead = _dependent(even, factor)
        if not len(dead):
            return q[np.argsort(order)] if graded else q, r, kept
        # In general position the dead columns are the trailing ones and go at once. Otherwise one at a time, since
        # a later column may only look dead because of the arbitrary direction that stands for an earlier one.
        trailing = dead[0] + len(dead) == part.shape[1]
        kept = kept[: dead[0]] if trailing and _span(even) == dead[0] else np.delete(kept, dead[0])


_ROUNDING = 64 * float(np.finfo(np.float64).eps)
"""Times the larger side: how much of a row's length its entries and their QR may be wrong by."""
_CLEAR = 1e-6
"""A column of which this share is left is independent, and its coefficients need no look."""


def _even_rows(columns: Matrix) -> Matrix:
    """The same columns with every row that is not zero divided by its length: the dependences stay what they are."""
    largest = np.abs(columns).max(axis=1)
    rows = columns[largest > 0] / largest[largest > 0, None]  # first, so that no square of 1e-200 vanishes
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def _longest_row(columns: Matrix) -> float:
    return float(np.linalg.norm(columns, axis=1).max())


def _dependent(columns: Matrix, r: Matrix) -> NDArray[np.intp]:
    """The columns of which no more is left than rounding can have made; ``r`` is their factor R.

    No row is longer than 1. Column k is a combination Σ x_j·(column j) of the earlier ones and a rest. Where entries
    are wrong by u, the rest is wrong by u·√(1 + ‖x‖²): a dependence with large coefficients magnifies what the
    earlier columns carry. A product of float64 matrices and the QR behind it showed at most 0.6·max(shape)·eps for
    u in 20,000 singular factors; 64 times max(shape)·eps is taken.
    """
    if not r.size:
        return np.arange(columns.shape[1])
    count = columns.shape[1]
    unit = _ROUNDING * max(columns.shape)
    left = np.zeros(count)
    left[: min(r.shape)] = np.abs(np.diag(r))
    lengths = np.linalg.norm(r, axis=0)
    dead = []
    for k in np.flatnonzero(left <= _CLEAR * lengths):
        if k >= r.shape[0] or left[k] == 0:
            dead.append(k)
            continue
        earlier = np.setdiff1d(np.arange(k), dead)
        x = np.linalg.lstsq(r[:k, earlier], r[:k, k], rcond=None)[0] if len(earlier) else np.zeros(0)
        if left[k] <= unit * np.sqrt(1 + x @ x):
            dead.append(k)
    return np.array(dead, dtype=np.intp)


def _span(columns: Matrix) -> int:
    """Number of independent columns, each scaled to unit length first."""
    scaled = columns / np.linalg.norm(columns, axis=0)
    sigma = np.linalg.svd(scaled, compute_uv=False)
    return int((sigma > _ROUNDING * max(columns.shape) * sigma[0]).sum())


def rank_limit(layer: Any) -> int | None:
    """A rank that the layer cannot exceed, by its zero or repeated rows and columns; None for an operator.

    >>> rank_limit([[1.0, 0.0], [0.0, 1e-18]]), rank_limit([[1.0, 2.0], [1.0, 2.0]]), rank_limit([[0.0]])
    (2, 1, 0)
    """
    if is_operator(layer):
        return None
    matrix = as_matrix(layer, "layer")
    return min(_distinct(matrix), _distinct(matrix.T))


def _distinct(rows: Matrix) -> int:
    """Rows that are neither zero nor equal to another."""
    return len(np.unique(rows[np.abs(rows).max(axis=1) > 0], axis=0))
