"""Lyapunov exponents of any chain of square layers by repeated QR (Benettin et al. 1980; paper, Theorem 4).

An orthonormal frame is pushed through each layer and made orthonormal again; the logarithms of the diagonal of R add
up to L·λ_k. Nothing is ever multiplied out, so no depth over- or underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope._base.checks import count_of, number_of
from rankscope._base.errors import DataError, UsageError
from rankscope._base.progress import Progress, reporting
from rankscope.theory._batch_means import BATCHES, BatchMeans
from rankscope.theory._matrices import (
    Matrix,
    apply,
    as_matrix,
    generator,
    is_operator,
    qr_step,
    rank_limit,
    takes_generator,
)
from rankscope.theory.lyapunov_record import LyapunovExponents

__all__ = ["Layers", "LyapunovExponents", "lyapunov_exponents"]

Layers: TypeAlias = Callable[[np.random.Generator], Any] | Sequence[Any]


def lyapunov_exponents(
    layers: Layers,
    *,
    depth: int | None = None,
    k: int | None = None,
    burn_in: int = 0,
    target_error: float | None = None,
    seed: int = 0,
    progress: bool | Progress | None = None,
) -> LyapunovExponents:
    """The leading exponents (1/L) log σ_k(J_L⋯J_1) of a chain of square layers of one width.

    Parameters
    ----------
    layers : callable or sequence
        A sampler that takes a ``numpy.random.Generator`` and returns an n × n layer, or the layers themselves in the
        order in which they act. A layer is a tensor, an array, a nested list, or anything with ``shape`` and
        ``matmat`` or ``@`` (a ``scipy.sparse.linalg.LinearOperator``): products J·Q suffice.
    depth : int, optional
        Layers to use after ``burn_in``; a sampler needs it, a sequence defaults to its length. At most so many with
        ``target_error``.
    k : int, optional
        How many leading exponents; all n by default.
    burn_in : int
        Layers pushed through before counting starts, while the frame turns into the chain's own directions. Gaussian
        layers need none; without it the frame's start costs an error of order 1/depth.
    target_error : float, optional
        Stop as soon as every finite exponent's standard error is at most this, after 64 layers at the earliest.
    seed : int
        Seeds the sampler's generator and the starting frame.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    UsageError
        When ``depth``, ``k`` or ``target_error`` cannot be used, or a sequence is shorter than asked for.
    DataError
        When a layer is not square, not finite, or of another width than the first; the message names the layer.

    Examples
    --------
    >>> from rankscope.theory import gaussian_exponents
    >>> found = lyapunov_exponents(lambda rng: rng.standard_normal((4, 4)), depth=2000)
    >>> bool(np.all(np.abs(found.exponents - gaussian_exponents(4).exponents) < 4 * found.standard_errors))
    True
    """
    target = None if target_error is None else number_of(target_error, "target_error", above=0)
    burn_in = count_of(burn_in, "burn_in", least=0, most=10**8)
    rng = generator(seed)
    take, depth = _source(layers, depth, burn_in, rng)
    first = take(0)
    shape = tuple(first.shape) if is_operator(first) else as_matrix(first, "layer 1 (counted from 1)").shape
    if len(shape) != 2 or shape[0] != shape[1]:
        raise DataError(
            f"layer 1 (counted from 1) has shape {shape}; exponents exist only for square layers "
            "(use chain_singular_values for a chain whose widths change)"
        )
    n = int(shape[0])
    k = n if k is None else count_of(k, "k")
    if k > n:
        raise UsageError(f"k is {k}, but layers of width {n} have only {n} exponents")
    frame = np.linalg.qr(rng.standard_normal((n, k)))[0]

    live = np.arange(k)
    drops: list[tuple[int, int]] = []
    certain: list[int] = []
    batches = BatchMeans(k)
    converged: bool | None = None if target is None else False
    with reporting(progress, "Lyapunov exponents") as report:
        for index in range(burn_in + depth):
            layer = first if index == 0 else take(index)
            columns = apply(layer, frame, index + 1)
            report(index + 1, burn_in + depth, "layers")
            frame, logs, kept = _advance(columns)
            if len(kept) < len(live):
                drops.append((index + 1, len(kept)))
                limit = rank_limit(layer)
                if limit is not None and limit <= len(kept):
                    certain.append(index + 1)
                live = live[kept]
            if index < burn_in and len(live):
                continue
            step = np.full(k, -np.inf)
            step[live] = logs
            batches.add(step)
            if not len(live):
                break
            if target is not None and batches.layers >= 2 * BATCHES and batches.fresh:
                errors = batches.errors()[live]
                if np.all(errors <= target):
                    converged = True
                    break
    return _record(batches, live, n, tuple(drops), tuple(certain), converged)


def _advance(columns: Matrix) -> tuple[Matrix, NDArray[np.float64], NDArray[np.intp]]:
    """New frame, log|R_ii| of the columns that stay, and which these are."""
    scale = float(np.abs(columns).max(initial=0.0))
    if scale == 0:
        return columns[:, :0], np.zeros(0), np.zeros(0, dtype=np.intp)
    q, r, kept = qr_step(columns / scale)
    return q, np.log(np.abs(np.diag(r))) + math.log(scale), kept


def _source(
    layers: Layers, depth: int | None, burn_in: int, rng: np.random.Generator
) -> tuple[Callable[[int], Any], int]:
    """A function from layer index to layer, and the depth to use."""
    if _single(layers):  # scipy's operators are callable too
        raise UsageError("layers is a single array or operator; give a sequence of layers, such as list(layers)")
    if isinstance(layers, torch.nn.Module):
        raise UsageError("layers is one torch module; give the Jacobians of its blocks, or use rs.chain_exponents")
    if callable(layers) and not isinstance(layers, Sequence):
        if depth is None:
            raise UsageError("a sampler has no length of its own; give depth=, the number of layers to draw")
        takes_generator("the sampler", layers)
        sampler = layers
        return lambda index: sampler(rng), count_of(depth, "depth", most=10**8)
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise UsageError(f"layers is a {type(layers).__name__}; give a sampler or a sequence of matrices")
    if not len(layers):
        raise UsageError("layers is empty; a chain needs at least one layer")
    available = len(layers) - burn_in
    if available < 1:
        raise UsageError(
            f"burn_in is {burn_in}, which leaves none of the {len(layers)} layers to count; lower it to "
            f"{len(layers) - 1} or less, or give more layers"
        )
    depth = available if depth is None else count_of(depth, "depth")
    if depth > available:
        raise UsageError(
            f"{burn_in} layers of burn-in and {depth} to count were asked for, but {len(layers)} were given; "
            "lower depth= or burn_in=, or give more layers"
        )
    return lambda index: layers[index], depth


def _single(layers: Any) -> bool:
    """Whether one array, tensor or operator was given in place of a sequence of them."""
    return isinstance(layers, np.ndarray | torch.Tensor) or is_operator(layers)


def _record(
    batches: BatchMeans,
    live: NDArray[np.intp],
    n: int,
    drops: tuple[tuple[int, int], ...],
    certain: tuple[int, ...],
    converged: bool | None,
) -> LyapunovExponents:
    k = len(batches.total)
    exponents = batches.total / batches.layers
    dead = np.ones(k, dtype=bool)
    dead[live] = False
    exponents[dead] = -np.inf
    order = np.argsort(-exponents, kind="stable")
    means = batches.means()[:, order]
    with np.errstate(invalid="ignore"):
        errors = batches.error_of(means)
        gaps = batches.error_of(means[:, :-1] - means[:, 1:])
        spread = float(batches.error_of((means[:, 0] - means[:, -1])[:, None])[0])
    exponents = exponents[order]
    errors[np.isinf(exponents)] = np.nan
    gaps[np.isinf(exponents[1:])] = np.nan
    spread = math.nan if math.isinf(exponents[-1]) else spread
    return LyapunovExponents(
        exponents, errors, gaps, spread, n, batches.layers, drops, converged, certain, len(batches.done)
    )
