"""Lyapunov exponents of any chain of square layers by repeated QR (Benettin et al. 1980; paper, Theorem 4).

An orthonormal frame is pushed through each layer and made orthonormal again; the logarithms of the diagonal of R add
up to L·λ_k. Nothing is ever multiplied out, so no depth over- or underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import digamma

from rankscope._base.errors import DataError, UsageError
from rankscope.theory._matrices import (
    Matrix,
    apply,
    as_matrix,
    generator,
    is_operator,
    positive_integer,
    positive_number,
    qr_step,
    rank_limit,
    takes_generator,
)

__all__ = ["Layers", "LyapunovExponents", "lyapunov_exponents"]

Layers: TypeAlias = Callable[[np.random.Generator], Any] | Sequence[Any]
_BATCHES = 32  # batch means are merged in pairs when there are twice as many
_SIGMAS = 3.0  # a gap counts as resolved when it exceeds this many standard errors
_FLOOR = 1e-9  # and this much, the rounding of a sum over 10,000 layers with room to spare
_ABSENT = 0.01  # no gap: the spread is known to lie below this share of the least gap of Gaussian layers


@dataclass(frozen=True, eq=False)
class LyapunovExponents:
    """Exponents of a chain, their errors, and where the gaps of Theorem 4 fail.

    Attributes
    ----------
    exponents : numpy.ndarray
        λ_1 ≥ … ≥ λ_k, nats per layer, float64, shape (k,); −inf where a layer is singular to float64 precision.
    standard_errors : numpy.ndarray
        Standard error of each from batch means over depth, shape (k,); NaN where the exponent is −inf or the chain has
        one layer.
    gap_errors : numpy.ndarray
        Standard error of λ_i − λ_{i+1}, shape (k−1,).
    spread_error : float
        Standard error of λ_1 − λ_k.
    n : int
        Width.
    depth : int
        Layers used.
    rank_drops : tuple of (int, int)
        (layer counted from 1, rank left of the frame) wherever a layer is singular on the frame to float64 precision.
        Such a layer may have the rank all the same, in digits that its product with a frame cannot hold.
    converged : bool or None
        Whether the requested standard error was met; None when none was requested.
    exact_drops : tuple of int
        The layers of ``rank_drops`` that are singular for certain: their zero or repeated rows or columns say so.
    """

    exponents: NDArray[np.float64]
    standard_errors: NDArray[np.float64]
    gap_errors: NDArray[np.float64]
    spread_error: float
    n: int
    depth: int
    rank_drops: tuple[tuple[int, int], ...]
    converged: bool | None
    exact_drops: tuple[int, ...] = ()

    @property
    def gap(self) -> Literal["resolved", "absent", "not resolved"]:
        """What is known of λ_1 − λ_k, which Theorem 4 says is above zero.

        ``"resolved"``: it exceeds three standard errors, or the last exponent is −∞. ``"absent"``: all n exponents
        agree so well that not even three standard errors leave room for a hundredth of the least gap of Gaussian layers
        of this width; so for orthogonal layers, which meet the theorem's stated conditions and keep every ratio at 1.
        ``"not resolved"``: this depth, or so few exponents, do not tell.
        """
        if len(self.exponents) < 2 or math.isinf(self.exponents[0]):
            return "not resolved"
        if math.isinf(self.exponents[-1]):
            return "resolved"
        if math.isnan(self.spread_error):
            return "not resolved"
        spread = float(self.exponents[0] - self.exponents[-1])
        if spread > max(_FLOOR, _SIGMAS * self.spread_error):
            return "resolved"
        tight = spread + _SIGMAS * self.spread_error <= _ABSENT * _gaussian_spread(self.n, 2)
        return "absent" if tight and len(self.exponents) == self.n else "not resolved"

    @property
    def has_gap(self) -> bool:
        """Whether λ_1 exceeds the last exponent by more than its error. False proves nothing: see ``gap``."""
        return self.gap == "resolved"

    @property
    def unresolved_gaps(self) -> tuple[int, ...]:
        """The i, counted from 1, for which λ_i − λ_{i+1} is zero within three standard errors."""
        with np.errstate(invalid="ignore"):
            gaps = np.nan_to_num(self.exponents[:-1] - self.exponents[1:], nan=0.0, posinf=np.inf)
        limits = np.maximum(_FLOOR, _SIGMAS * np.nan_to_num(self.gap_errors))
        return tuple(int(i) + 1 for i in np.flatnonzero(gaps <= limits))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; −inf and NaN become None."""

        def plain(values: NDArray[np.float64]) -> list[float | None]:
            return [float(v) if math.isfinite(v) else None for v in values]

        return {
            "schema_version": 1,
            "n": self.n,
            "depth": self.depth,
            "exponents": plain(self.exponents),
            "standard_errors": plain(self.standard_errors),
            "gap_errors": plain(self.gap_errors),
            "gap": self.gap,
            "has_gap": self.has_gap,
            "spread_error": self.spread_error if math.isfinite(self.spread_error) else None,
            "unresolved_gaps": list(self.unresolved_gaps),
            "rank_drops": [list(drop) for drop in self.rank_drops],
            "exact_drops": list(self.exact_drops),
            "converged": self.converged,
        }

    def __str__(self) -> str:
        lines = [f"{len(self.exponents)} of {self.n} Lyapunov exponents after {self.depth} layers, nats per layer"]
        for i, (value, error) in enumerate(zip(self.exponents, self.standard_errors, strict=True), 1):
            if i <= 5 or i == len(self.exponents):
                lines.append(f"  λ_{i} = {value:.6g}" + ("" if math.isnan(error) else f" ± {error:.1g}"))
        for layer, rank in self.rank_drops:
            how = "" if layer in self.exact_drops else " to float64 precision"
            lines.append(f"  layer {layer} is singular{how}: rank {rank} is left")
        if self.gap != "resolved" and len(self.exponents) > 1 and math.isfinite(self.exponents[0]):
            lines.append(f"  {self._no_gap()}")
        if self.converged is False:
            lines.append("  the requested standard error was not met; raise depth")
        return "\n".join(lines)

    def _no_gap(self) -> str:
        count, spread = len(self.exponents), float(self.exponents[0] - self.exponents[-1])
        if self.gap == "absent":
            agree = f"all {count} exponents agree to {max(spread, 1e-15):.1g}"
            return f"no gap: {agree}, so Theorem 4's collapse does not happen"
        error = "" if math.isnan(self.spread_error) else f" ± {self.spread_error:.1g}"
        return (
            f"gap not resolved at this depth: λ_1 − λ_{count} = {spread:.1g}{error}, where Gaussian layers have "
            f"{_gaussian_spread(self.n, count):.1g}; raise depth{'' if count == self.n else ' or k'}"
        )


