"""LiDAR: how many directions tell objects apart beside what differs between views of one object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rankscope._base.arrays import dense
from rankscope._base.checks import number_of
from rankscope._base.errors import DataError
from rankscope.features.moments import ScalarOfMoments
from rankscope.features.precision import check_real
from rankscope.spectra import measures

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["LiDAR"]


class LiDAR(ScalarOfMoments):
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

    within: Tensor
    freedom: Tensor

    def __init__(self, *, delta: float = 1e-4, name: str = "features", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)  # of the objects' means
        self.delta = number_of(delta, "delta", above=0)
        self.add_state("within", torch.zeros(0, 0, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("freedom", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)

    def _take_width(self, width: int) -> None:
        super()._take_width(width)
        if not len(self.within):
            self.within = torch.zeros_like(self.scatter)

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
        super().update(centres)
        inner = (x - centres[:, None]).flatten(0, 1)
        self.within += inner.T @ inner
        self.freedom += len(x) * (x.shape[1] - 1)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in another metric of the same features (or its state); any order gives the same."""
        other: dict[str, Any] = (
            incoming_state if isinstance(incoming_state, dict) else dict(incoming_state.metric_state)
        )
        super().merge_state(incoming_state)
        if len(other["within"]):
            self.within = self.within + other["within"].to(self.within.device)
            self.freedom = self.freedom + other["freedom"].to(self.freedom.device)

    def compute(self) -> Tensor:
        """The value, a float64 scalar."""
        count, _, between = self.state()
        gathered = self.within.ndim > 2  # of every process
        within = self.within.sum(0) if gathered else self.within
        freedom = self.freedom.sum(0) if gathered else self.freedom
        if count < 2:
            raise DataError(f"{self.name}: a covariance of objects needs two; it got {int(count)}")
        inner = within / freedom + self.delta * torch.eye(len(between), dtype=torch.float64, device=within.device)
        values, axes = torch.linalg.eigh((inner + inner.T) / 2)
        whitened = axes / values.sqrt()
        outer = whitened.T @ (between / (count - 1)) @ whitened
        found = torch.linalg.eigvalsh((outer + outer.T) / 2).clamp_min(0)
        # as published: p = λ/‖λ‖₁ + ε, the same function as RankMe's, of eigenvalues
        return torch.tensor(measures.rankme(found.cpu().numpy()), dtype=torch.float64, device=between.device)
