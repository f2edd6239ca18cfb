"""The spectrum of one cut point as arrays for a safetensors file and a few plain values beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rankscope._base.facts import Fact
from rankscope.spectra import Spectrum
from rankscope.spectra.density import AnySpectrum, SpectralDensity

__all__ = ["arrays_of", "density_of", "described", "plain_of", "read_spectrum", "spectrum_of"]

_ARRAYS = ("alpha", "beta", "steps", "squared_norms", "removed", "leading")
_NUMBERS = ("exponent", "dtype", "failure", "seed")
_FLOATS = ("product_error", "residual", "rest", "leading_error")


def arrays_of(spectrum: AnySpectrum) -> dict[str, Any]:
    """What goes to safetensors, by name."""
    if isinstance(spectrum, SpectralDensity):
        return {name: np.ascontiguousarray(getattr(spectrum, name)) for name in _ARRAYS}
    return {
        "sigma": np.ascontiguousarray(spectrum.singular_values),
        "error": np.array([spectrum.error_bound, spectrum.square_error]),
    }


def plain_of(spectrum: SpectralDensity) -> dict[str, Any]:
    """What goes to JSON beside the arrays of a spectral density."""
    numbers = {name: getattr(spectrum, name) for name in _NUMBERS}
    numbers |= {name: repr(float(getattr(spectrum, name))) for name in _FLOATS}  # JSON has no word for NaN
    return {"shape": list(spectrum.shape), **numbers, "facts": [fact.to_dict() for fact in spectrum.facts]}


def described(spectrum: AnySpectrum) -> Any:
    """What goes beside the arrays of either kind: shape and dtype of a spectrum, all of ``plain_of`` of a density."""
    return plain_of(spectrum) if isinstance(spectrum, SpectralDensity) else [*spectrum.shape, spectrum.dtype]


def read_spectrum(arrays: Mapping[str, Any], about: Any) -> AnySpectrum:
    """From what ``arrays_of`` and ``described`` made.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is damaged.
    """
    if isinstance(about, Mapping):
        return density_of(arrays, about)
    rows, columns, dtype = about
    return spectrum_of(arrays, (int(rows), int(columns)), str(dtype))


def spectrum_of(arrays: Mapping[str, Any], shape: tuple[int, int], dtype: str) -> Spectrum:
    """All singular values, from what ``arrays_of`` made.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for arrays that are damaged.
    """
    error, square = (float(v) for v in arrays["error"])
    return Spectrum(arrays["sigma"], shape, dtype, error, square)


def density_of(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> SpectralDensity:
    """Lanczos probes, from what ``arrays_of`` and ``plain_of`` made.

    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is damaged.
    """
    rows, columns = about["shape"]
    found: dict[str, Any] = {name: np.array(arrays[name]) for name in _ARRAYS}
    found |= {name: float(about[name]) for name in _FLOATS}
    return SpectralDensity(
        shape=(int(rows), int(columns)),
        exponent=int(about["exponent"]),
        dtype=str(about["dtype"]),
        failure=float(about["failure"]),
        seed=int(about["seed"]),
        facts=tuple(Fact.from_dict(one) for one in about["facts"]),
        **found,
    )
