"""``FullRank``: the ranks of full Jacobians, cut points × images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from rankscope._base.errors import CutPointError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.records import ByValue, Record
from rankscope._base.text import one_line
from rankscope.spectra import RankEstimate, Spectrum, Tolerance, ToleranceLike, as_tolerance
from rankscope.spectra.density import DensityRank, SpectralDensity
from rankscope.views.full_figure import plot_full
from rankscope.views.full_text import FullRow, full_lines
from rankscope.views.phrases import counted
from rankscope.views.sentences import note, phrase, sentence

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["FullLayer", "FullRank"]


@dataclass(frozen=True, eq=False)
class FullLayer(ByValue):
    """One cut point, with one ``Spectrum`` (exact) or ``SpectralDensity`` (Lanczos) an image.

    It is ``None`` where that image's Jacobian is not finite, and for the images numbered in ``uncalled``, which do not
    call the cut point. ``ways`` says for each image why that method was taken.
    """

    name: str
    true_cut: bool
    spectra: tuple[Spectrum | SpectralDensity | None, ...]
    ways: tuple[Fact | None, ...]
    uncalled: tuple[int, ...] = ()

    def ranks(self, tolerance: ToleranceLike = "paper") -> tuple[RankEstimate | DensityRank | None, ...]:
        """The rank of every image, with its bounds."""
        return tuple(None if s is None else s.rank(tolerance) for s in self.spectra)


@dataclass(frozen=True, eq=False, repr=False)
class FullRank(Record):
    """Ranks of the full Jacobian of every cut point on every image. Prints as a table.

    Attributes
    ----------
    model : str
        Name of the model.
    layers : tuple of FullLayer
        In the order in which they run.
    images : tuple of str
        Names of the inputs.
    tolerance : Tolerance
        At which the ranks are read; ``with_tolerance`` reads them at another.
    method, certificate : Fact
        How tangents were pushed, and what the products were compared with.
    dtype, device : str
        What was computed in, and where.
    kinks : tuple of int
        Units of each image that are within rounding error of a kink.
    unmeasured : dict
        Cut points without a rank, and why.
    failed_methods, facts : tuple of Fact
        Why faster ways were not used, and what a reader has to know.
    seconds : float
        Wall-clock time of the measurement.
    peak_memory : int or None
        Largest number of bytes allocated on a GPU.
    """

    model: str
    layers: tuple[FullLayer, ...]
    images: tuple[str, ...]
    tolerance: Tolerance
    method: Fact
    certificate: Fact
    device: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=dict)
    cut_points: str = "blocks"
    kinks: tuple[int, ...] = ()
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    failed_methods: tuple[Fact, ...] = ()
    facts: tuple[Fact, ...] = ()
    seconds: float = 0.0
    peak_memory: int | None = None

    derived = ("ranks", "notes")

    def __getitem__(self, name: str) -> FullLayer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise CutPointError(f"no layer {name!r} was measured; there are {', '.join(x.name for x in self.layers)}")

    @property
    def notes(self) -> tuple[str, ...]:
        """The facts as sentences, for people."""
        return tuple(map(sentence, self.facts))

    @cached_property
    def _rows(self) -> tuple[FullRow, ...]:
        return tuple(
            FullRow(
                layer=layer.name,
                image=image,
                rows=spectrum.shape[0],
                columns=spectrum.shape[1],
                value=rank.value,
                lower=rank.lower,
                upper=rank.upper,
                threshold=rank.threshold,
                error=rank.standard_error if isinstance(rank, DensityRank) else None,
                bracket=rank.bracket if isinstance(rank, DensityRank) else None,
                way="Lanczos" if isinstance(rank, DensityRank) else "exact",
                certified=rank.certified,
            )
            for layer in self.layers
            for image, spectrum, rank in zip(self.images, layer.spectra, layer.ranks(self.tolerance), strict=True)
            if spectrum is not None and rank is not None
        )

    @property
    def ranks(self) -> list[dict[str, object]]:
        """One mapping a layer and image, as in ``table``."""
        return [_named(row) for row in self._rows]

    def with_tolerance(self, tolerance: ToleranceLike) -> FullRank:
        """The same spectra, read at another tolerance."""
        return replace(self, tolerance=as_tolerance(tolerance))

    def table(self) -> pd.DataFrame:
        """One row a layer and image.

        The columns are layer, image, rows, columns, value, lower, upper, threshold, standard_error, bracket, method and
        certified. ``bracket`` is a share of min(rows, columns).
        """
        import pandas as pd

        return pd.DataFrame(self.ranks)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """The largest rank of any image over the layers, and the band of the bounds."""
        return plot_full(self._rows, title=f"{self.model}, tolerance: {self.tolerance.name}", ax=ax)

    def __str__(self) -> str:
        count = counted(len(self.images), "image")
        lines = [f"{one_line(self.model)}: rank of the full Jacobian, {count}, tolerance: {self.tolerance.name}"]
        lines.append(one_line(f"Computed in {self.dtype} on {self.device}. Method: {phrase(self.method)}."))
        lines += full_lines(self._rows)
        if any(self.kinks):
            most = max(self.kinks)
            lines.append(f"{counted(most, 'unit')} {'is' if most == 1 else 'are'} within rounding error of a kink.")
        lines += [one_line(f"{name} was not measured: {why}.") for name, why in self.unmeasured.items()]
        cut = [
            one_line(f"{layer.name}: {sentence(fact)}")
            for layer in self.layers
            for spectrum in layer.spectra
            if isinstance(spectrum, SpectralDensity)
            for fact in spectrum.facts
            if fact.caution and fact.kind is FactKind.LANCZOS_STEPS
        ]
        return "\n".join([*lines, *dict.fromkeys(cut), *map(note, self.facts)])

    def __repr__(self) -> str:
        return str(self)


def _named(row: FullRow) -> dict[str, object]:
    found = asdict(row)
    return {
        **{k: found[k] for k in ("layer", "image", "rows", "columns", "value", "lower", "upper", "threshold")},
        "standard_error": row.error,
        "bracket": row.bracket,
        "method": row.way,
        "certified": row.certified,
    }
