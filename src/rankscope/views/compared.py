"""One cut point of a network beside the same depth of a random chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Compared"]


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values: one row of the table."""
        return {
            "layer": self.name,
            "depth": self.depth,
            "rows": self.rows,
            "possible": self.possible,
            "measured": self.measured,
            "lower": self.lower,
            "upper": self.upper,
            "predicted": self.predicted,
            "difference": self.difference,
            "slack": self.slack,
            "operations": self.operations,
            "joined": self.joined,
            "verdict": self.verdict,
            "true_cut": self.true_cut,
        }
