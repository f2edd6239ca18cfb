"""NC1–NC4 and class ranks of one layer's labelled features, for ``feature_rank``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from rankscope._base.errors import DataError, UsageError
from rankscope._base.labels import class_indices, refuse_unlabelled
from rankscope.features.class_rank import ClassRank
from rankscope.features.class_record import ClassFeatures
from rankscope.features.heads import linear_parts, only_its_weights, refuse_hooks
from rankscope.features.neural_collapse import neural_collapse

__all__ = ["class_features", "class_labels"]


def class_labels(labels: Any) -> Tensor:
    """Class indices (N,) int64 on the CPU, as ``class_indices`` reads them.

    Raises
    ------
    DataError
        Other values, a negative index, or one class alone.
    """
    found = class_indices(labels).cpu()
    refuse_unlabelled(found)
    if len(found) and int(found.min()) < 0:
        raise DataError(f"label {int(found.min())} is no class index; give class indices from 0")
    if len(found.unique()) < 2:
        raise DataError(f"the {len(found):,} labels name one class; neural collapse compares two or more")
    return found


def class_features(rows: Tensor, labels: Tensor, head: Any, name: str) -> ClassFeatures:
    """Neural collapse and class ranks of (N, d) rows; ``head`` reads them, or is ``None``.

    The two rows of a head with one output are taken as ±w/2: its logits are those of 0 and w, and of no other pair is
    the mean zero, as that of the centred class means is.

    Raises
    ------
    DataError
        Labels that do not fit the rows or the head, a head of another width.
    UsageError
        A head that is no linear layer.
    """
    if len(labels) != len(rows):
        raise DataError(f"{name}: {len(labels):,} labels for {len(rows):,} samples; give one label per sample")
    if head is None:  # what belongs to no head has no numbering to keep: large labels cost nothing
        labels = labels.unique(return_inverse=True)[1]
    classes = int(labels.max()) + 1
    weight, bias = None, None
    if head is not None:
        refuse_hooks(head)
        other = isinstance(head, Module) and not only_its_weights(head)
        parts = None if other else linear_parts(head, rows.shape[1])
        if parts is None:
            raise UsageError(f"head is a {type(head).__name__}; give a plain linear layer or its (weight, bias)")
        weight, bias = parts
        if classes > len(weight):
            raise DataError(f"{name}: labels reach {classes - 1}, and the head has {len(weight)} classes")
        classes = len(weight)
        if classes == 2 and not bool(weight[0].any()):
            weight, bias = weight - weight[1] / 2, bias - (bias[0] + bias[1]) / 2
    collapse = neural_collapse(rows, labels, classes, weight=weight, bias=bias, name=name)
    # in one process alone, whichever group it belongs to
    metric = ClassRank(max(classes, 2), name=name, sync_on_compute=False)
    metric.update(rows, labels)
    ranks = metric.compute()
    return ClassFeatures(
        classes=len(labels.unique()),
        **vars(collapse),
        class_rank=float(ranks["median"]),
        class_rank_within=int(ranks["within"]),
        class_rank_means=int(ranks["means"]),
        class_rank_limited=int(ranks["limited"]),
    )
