"""The spectra of one cut point × a tolerance: ranks, bounds and margins as arrays with an entry per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankscope.spectra import Spectrum, Tolerance, count_ranks
from rankscope.spectra.density import AnySpectrum, SpectralDensity

__all__ = ["LayerReading", "read_layer"]


@dataclass(frozen=True, eq=False)
class LayerReading:
    """One cut point: an entry per image. Where an image was not measured, ranks are −1 and numbers NaN.

    ``standard_error`` and ``bracket`` are those of Lanczos probes, whose ``margin`` is NaN; both are 0 where all
    singular values are known.
    """

    rank: NDArray[np.int64]
    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    threshold: NDArray[np.float64]
    margin: NDArray[np.float64]
    certified: NDArray[np.bool_]
    standard_error: NDArray[np.float64]
    bracket: NDArray[np.float64]


def read_layer(spectra: Sequence[AnySpectrum | None], tolerance: Tolerance) -> LayerReading:
    """Every spectrum's rank; those of one shape and dtype together."""
    count = len(spectra)
    rank, lower, upper = (np.full(count, -1, dtype=np.int64) for _ in range(3))
    threshold, margin = np.full(count, np.nan), np.full(count, np.nan)
    certified = np.zeros(count, dtype=np.bool_)
    error, bracket = (np.where([s is None for s in spectra], np.nan, 0.0) for _ in range(2))
    groups: dict[tuple[tuple[int, int], str], list[int]] = {}
    for place, spectrum in enumerate(spectra):
        if isinstance(spectrum, SpectralDensity):
            one = spectrum.rank(tolerance)
            rank[place], lower[place], upper[place] = one.value, one.lower, one.upper
            threshold[place], certified[place] = one.threshold, one.certified
            error[place], bracket[place] = one.standard_error, one.bracket
        elif spectrum is not None:
            groups.setdefault((spectrum.shape, spectrum.dtype), []).append(place)
    for (shape, dtype), places in groups.items():
        chosen = [s for s in (spectra[p] for p in places) if isinstance(s, Spectrum)]
        found = count_ranks(
            np.stack([s.singular_values for s in chosen]),
            shape,
            dtype,
            np.array([s.error_bound for s in chosen], dtype=np.float64),
            np.array([s.square_error for s in chosen], dtype=np.float64),
            tolerance,
        )
        rank[places], lower[places], upper[places] = found.value, found.lower, found.upper
        threshold[places], margin[places], certified[places] = found.threshold, found.margin, found.certified
    return LayerReading(rank, lower, upper, threshold, margin, certified, error, bracket)
