"""What the classes of labelled features look like, as the numbers that stand beside a layer's dimensions."""

from __future__ import annotations

from dataclasses import dataclass

from rankscope._base.records import ByValue

__all__ = ["ClassFeatures"]


@dataclass(frozen=True, eq=False)
class ClassFeatures(ByValue):
    """Neural collapse and class ranks of one layer's features; see ``metrics.NeuralCollapse`` and ``ClassRank``.

    Attributes
    ----------
    classes : int
        Classes that have samples.
    nc1, nc2_norms, nc2_angles, nc3, nc4 : float
        All fall to 0 as features collapse; NC3 and NC4 are NaN without a head.
    class_rank : float
        Median PCA dimension of the features within a class; NaN where no class has two samples.
    class_rank_within : int
        That of all features less the means of their classes.
    class_rank_means : int
        That of the class means, at most one less than the classes.
    class_rank_limited : int
        Classes whose samples, and not the network, set their dimension.
    """

    classes: int
    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc4: float
    class_rank: float
    class_rank_within: int
    class_rank_means: int
    class_rank_limited: int
