"""A measured profile beside the random chain of the same widths (paper, §4)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError
from rankscope.jacobian.random_chain import chain_rank, extended, slack
from rankscope.slicing import Stretch
from rankscope.spectra import Tolerance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rankscope.jacobian.profile import JacobianProfile

__all__ = ["AgainstRandom", "Compared", "against_random"]

MEANING = (
    "Random layers: independent dense Gaussian matrices, one for each cut point with a matrix product or convolution "
    "before it, from the same input columns through the same numbers of outputs, read with the same tolerance. Between "
    "two cut points a plain chain of several products is as many layers; where branches join, as in residual blocks "
    "and attention, all of them count as one. Random layers have no nonlinearity, skip connection or sharing of "
    "weights; so the comparison says how rank falls beside pure chance, not why."
)


@dataclass(frozen=True)
class Compared:
    """One cut point: its rank in the network and in the random chain.

    Attributes
    ----------
    name : str
        The cut point.
    depth : int
        Random layers up to it: those of the true cuts before it, and its own, one for each operation of a plain chain
        of mixing operations between two cuts, one where branches join, none where nothing mixes.
    rows : int
        Its width, the number of outputs.
    possible : int
        The smallest of the columns and of the widths up to here: no chain of these widths has more.
    measured, lower, upper : int
        Function rank (largest over the inputs), and its certified bounds; the rank itself where there are none.
    predicted : float
        Expected rank of the random chain.
    slack : float
        By how much one random chain may differ from it: at least three dimensions and a hundredth, more where the
        count follows the threshold steeply, and with the number of cut points.
    operations : int
        Mixing operations of the network up to it; without any there is nothing to compare.
    joined : int
        The largest number of them that one random layer stands for.
    true_cut : bool
        Whether it is a layer of the chain, or hangs off it inside a branch.
    """

    name: str
    depth: int
    rows: int
    possible: int
    measured: int
    lower: int
    upper: int
    predicted: float
    slack: float
    operations: int
    joined: int
    true_cut: bool

    @property
    def difference(self) -> float:
        """Measured minus predicted, dimensions."""
        return self.measured - self.predicted

    @property
    def verdict(self) -> str:
        """``"more"``, ``"less"`` or ``"same"`` rank than the random chain; or why that cannot be said.

        ``"undecided"``: the certified bounds are wider than the slack and leave it open. ``"none"``: no operation that
        mixes features was recognised up to here, so that there is no random layer.
        """
        if not self.operations:
            return "none"
        low, high = self.predicted - self.slack, self.predicted + self.slack
        if self.lower > high:
            return "more"
        if self.upper < low:
            return "less"
        if self.upper - self.lower > self.slack and not (low <= self.lower and self.upper <= high):
            return "undecided"
        return "same"


@dataclass(frozen=True)
class AgainstRandom:
    """A profile's ranks and those of random layers, one entry a cut point. Prints as a table.

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
        chain = self._judged
        if not chain:
            return "none"
        found = {x.verdict for x in chain}
        if not found & {"more", "less"}:
            return "undecided" if "undecided" in found else "alike"
        return "mixed" if {"more", "less"} <= found else ("slower" if "more" in found else "faster")

    @property
    def sentence(self) -> str:
        """The comparison in one sentence, with the cut points where both differ most, and how sure it is."""
        said = self._said()
        joined = max((x.joined for x in self._judged), default=0)
        if joined > 1:
            said += f", each block of up to {joined} mixing operations counted as one layer"
        return said + "."

    def _said(self) -> str:
        chain, verdict = self._judged, self.verdict
        count = f"{len(chain)} cut point{'s' * (len(chain) != 1)}"
        if verdict == "none":
            last = self._chain[-1].name
            return (
                f"No operation that mixes features was recognised up to {last}, so there are no random layers to lay "
                "beside the network"
            )
        below = [x for x in chain if x.verdict == "less"]
        above = [x for x in chain if x.verdict == "more"]
        open_ = [x for x in chain if x.verdict == "undecided"]
        if verdict == "undecided":
            widest = max(open_, key=_width)
            return (
                "Whether the network loses rank as random layers of the same widths would is undecided at "
                f"{len(open_)} of {count}, where the certified bounds are too wide (most at {widest.name}, "
                f"{widest.lower:,} to {widest.upper:,} against {widest.predicted:,.0f}; {self._remedy})"
            )
        left = f" ({len(open_)} more undecided, their certified bounds too wide; {self._remedy})" if open_ else ""
        if verdict == "alike":
            full = all(x.predicted > x.possible - 0.5 for x in chain)
            why = ", where both keep what the widths allow" if full else ""
            return f"The network keeps rank as random layers of the same widths would at all {count}{why}"
        if verdict == "mixed":
            return (
                f"Beside random layers of the same widths the network has lost more rank at {len(below)} of {count} "
                f"(most at {_at(min(below, key=_difference))}) and less at {len(above)} "
                f"(most at {_at(max(above, key=_difference))}){left}"
            )
        most = max(below or above, key=lambda x: abs(x.difference))
        return (
            f"The network loses rank {verdict} than random layers of the same widths would: it has "
            f"{'less' if below else 'more'} left at {len(below or above)} of {count}, most at {_at(most)}{left}"
        )

    @property
    def _remedy(self) -> str:
        return "read it with a larger tolerance" if self.dtype == "float64" else 'measure with dtype="float64"'

    @property
    def _chain(self) -> tuple[Compared, ...]:
        return tuple(x for x in self.layers if x.true_cut) or self.layers

    @property
    def _judged(self) -> tuple[Compared, ...]:
        return tuple(x for x in self._chain if x.verdict != "none")

    def __getitem__(self, name: str) -> Compared:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UsageError(f"{name!r} is not in this comparison; it has {', '.join(x.name for x in self.layers)}")

    def table(self) -> pd.DataFrame:
        """One row a cut point: ``layer``, ``depth``, ``rows``, ``possible``, ``measured``, bounds, ``predicted``, …"""
        import pandas as pd

        return pd.DataFrame([_row(x) for x in self.layers])

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
            "layers": [_row(x) for x in self.layers],
        }

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Both ranks over depth: measured as a line, the random chain dashed."""
        from rankscope.jacobian.figure import plot_against_random

        return plot_against_random(self, ax=ax)

    def __str__(self) -> str:
        width = max([len(x.name) for x in self.layers] + [5])
        lines = [
            f"{self.model} beside random layers, {self.columns:,} columns, tolerance {self.tolerance.name}",
            f"{'layer':<{width}}  {'depth':>5} {'outputs':>9} {'measured':>8} {'random':>8}  difference",
        ]
        for x in self.layers:
            mark = "" if x.verdict in ("same", "none") else x.verdict
            branch = "" if x.true_cut else "in a branch"
            lines.append(
                f"{x.name:<{width}}  {x.depth:>5} {x.rows:>9,} {x.measured:>8} {x.predicted:>8.1f}  "
                f"{x.difference:>+10.1f} {mark:<9} {branch}".rstrip()
            )
        return "\n".join([*lines, self.sentence])


def against_random(profile: JacobianProfile) -> AgainstRandom:
    """Lay the Gaussian prediction for the same widths over a measured profile.

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
        When the tolerance has an absolute part: a random chain has no scale of its own.
    """
    import torch

    tolerance = profile.tolerance
    if tolerance.atol:
        raise UsageError(
            f"the tolerance {tolerance.name} has an absolute part, and random layers have no scale of their own; read "
            "the profile with a relative one, as profile.with_tolerance('paper')"
        )
    known = any(layer.true_cut for layer in profile.layers)
    dtype = getattr(torch, profile.dtype)
    columns = profile.layers[0].columns
    widths = [math.prod(profile.input_shape)] if "random directions" in profile.columns and profile.input_shape else []
    cuts = sum(layer.true_cut or not known for layer in profile.layers)
    operations, joined, found = 0, 1, []
    for layer in profile.layers:
        stretch = Stretch.of(layer.mixes)
        # the K columns, then the layers' widths
        sizes = extended([columns, *widths], stretch, layer.rows)
        own = operations + stretch.operations, max(joined, 1 if stretch.plain else stretch.operations)
        if layer.true_cut or not known:
            columns, *widths = sizes
            operations, joined = own
        room = min(sizes)
        # the law needs an rtol alone: the convention's own for this layer's shape
        rtol = tolerance.relative((layer.rows, layer.columns), dtype)
        predicted = chain_rank(sizes, rtol)
        rank = profile.summary(layer)["function_rank"]
        certified = profile.summary(layer)["certified"]
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
    return AgainstRandom(profile.model, tolerance, profile.layers[0].columns, tuple(found), profile.dtype)


def _width(layer: Compared) -> int:
    return layer.upper - layer.lower


def _difference(layer: Compared) -> float:
    return layer.difference


def _at(layer: Compared) -> str:
    return f"{layer.name}, {layer.measured:,} against {layer.predicted:,.0f}"


def _row(layer: Compared) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "depth": layer.depth,
        "rows": layer.rows,
        "possible": layer.possible,
        "measured": layer.measured,
        "lower": layer.lower,
        "upper": layer.upper,
        "predicted": layer.predicted,
        "difference": layer.difference,
        "slack": layer.slack,
        "operations": layer.operations,
        "joined": layer.joined,
        "verdict": layer.verdict,
        "true_cut": layer.true_cut,
    }
