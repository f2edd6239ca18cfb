"""A measured profile beside the random chain of the same widths (paper, §4)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError
from rankscope.spectra import Tolerance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rankscope.jacobian.profile import JacobianProfile

__all__ = ["AgainstRandom", "Compared", "against_random"]

# A smaller difference may be the random chain's own. Measured: the law is within one of the mean of simulated chains,
# and a single one scatters with a standard deviation of 0.4 to 1.3 at widths of 10 to 300 and up to 3 at 768.
_SLACK, _SLACK_SHARE = 3.0, 0.01
_ROUNDING = 1e-6  # a prediction of 9.9999999 leaves all ten
MEANING = (
    "Random layers: independent dense Gaussian matrices, one for each cut point with a matrix product or convolution "
    "before it, from the same input columns through the same numbers of outputs, read with the same tolerance. They "
    "have no nonlinearity, skip connection or sharing of weights, and a block of several layers counts as one; so the "
    "comparison says how rank falls beside pure chance, not why."
)


@dataclass(frozen=True)
class Compared:
    """One cut point: its rank in the network and in the random chain.

    Attributes
    ----------
    name : str
        The cut point.
    depth : int
        Random layers up to it: the true cuts before it, and itself, where features mix from one to the next.
    rows : int
        Its width, the number of outputs.
    possible : int
        The smallest of the columns and of the widths up to here: no chain of these widths has more.
    measured, lower, upper : int
        Function rank (largest over the inputs), and its certified bounds; the rank itself where there are none.
    predicted : float
        Expected rank of the random chain.
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
    true_cut: bool

    @property
    def difference(self) -> float:
        """Measured minus predicted, dimensions."""
        return self.measured - self.predicted

    @property
    def slack(self) -> float:
        """By how much one random chain may differ from the expected rank: three dimensions and a hundredth."""
        return _SLACK + _SLACK_SHARE * self.possible

    @property
    def verdict(self) -> str:
        """``"more"``, ``"less"`` or ``"same"`` rank than the random chain, beyond both uncertainties."""
        if self.lower > self.predicted + self.slack:
            return "more"
        if self.upper < self.predicted - self.slack:
            return "less"
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
    """

    model: str
    tolerance: Tolerance
    columns: int
    layers: tuple[Compared, ...]

    @property
    def verdict(self) -> str:
        """``"faster"``, ``"slower"``, ``"alike"`` or ``"mixed"``: how the network loses rank beside random layers.

        Judged at the true cuts; faster when some of them have less rank than the random chain and none has more.
        """
        found = {x.verdict for x in self._chain} - {"same"}
        if not found:
            return "alike"
        return "mixed" if len(found) == 2 else ("slower" if found == {"more"} else "faster")

    @property
    def sentence(self) -> str:
        """The comparison in one sentence, with the cut points where both differ most."""
        chain = self._chain
        count = f"{len(chain)} cut point{'s' * (len(chain) != 1)}"
        if self.verdict == "alike":
            full = all(x.predicted > x.possible - 0.5 for x in chain)
            why = ", where both keep what the widths allow" if full else ""
            return f"The network keeps rank as random layers of the same widths would at all {count}{why}."
        below = [x for x in chain if x.verdict == "less"]
        above = [x for x in chain if x.verdict == "more"]
        if self.verdict == "mixed":
            return (
                f"Beside random layers of the same widths the network has lost more rank at {len(below)} of {count} "
                f"(most at {_at(min(below, key=_difference))}) and less at {len(above)} "
                f"(most at {_at(max(above, key=_difference))})."
            )
        part = below or above
        most = max(part, key=lambda x: abs(x.difference))
        return (
            f"The network loses rank {self.verdict} than random layers of the same widths would: it has "
            f"{'less' if below else 'more'} left at {len(part)} of {count}, most at {_at(most)}."
        )

    @property
    def _chain(self) -> tuple[Compared, ...]:
        return tuple(x for x in self.layers if x.true_cut) or self.layers

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
            mark = {"more": "more", "less": "less", "same": ""}[x.verdict]
            branch = "" if x.true_cut else "in a branch"
            lines.append(
                f"{x.name:<{width}}  {x.depth:>5} {x.rows:>9,} {x.measured:>8} {x.predicted:>8.1f}  "
                f"{x.difference:>+10.1f} {mark:<4} {branch}".rstrip()
            )
        return "\n".join([*lines, self.sentence])


def against_random(profile: JacobianProfile) -> AgainstRandom:
    """Lay the Gaussian prediction for the same widths over a measured profile.

    The chain has the profile's K columns as its input and one Gaussian layer, as wide as the cut point has outputs, for
    each true cut before which features mix: by a matrix product, a convolution, attention. A cut point after an
    activation, a normalisation, pooling or padding alone adds no layer; where it has fewer outputs, the last layer is
    so much narrower (some rows of a Gaussian matrix, or their means, are one). The random directions of a sketch are a
    Gaussian matrix themselves: one layer as wide as the network's input comes first. A cut point inside a branch stands
    on top of the true cuts before it, and is no part of the chain after it. Where autograd's graph could not be read
    (no true cut is known) all cut points are the chain.

    Raises
    ------
    UsageError
        When the tolerance has an absolute part: a random chain has no scale of its own.
    """
    import torch

    from rankscope.theory import rectangular_chain_rank

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
    found = []
    for layer in profile.layers:
        # the K columns, then the layers' widths; what does not mix may narrow the last of these
        sizes = [columns, *widths]
        sizes = [*sizes, layer.rows] if layer.mixes else [*sizes[:-1], min(sizes[-1], layer.rows)]
        if layer.true_cut or not known:
            columns, *widths = sizes
        room = min(sizes)
        predicted = float(room)
        if len(sizes) > 1:
            # the law needs an rtol alone: the convention's own for this layer's shape
            rtol = tolerance.relative((layer.rows, layer.columns), dtype)
            law = rectangular_chain_rank(sizes[0], sizes[1:], Tolerance(rtol=rtol))
            predicted = law if room - law >= _ROUNDING else predicted
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
                true_cut=layer.true_cut,
            )
        )
    return AgainstRandom(profile.model, tolerance, profile.layers[0].columns, tuple(found))


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
        "verdict": layer.verdict,
        "true_cut": layer.true_cut,
    }