def _gaussian_spread(n: int, k: int) -> float:
    """λ_1 − λ_k of Gaussian layers of width n (Theorem 5)."""
    return float(digamma(n / 2) - digamma((n - k + 1) / 2)) / 2


def lyapunov_exponents(
    layers: Layers,
    *,
    depth: int | None = None,
    k: int | None = None,
    burn_in: int = 0,
    target_error: float | None = None,
    seed: int = 0,
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
    target = None if target_error is None else positive_number("target_error", target_error)
    if isinstance(burn_in, bool) or not isinstance(burn_in, int) or burn_in < 0:
        raise UsageError(f"burn_in is {burn_in!r}; it must be a whole number of at least 0")
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
    k = n if k is None else positive_integer("k", k)
    if k > n:
        raise UsageError(f"k is {k}, but layers of width {n} have only {n} exponents")
    frame = np.linalg.qr(rng.standard_normal((n, k)))[0]

    live = np.arange(k)
    drops: list[tuple[int, int]] = []
    certain: list[int] = []
    batches = _Batches(k)
    converged: bool | None = None if target is None else False
    for index in range(burn_in + depth):
        layer = first if index == 0 else take(index)
        columns = apply(layer, frame, index + 1)
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
        if target is not None and batches.layers >= 2 * _BATCHES and batches.fresh:
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
        return lambda index: sampler(rng), positive_integer("depth", depth)
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
    depth = available if depth is None else positive_integer("depth", depth)
    if depth > available:
        raise UsageError(
            f"{burn_in} layers of burn-in and {depth} to count were asked for, but {len(layers)} were given; "
            "lower depth= or burn_in=, or give more layers"
        )
    return lambda index: layers[index], depth


def _single(layers: Any) -> bool:
    """Whether one array, tensor or operator was given in place of a sequence of them."""
    return isinstance(layers, np.ndarray | torch.Tensor) or is_operator(layers)


class _Batches:
    """Sums of increments over consecutive layers, in batches whose length doubles: between 32 and 63 of them."""

    def __init__(self, k: int) -> None:
        self.total = np.zeros(k)
        self.layers = 0
        self.size = 1
        self.done: list[NDArray[np.float64]] = []
        self.open = np.zeros(k)
        self.filled = 0

    @property
    def fresh(self) -> bool:
        """Whether a batch has just been closed, so that the errors have changed."""
        return self.filled == 0

    def add(self, step: NDArray[np.float64]) -> None:
        self.total = self.total + step
        self.open = self.open + step
        self.layers += 1
        self.filled += 1
        if self.filled == self.size:
            self.done.append(self.open)
            self.open, self.filled = np.zeros_like(self.open), 0
        if len(self.done) == 2 * _BATCHES:
            self.done = [a + b for a, b in zip(self.done[::2], self.done[1::2], strict=True)]
            self.size *= 2

    def means(self) -> NDArray[np.float64]:
        return np.array(self.done) / self.size

    def errors(self) -> NDArray[np.float64]:
        return self._error(self.means())

    def _error(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        # the open batch is in the mean but not here: the error is of the mean over the closed ones, a little larger
        if len(values) < 2:
            return np.full(values.shape[1:], np.nan)
        with np.errstate(invalid="ignore"):
            return np.asarray(values.std(axis=0, ddof=1) / math.sqrt(len(values)))


def _record(
    batches: _Batches,
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
        errors = batches._error(means)
        gaps = batches._error(means[:, :-1] - means[:, 1:])
        spread = float(batches._error((means[:, 0] - means[:, -1])[:, None])[0])
    exponents = exponents[order]
    errors[np.isinf(exponents)] = np.nan
    gaps[np.isinf(exponents[1:])] = np.nan
    return LyapunovExponents(exponents, errors, gaps, spread, n, batches.layers, drops, converged, certain)
