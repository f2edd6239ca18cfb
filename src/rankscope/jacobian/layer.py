"""One measured cut point of a profile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from rankscope._base.records import ByValue
from rankscope.jacobian.layer_reading import LayerReading, read_layer
from rankscope.jacobian.soft_ranks import SoftRanks, soft_ranks
from rankscope.slicing import Stretch
from rankscope.spectra import RankEstimate, Tolerance
from rankscope.spectra.density import AnySpectrum, DensityRank

__all__ = ["Layer"]


@dataclass(frozen=True, eq=False)
class Layer(ByValue):
    """One measured cut point, with one spectrum per image: a ``Spectrum``, or a ``SpectralDensity`` of Lanczos probes.

    It is ``None`` where that image's Jacobian is not finite, and for the images numbered in ``uncalled``: their values
    lead the model along another path, which does not call the cut point.

    ``rows`` and ``columns`` are the largest sizes of any image; each spectrum has its own in ``Spectrum.shape``.
    ``mixes`` is what mixes features (a matrix product, a convolution, …) between the true cut before it and it; a plain
    truth value counts as one operation or none.
    """

    name: str
    rows: int
    columns: int
    true_cut: bool
    spectra: tuple[AnySpectrum | None, ...]
    mixes: Stretch | bool = True
    uncalled: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixes", Stretch.of(self.mixes))

    @cached_property
    def least(self) -> tuple[int, int]:
        """The smallest numbers of rows and of columns that any image has."""
        shapes = [s.shape for s in self.spectra if s is not None] or [(self.rows, self.columns)]
        return min(rows for rows, _ in shapes), min(columns for _, columns in shapes)

    @property
    def room(self) -> tuple[int, int]:
        """The smallest and the largest rank that an image's Jacobian could have: min(rows, columns)."""
        shapes = [s.shape for s in self.spectra if s is not None] or [(self.rows, self.columns)]
        return min(map(min, shapes)), max(map(min, shapes))

    @cached_property
    def soft(self) -> SoftRanks:
        """What needs no threshold, one entry per image."""
        return soft_ranks(self.spectra)

    @cached_property
    def _readings(self) -> dict[Tolerance, LayerReading]:
        return {}

    def reading(self, tolerance: Tolerance) -> LayerReading:
        """Every image's rank as arrays; computed once for each tolerance."""
        if tolerance not in self._readings:
            self._readings[tolerance] = read_layer(self.spectra, tolerance)
        return self._readings[tolerance]

    def estimates(self, tolerance: Tolerance) -> list[RankEstimate | DensityRank]:
        """Rank of every image that could be measured."""
        return [s.rank(tolerance) for s in self.spectra if s is not None]
