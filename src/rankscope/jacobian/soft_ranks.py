"""What a cut point's spectra show without a threshold, one entry per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rankscope.spectra import Spectrum
from rankscope.spectra.density import AnySpectrum, SpectralDensity

__all__ = ["SoftRanks", "soft_ranks"]


@dataclass(frozen=True, eq=False)
class SoftRanks:
    """Effective and stable rank as ``Spectrum`` defines them, the error bound, and whether a spectrum is zero.

    Of Lanczos probes they are estimates, and there is no error bound. NaN and false where an image was not measured.
    """

    effective_rank: NDArray[np.float64]
    stable_rank: NDArray[np.float64]
    error_bound: NDArray[np.float64]
    zero: NDArray[np.bool_]


def soft_ranks(spectra: Sequence[AnySpectrum | None]) -> SoftRanks:
    """Those of every spectrum; spectra of one length together."""
    count = len(spectra)
    effective, stable = np.full(count, np.nan), np.full(count, np.nan)
    groups: dict[int, list[int]] = {}
    for place, spectrum in enumerate(spectra):
        if isinstance(spectrum, SpectralDensity):
            effective[place], stable[place] = (
                0.0 if spectrum.is_zero else np.nan if found is None else found.value
                for found in (spectrum.effective_rank, spectrum.stable_rank)
            )
        elif spectrum is not None:
            groups.setdefault(len(spectrum.singular_values), []).append(place)
    for places in groups.values():
        sigma = np.stack([s.singular_values for s in (spectra[p] for p in places) if isinstance(s, Spectrum)])
        top = sigma.max(axis=1, initial=0.0, keepdims=True)
        shares = sigma / np.where(top > 0, top, 1.0)
        total = shares.sum(axis=1, keepdims=True)
        p = shares / np.where(total > 0, total, 1.0)
        entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)
        effective[places] = np.where(top[:, 0] > 0, np.exp(entropy), 0.0)
        stable[places] = (shares**2).sum(axis=1)
    bounds = np.array([s.error_bound if isinstance(s, Spectrum) else np.nan for s in spectra], dtype=np.float64)
    zero = np.array([s is not None and s.is_zero for s in spectra], dtype=np.bool_)
    return SoftRanks(effective, stable, bounds, zero)
