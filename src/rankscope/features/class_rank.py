"""Rank of each class's features, and of the class means beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope._base.checks import count_of
from rankscope.features.accumulate import layer_features
from rankscope.features.labelled_rows import LabelledRows
from rankscope.features.principal import from_first
from rankscope.features.sketch import RowStore

__all__ = ["ClassRank"]


class ClassRank(LabelledRows):
    """PCA dimension of the features within each class, over all classes together, and of the class means.

    A collapsed network has within-class dimensions near 0 and C − 1 for the means. A class of n samples spans at most
    n − 1 dimensions: ``limited`` counts the classes where the samples and not the network set the number. The numbers
    have no bounds: give rows that were computed in float32 or float64, since rounding to half precision counts too.

    Parameters
    ----------
    classes : int
        C.

    Examples
    --------
    >>> metric = ClassRank(2)
    >>> x = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 7.0, 0.0]])
    >>> metric.update(x, torch.tensor([0, 0, 0, 1, 1]))
    >>> found = metric.compute()
    >>> found["each"].tolist(), float(found["means"])
    ([1.0, 1.0], 1.0)
    """

    higher_is_better = True

    def __init__(self, classes: int, *, name: str = "features", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.classes = count_of(classes, "classes", least=2, most=10**7)

    def compute(self) -> dict[str, Tensor]:
        """float64 tensors.

        ``each`` (C,), NaN for a class of fewer than two samples; ``median`` of them; ``within``, all rows less the
        means of their classes; ``means``; ``limited``.
        """
        rows, labels = self.all_rows(self.classes)
        x, _ = from_first(rows)  # ranks depend on neither the scale nor the mean
        each = torch.full((self.classes,), torch.nan, dtype=torch.float64)
        limited, means, centred = 0, [], []
        for label in labels.unique().tolist():
            own = x[labels == label]
            means.append(own.mean(0))
            centred.append(own - means[-1])
            if len(own) > 1:
                found = self._features(own)
                each[label] = found.pca_dimension
                limited += found.limited_by == "samples"
        return {
            "each": each,
            "median": each.nanmedian(),
            "within": self._dimension(torch.cat(centred)),
            "means": self._dimension(torch.stack(means)),
            "limited": torch.tensor(float(limited), dtype=torch.float64),
        }

    def _features(self, rows: Tensor) -> Any:
        store = RowStore(rows.shape[1], name=self.name)
        store.update(rows)  # float64: the first row is subtracted, and may lie far from the others
        return layer_features(self.name, store)

    def _dimension(self, rows: Tensor) -> Tensor:
        value = self._features(rows).pca_dimension if len(rows) > 1 else 0
        return torch.tensor(float(value), dtype=torch.float64)
