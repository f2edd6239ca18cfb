"""Remedies against the loss of rank with depth, side by side on chains that differ in nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rankscope._base.checks import Scale, choice_of, count_of
from rankscope._base.errors import UsageError, nearest
from rankscope._base.progress import Progress, progress_for
from rankscope.probes.remedy_result import RemedyCurve, RemedyResult
from rankscope.spectra import ToleranceLike, as_tolerance
from rankscope.theory import deep_chain

__all__ = ["REMEDIES", "REMEDY_SCALES", "probe_remedies"]

ChainActivation: TypeAlias = Literal["relu", "gelu", "tanh"]

REMEDIES: dict[str, str] = {
    "plain": "none",
    "skip": "skip",
    "skip_scaled": "skip, branch/√depth",
    "batchnorm": "BatchNorm",
    "layernorm": "LayerNorm",
    "orthogonal": "orthogonal init",
    "width": "width",
}
# width and depth; samples are five times the width, as in the paper's 5,000 for 1,000
REMEDY_SCALES: dict[str, tuple[int, int]] = {"full": (256, 50), "small": (128, 40)}


def probe_remedies(
    remedies: Iterable[str] | None = None,
    *,
    scale: Scale = "full",
    width: int | None = None,
    depth: int | None = None,
    activation: ChainActivation | None = "relu",
    width_factor: int = 2,
    samples: int | None = None,
    seeds: int | Sequence[int] = (0, 1, 2),
    tolerance: ToleranceLike = "paper",
    progress: bool | Progress | None = None,
) -> RemedyResult:
    """Jacobian rank and feature dimension at every depth of one random chain, plain and with each remedy.

    The plain chain is h → act(W·h) with Gaussian weights of variance 2/n (ReLU) or 1/n, on standard Gaussian input of
    as many dimensions as units. Each remedy changes one thing:

    ============== ==================================================================================================
    skip           h + act(W·h)
    skip_scaled    h + act(W·h)/√depth: the branch that leaves the exponents together (``rs.theory``)
    batchnorm      act(BatchNorm(W·h)), by the statistics of the samples, which the Jacobian holds fixed
    layernorm      act(LayerNorm(W·h))
    orthogonal     W random orthogonal (Haar), of the same scale
    width          ``width_factor`` times the units in every layer, behind an input of the same dimension
    ============== ==================================================================================================

    Everything runs on the CPU in float64 (``rs.theory.deep_chain``).

    Parameters
    ----------
    remedies : names, optional
        Some of the above and ``plain``; default: all.
    scale : {"full", "small"}
        256 units and 50 layers (a minute on one core), or 128 and 40 (some seconds).
    width, depth : int, optional
        Instead of the scale's. ``width`` is also the dimension of the input.
    activation : {"relu", "gelu", "tanh"} or None
        ``None``: a linear chain.
    width_factor : int
        Of the remedy ``width``.
    samples : int, optional
        Inputs behind the feature dimension; default: five times the width.
    seeds : int or sequence of int
        One chain each; the same for every remedy.
    tolerance : ToleranceLike
        Of the Jacobian rank. The feature dimension always uses the paper's.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    UsageError
        For an unknown remedy, scale or activation, and sizes out of range.

    Examples
    --------
    >>> found = probe_remedies(["plain", "orthogonal"], width=16, depth=12, activation=None, seeds=0)
    >>> bool(found["plain"].ranks[0, -1] < 16), int(found["orthogonal"].ranks[0, -1])
    (True, 16)
    """
    choice_of(scale, "scale", REMEDY_SCALES)
    names = _names(remedies)
    n = count_of(REMEDY_SCALES[scale][0] if width is None else width, "width", least=2, most=2**15)
    layers = count_of(REMEDY_SCALES[scale][1] if depth is None else depth, "depth", most=10**6)
    factor = count_of(width_factor, "width_factor", least=2, most=2**10)
    common: dict[str, Any] = {
        "depth": layers,
        "input_width": n,
        "activation": activation,
        "init": "kaiming_normal" if activation == "relu" else "xavier_normal",
        "samples": count_of(5 * n if samples is None else samples, "samples", least=2, most=10**7),
        "seeds": seeds,
        "tolerance": as_tolerance(tolerance),
    }
    changed: dict[str, dict[str, Any]] = {
        "plain": {},
        "skip": {"residual": True},
        "skip_scaled": {"residual": layers**-0.5},
        "batchnorm": {"normalisation": "batchnorm"},
        "layernorm": {"normalisation": "layernorm"},
        "orthogonal": {"init": _Orthogonal(n, math.sqrt(2.0) if activation == "relu" else 1.0)},
        "width": {"width": factor * n},
    }
    started = time.perf_counter()
    report = progress_for(progress, "Probing remedies")
    curves = []
    try:
        for i, name in enumerate(names):
            report(i, len(names), REMEDIES[name])
            chain = deep_chain(**{"width": n, **common, **changed[name]}, progress=False)
            label = f"{factor} × width" if name == "width" else REMEDIES[name]
            curves.append(RemedyCurve(name, label, chain))
        report(len(names), len(names), "done")
    finally:
        report.close()
    return RemedyResult(
        curves=tuple(curves),
        width=n,
        depth=layers,
        activation=activation,
        width_factor=factor,
        seconds=time.perf_counter() - started,
    )


def _names(remedies: Iterable[str] | None) -> list[str]:
    names = list(REMEDIES) if remedies is None else [remedies] if isinstance(remedies, str) else list(remedies)
    for name in names:
        if name not in REMEDIES:
            raise UsageError(f"there is no remedy {name!r}; {nearest(str(name), REMEDIES)}")
    if not names:
        raise UsageError("remedies is empty; leave it out for all of them")
    return list(dict.fromkeys(names))


class _Orthogonal:
    """Random orthogonal matrices by Haar's measure, times a gain."""

    __name__ = "orthogonal"

    def __init__(self, size: int, gain: float) -> None:
        self.size, self.gain = size, gain

    def __call__(self, rng: np.random.Generator) -> NDArray[np.float64]:
        q, r = np.linalg.qr(rng.standard_normal((self.size, self.size)))
        # the signs of R's diagonal make the factorisation unique, and Q Haar-distributed (Mezzadri 2007)
        return self.gain * q * np.sign(np.diag(r))
