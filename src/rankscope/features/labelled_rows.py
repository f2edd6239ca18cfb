"""Rows and their labels as a torchmetrics state: for measures that need each row once the class means are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope._base.arrays import dense
from rankscope._base.errors import DataError
from rankscope._base.labels import class_indices
from rankscope.features._inputs import first_bad_row
from rankscope.features.precision import check_real, kept_whole
from rankscope.loading import ensure_torchvision

ensure_torchvision()  # torchmetrics imports it, and dies beside a torch of another variant
from torchmetrics import Metric  # noqa: E402

__all__ = ["LabelledRows"]


class LabelledRows(Metric):
    """Keeps (n, d) rows and (n,) labels of every batch, losing no digit; gathered over processes."""

    full_state_update = False
    is_differentiable = False

    rows: Any  # a list of tensors; one tensor once torchmetrics has gathered them
    labels: Any

    def __init__(self, *, name: str = "features", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def set_dtype(self, dst_type: str | torch.dtype) -> LabelledRows:
        """Rows stay as wide as they came, also inside a module that is turned to half precision."""
        return self

    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Add rows of any real dtype with integer or Boolean labels."""
        rows, labels = dense(rows, self.name), class_indices(labels)
        if rows.ndim != 2 or labels.shape != rows.shape[:1]:
            raise DataError(
                f"{self.name}: rows of shape {tuple(rows.shape)} and labels of shape {tuple(labels.shape)}; (n, d) and "
                "(n,) are expected"
            )
        if self.rows and rows.shape[1] != self.rows[0].shape[1]:
            raise DataError(f"{self.name}: rows of {rows.shape[1]} dimensions after rows of {self.rows[0].shape[1]}")
        check_real(rows, self.name)
        if not bool(torch.isfinite(rows).all()):
            raise DataError(
                f"{self.name}: sample {sum(map(len, self.rows)) + (first_bad_row(rows) or 0)} holds a NaN or infinite "
                "value; remove it, or look for an overflow in the layers before"
            )
        if len(rows):
            self.rows.append(kept_whole(rows.detach()))
            self.labels.append(labels.to(rows.device))

    def all_rows(self, classes: int) -> tuple[Tensor, Tensor]:
        """All (N, d) rows and (N,) labels.

        Raises
        ------
        DataError
            No rows, or labels outside 0 … ``classes`` − 1.
        """
        rows, labels = (v if isinstance(v, Tensor) else torch.cat(v) if v else v for v in (self.rows, self.labels))
        if not isinstance(rows, Tensor) or not isinstance(labels, Tensor) or not len(rows):
            raise DataError(f"{self.name}: there are no rows; call update first")
        labels = labels.to(torch.int64)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise DataError(f"{self.name}: labels run from {low} to {high}, but 0 … {classes - 1} are expected")
        return rows, labels
