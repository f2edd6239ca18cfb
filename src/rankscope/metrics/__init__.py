"""Ranks, dimensions and collapse of features as torchmetrics metrics: ``update``, ``compute``, ``reset``.

Those that are read off centred moments share one state in a ``MetricCollection``; all merge over processes.

>>> import torch
>>> from torchmetrics import MetricCollection
>>> from rankscope.metrics import EffectiveRank, RankMe
>>> both = MetricCollection([RankMe(), EffectiveRank()])
>>> both.update(torch.cat([torch.eye(3), -torch.eye(3)]))
>>> {name: round(float(value), 3) for name, value in both.compute().items()}
{'RankMe': 3.0, 'EffectiveRank': 3.0}
"""

from rankscope.features.class_rank import ClassRank
from rankscope.features.lidar import LiDAR
from rankscope.features.moments import CentredMoments
from rankscope.features.neural_collapse import NeuralCollapse
from rankscope.features.rank_metrics import (
    AlphaReQ,
    EffectiveRank,
    ParticipationRatio,
    PCADimension,
    RankMe,
    StableRank,
    VarianceDimension,
)

__all__ = [
    "AlphaReQ",
    "CentredMoments",
    "ClassRank",
    "EffectiveRank",
    "LiDAR",
    "NeuralCollapse",
    "PCADimension",
    "ParticipationRatio",
    "RankMe",
    "StableRank",
    "VarianceDimension",
]
