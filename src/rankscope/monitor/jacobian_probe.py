"""Jacobian ranks of the network as it stands, at some of the monitored steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rankscope._base.checks import count_of
from rankscope.jacobian import jacobian_rank
from rankscope.monitor.history import Entry
from rankscope.slicing import ColumnsLike, CutPointsLike
from rankscope.spectra import ToleranceLike, as_tolerance

__all__ = ["JACOBIAN_METRICS", "JacobianProbe"]

JACOBIAN_METRICS = ("jacobian_rank", "jacobian_rank_lower", "jacobian_rank_upper")
_COLUMNS = ("max", "lower", "upper")  # of a profile's table: the function rank and its certified bounds


@dataclass(frozen=True, eq=False)
class JacobianProbe:
    """Which inputs and columns the Jacobian rank is measured with, and how often.

    Parameters
    ----------
    inputs
        As in ``jacobian_rank``; a few samples are enough. They are moved to where the model is.
    columns : Patch, Sketch, ``"all"`` or ``"auto"``
        As in ``jacobian_rank``.
    every : int
        Steps between two measurements; each costs about what ``jacobian_rank`` costs on these inputs.
    cut_points : optional
        As in ``jacobian_rank``; default: those of the monitor.
    tolerance
        As in ``jacobian_rank``.

    Examples
    --------
    >>> import torch
    >>> JacobianProbe(torch.zeros(2, 6), columns="all", every=10).every
    10
    """

    inputs: Any
    columns: ColumnsLike = "auto"
    every: int = 1000
    cut_points: CutPointsLike | None = None
    tolerance: ToleranceLike = "paper"

    def __post_init__(self) -> None:
        count_of(self.every, "every")
        as_tolerance(self.tolerance)

    def measure(self, model: nn.Module, cut_points: CutPointsLike) -> list[Entry]:
        """Function rank of every cut point with its certified bounds."""
        wanted = cut_points if self.cut_points is None else self.cut_points
        profile = jacobian_rank(
            model,
            self.inputs,
            cut_points=wanted,
            columns=self.columns,
            tolerance=self.tolerance,
            progress=False,
            processes="this",  # a monitor may live in one process of a group alone
        )
        count = len(profile.images)
        entries = []
        for row in profile.table().to_dict("records"):
            for metric, column in zip(JACOBIAN_METRICS, _COLUMNS, strict=True):
                entries.append(Entry(str(row["layer"]), metric, float(row[column]), count))
        return entries
