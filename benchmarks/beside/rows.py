"""Ranks in long form: every network, image, cut point, tolerance, and kind of columns, at one absolute threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

import rankscope as rs
from rankscope.spectra.density import AnySpectrum, SpectralDensity

__all__ = ["largest_stretch", "rank_rows"]


def largest_stretch(columns: rs.Sketch, shape: tuple[int, ...]) -> float:
    """‖Ω‖₂ of a sketch's directions Ω for inputs of this shape.

    J·Ω/‖Ω‖₂ has no singular value above J's of the same index, as the columns of a patch have none. So the sketch is
    read at ‖Ω‖₂ times the threshold of J.
    """
    size = math.prod(shape)
    gram = torch.zeros(columns.k, columns.k, dtype=torch.float64)
    drawn = columns.tangents(shape, 0, columns.k, torch.device("cpu"), torch.float64).reshape(columns.k, size)
    for part in drawn.split(8192, dim=1):
        gram += part @ part.T
    found = float(torch.linalg.eigvalsh(gram)[-1])
    # rounding of the sums and of the eigenvalue: sizes times the unit of float64, relative to the trace
    return math.sqrt(found + (size + columns.k) * 2.0**-52 * float(gram.trace()))


def rank_rows(
    full: dict[int, rs.JacobianProfile],
    partial: dict[str, rs.JacobianProfile],
    stretch: dict[str, float],
    tolerances: list[str | float],
) -> Iterator[dict[str, Any]]:
    """One row an image, cut point, tolerance, and kind of columns.

    ``full`` has one profile an image, by the image's number in the partial profiles. The tolerance makes a threshold τ
    of the full Jacobian's shape and σ₁; the partial Jacobians are read at the same τ, those of kind k at τ·stretch[k].
    """
    for tolerance in tolerances:
        for number, profile in full.items():
            read = profile.with_tolerance(tolerance)
            random = {layer.name: layer for layer in read.against_random().layers}
            for depth, layer in enumerate(profile.layers):
                spectrum = layer.spectra[0]
                if spectrum is None:
                    continue
                threshold = read.tolerance.threshold(spectrum.shape, spectrum.sigma_max, getattr(torch, spectrum.dtype))
                head = {
                    "image": number,
                    "depth": depth,
                    "layer": layer.name,
                    "true_cut": layer.true_cut,
                    "outputs": spectrum.shape[0],
                    "tolerance": read.tolerance.name,
                    "sigma_max": spectrum.sigma_max,
                    "threshold": threshold,
                }
                chain = random[layer.name]
                expected = {"random": chain.predicted, "random_slack": chain.slack, "beside_random": chain.verdict}
                yield {**head, "columns": "full", **_rank(spectrum, threshold), **expected}
                for kind, other in partial.items():
                    found = other[layer.name].spectra[number]
                    if found is not None:
                        yield {**head, "columns": kind, **_rank(found, threshold * stretch.get(kind, 1.0))}


def _rank(spectrum: AnySpectrum, threshold: float) -> dict[str, Any]:
    found = spectrum.rank(rs.Tolerance(atol=threshold))
    probed = isinstance(spectrum, SpectralDensity)
    return {
        "possible": min(spectrum.shape),
        "rank": found.value,
        "lower": found.lower,
        "upper": found.upper,
        "standard_error": getattr(found, "standard_error", 0.0),
        "bracket": getattr(found, "bracket", 0.0),
        "method": "Lanczos" if probed else "exact",
    }
