"""A measured profile beside the random chain of the same widths (paper, §4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError
from rankscope._base.records import Record
from rankscope.jacobian.random_chain import chain_rank, extended, slack
from rankscope.jacobian.reading import Reading
from rankscope.slicing import Stretch
from rankscope.spectra import Tolerance
from rankscope.views.against_random import MEANING, comparison_sentence, comparison_text
from rankscope.views.compared import Compared
from rankscope.views.phrases import counted
from rankscope.views.profile_figure import plot_against_random

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["AgainstRandom", "Compared", "against_random"]


@dataclass(frozen=True, eq=False)
class AgainstRandom(Record):
    """A profile's ranks and those of random layers, one entry per cut point. Prints as a table.

    Attributes
    ----------
    model : str
        Name of the measured model.
    tolerance : Tolerance
        Read for both.
    columns : int
        Input directions K.
    layers : tuple of Compared
        In depth order.
    dtype : str
        Measured in.
    """

    model: str
    tolerance: Tolerance
    columns: int
    layers: tuple[Compared, ...]
    dtype: str = ""

    @property
    def verdict(self) -> str:
        """``"faster"``, ``"slower"``, ``"alike"`` or ``"mixed"``: how the network loses rank beside random layers.

        Judged at the true cuts; faster when some of them have less rank than the random chain and none has more.
        ``"undecided"`` when none differs for certain and bounds leave it open at some; ``"none"`` when no operation
        that mixes features was recognised up to the last.
        """
        chain = self.judged
        if not chain:
            return "none"
        found = {x.verdict for x in chain}
        if not found & {"more", "less"}:
            return "undecided" if "undecided" in found else "alike"
        return "mixed" if {"more", "less"} <= found else ("slower" if "more" in found else "faster")

    @property
    def sentence(self) -> str:
        """The comparison in a sentence or two, with the cut points where both differ most, and how sure it is."""
        return self.sentence_about("the network")

    def sentence_about(self, network: str) -> str:
        """The same where several networks are compared and each has a name, such as "the trained network"."""
        double = self.dtype == "float64"
        return comparison_sentence(self.chain, self.judged, self.verdict, network, double=double)

    @property
    def chain(self) -> tuple[Compared, ...]:
        """The true cuts, or all cut points where none is known."""
        return tuple(x for x in self.layers if x.true_cut) or self.layers

    @property
    def judged(self) -> tuple[Compared, ...]:
        """Those of the chain with a random layer to be compared with."""
        return tuple(x for x in self.chain if x.verdict != "none")

    def __getitem__(self, name: str) -> Compared:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UsageError(f"{name!r} is not in this comparison; it has {', '.join(x.name for x in self.layers)}")

    def table(self) -> pd.DataFrame:
        """One row per cut point: ``layer``, ``depth``, ``rows``, ``possible``, ``measured``, bounds, ``predicted``…"""
        import pandas as pd

        return pd.DataFrame([x.to_dict() for x in self.layers])

    def frame(self) -> pd.DataFrame:
        """The same as ``table``."""
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "schema_version": 1,
            "kind": "against_random",
            "model": self.model,
            "tolerance": self.tolerance.to_dict(),
            "columns": self.columns,
            "dtype": self.dtype,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "meaning": MEANING,
            "layers": [x.to_dict() for x in self.layers],
        }

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Both ranks over depth: measured as a line, the random chain dashed."""
        return plot_against_random(
            self.layers,
            model=self.model,
            title=f"{counted(self.columns, 'column')}, tolerance: {self.tolerance.name}",
            ax=ax,
        )

    def __str__(self) -> str:
        read = f"{counted(self.columns, 'column')}, tolerance: {self.tolerance.name}"
        head = f"{self.model} against a random Gaussian chain, {read}"
        return comparison_text(self.layers, head=head, sentence=self.sentence)


def against_random(reading: Reading, *, model: str, dtype: str, inputs: int | None = None) -> AgainstRandom:
    """Lay the Gaussian prediction for the same widths over a measured profile.

    ``inputs`` is the width of the network's input where the columns are random directions of all of it.

    The chain has the profile's K columns as its input and one Gaussian layer for each operation that mixes features (a
    matrix product, a convolution, …) from one true cut to the next where these are a plain chain, as wide as what
    leaves it; the last of them as wide as the cut point. Where branches join in between, as in residual blocks and
    attention, all are one layer, and the sentence says of how many operations. A cut point after an activation, a
    normalisation, pooling or padding alone adds no layer; where it has fewer outputs, the last layer is so much
    narrower (some rows of a Gaussian matrix, or their means, are one). The random directions of a sketch are a Gaussian
    matrix themselves: one layer as wide as the network's input comes first. A cut point inside a branch stands on top
    of the true cuts before it, and is no part of the chain after it. Where autograd's graph could not be read (no true
    cut is known) all cut points are the chain.

    Raises
    ------
    UsageError
        When the tolerance has an absolute part, as a random chain has no scale of its own; where the samples have
        several shapes, as the chain has one width at its start.
    """
    import torch

    tolerance = reading.tolerance
    if tolerance.atol:
        raise UsageError(
            f"the tolerance {tolerance.name} has an absolute part, and random layers have no scale of their own; read "
            "the profile with a relative one, as profile.with_tolerance('paper')"
        )
    if not reading.one_size:
        raise UsageError(
            "the samples have several shapes, and a chain of random layers has one width at its start; measure samples "
            "of one shape together"
        )
    known = any(layer.true_cut for layer in reading.layers)
    torch_dtype = getattr(torch, dtype)
    columns = reading.layers[0].columns
    widths = [] if inputs is None else [inputs]
    cuts = sum(layer.true_cut or not known for layer in reading.layers)
    operations, joined, found = 0, 1, []
    for layer, row in zip(reading.layers, reading.rows, strict=True):
        stretch = Stretch.of(layer.mixes)
        # the K columns, then the layers' widths
        sizes = extended([columns, *widths], stretch, layer.rows)
        own = operations + stretch.operations, max(joined, 1 if stretch.plain else stretch.operations)
        if layer.true_cut or not known:
            columns, *widths = sizes
            operations, joined = own
        room = min(sizes)
        # the law needs an rtol alone: the convention's own for this layer's shape
        rtol = tolerance.relative((layer.rows, layer.columns), torch_dtype)
        predicted = chain_rank(sizes, rtol)
        rank, certified = row["function_rank"], row["certified"]
        value = int(rank["value"])
        found.append(
            Compared(
                name=layer.name,
                depth=len(sizes) - 1,
                rows=layer.rows,
                possible=room,
                measured=value,
                lower=int(rank["lower"]) if certified else value,
                upper=int(rank["upper"]) if certified else value,
                predicted=predicted,
                slack=slack(sizes, rtol, cuts),
                operations=own[0],
                joined=own[1],
                true_cut=layer.true_cut,
            )
        )
    return AgainstRandom(model, tolerance, reading.layers[0].columns, tuple(found), dtype)
