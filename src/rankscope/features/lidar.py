"""LiDAR: how many directions tell objects apart beside what differs between views of one object."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope._base.arrays import dense
from rankscope._base.checks import number_of
from rankscope._base.errors import DataError
from rankscope.features.moments import merge_moments
from rankscope.features.precision import check_real
from rankscope.loading import ensure_torchvision
from rankscope.spectra import measures

ensure_torchvision()  # torchmetrics imports it, and dies beside a torch of another variant
from torchmetrics import Metric  # noqa: E402
from torchmetrics.utilities.distributed import gather_all_tensors  # noqa: E402

__all__ = ["LiDAR"]


class LiDAR(Metric):
    """exp of the entropy of the eigenvalues of Σ_w^(−1/2) Σ_b Σ_w^(−1/2) (Thilak et al., ICLR 2024).

    Σ_b is the covariance of the objects' mean features, Σ_w the mean covariance of the views of one object plus δ·I,
    both divided by their degrees of freedom. Between 1 and min(objects − 1, d). Few objects make it too low; two views
    an object are enough where objects are many.

    Parameters
    ----------
    delta : float
        δ, above 0; 1e-4 as published.

    Raises
    ------
    DataError
        Views of other shapes, fewer than two views, NaN values, fewer than two objects on ``compute``.

    Examples
    --------
    >>> metric = LiDAR()
    >>> objects = torch.cat([torch.eye(3), -torch.eye(3)])
    >>> metric.update(objects, objects)
    >>> round(float(metric.compute()), 4)
    3.0
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = True

    count: Tensor
    mean: Tensor
    between: Tensor
    within: Tensor
    freedom: Tensor

    def __init__(self, *, delta: float = 1e-4, name: str = "features", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.delta, self.name = number_of(delta, "delta", above=0), name
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("mean", torch.zeros(0, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("between", torch.zeros(0, 0, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("within", torch.zeros(0, 0, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("freedom", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)

    def set_dtype(self, dst_type: str | torch.dtype) -> LiDAR:
        """States stay float64, also inside a module that is turned to half precision."""
        return self

    def update(self, *views: Tensor) -> None:
        """Add the features of some objects: (n, d) of each view, or one (n, views, d)."""
        parts = [dense(v, self.name) for v in views]
        if len(parts) > 1 and any(p.ndim != 2 or p.shape != parts[0].shape for p in parts):
            shapes = ", ".join(str(tuple(p.shape)) for p in parts)
            raise DataError(f"{self.name}: views of shapes {shapes}; each is to be (objects, d) of the same objects")
        x = torch.stack(parts, 1) if len(parts) > 1 else parts[0]
        if x.ndim != 3 or x.shape[1] < 2:
            raise DataError(f"{self.name}: shape {tuple(x.shape)}; give two views or more, or one (objects, views, d)")
        check_real(x, self.name)
        x = x.detach().to(self.mean.device, torch.float64)
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"{self.name}: a view holds a NaN or infinite value")
        if not len(x):
            return
        centres = x.mean(1)
        inner = (x - centres[:, None]).flatten(0, 1)
        mean = centres.mean(0)
        one = torch.tensor(len(x), device=x.device)
        outer = centres - mean
        if not len(self.mean):
            self._take_width(x.shape[2])
        if x.shape[2] != len(self.mean):
            raise DataError(f"{self.name}: {x.shape[2]} dimensions after {len(self.mean)}")
        self.count, self.mean, self.between = merge_moments(
            (self.count, self.mean, self.between), (one, mean, outer.T @ outer)
        )
        self.within = self.within + inner.T @ inner
        self.freedom = self.freedom + len(x) * (x.shape[1] - 1)

    def _take_width(self, width: int) -> None:
        if width and not self.mean.shape[-1]:
            self.mean = self.mean.new_zeros(width)
            self.between = self.between.new_zeros(width, width)
            self.within = self.within.new_zeros(width, width)

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """torchmetrics stacks what it gathers, so a process without objects must have the width of the others."""
        gather = dist_sync_fn or gather_all_tensors
        width = torch.tensor(len(self.mean), device=self.mean.device)
        self._take_width(max(int(w) for w in gather(width, group=process_group or self.process_group)))
        super()._sync_dist(gather, process_group)

    def _merged(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.count.ndim == 0:
            return self.count, self.between, self.within, self.freedom
        merged = (self.count[0], self.mean[0], self.between[0])
        for part in zip(self.count[1:], self.mean[1:], self.between[1:], strict=True):
            merged = merge_moments(merged, part)
        return merged[0], merged[2], self.within.sum(0), self.freedom.sum(0)

    def compute(self) -> Tensor:
        """The value, a float64 scalar."""
        count, between, within, freedom = self._merged()
        if count < 2:
            raise DataError(f"{self.name}: a covariance of objects needs two; {int(count)} came in")
        width = len(between)
        inner = within / freedom + self.delta * torch.eye(width, dtype=torch.float64, device=within.device)
        values, axes = torch.linalg.eigh((inner + inner.T) / 2)
        whitened = axes / values.sqrt()
        outer = whitened.T @ (between / (count - 1)) @ whitened
        found = torch.linalg.eigvalsh((outer + outer.T) / 2).clamp_min(0)
        # as published: p = λ/‖λ‖₁ + ε, the same function as RankMe's, of eigenvalues
        return torch.tensor(measures.rankme(found.cpu().numpy()), dtype=torch.float64, device=between.device)
