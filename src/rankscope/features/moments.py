"""One-pass, mergeable, centred second moments in float64, as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch

from rankscope._base.arrays import dense
from rankscope._base.checks import count_of
from rankscope._base.errors import DataError, UsageError
from rankscope._base.world import group_size
from rankscope.features._inputs import first_bad_row
from rankscope.features.batch_value import ValueOfBatch
from rankscope.features.precision import check_real, unit_roundoff
from rankscope.loading import ensure_torchvision

ensure_torchvision()  # torchmetrics imports it, and dies beside a torch of another variant
from torchmetrics import Metric  # noqa: E402
from torchmetrics.utilities.distributed import gather_all_tensors  # noqa: E402

__all__ = ["CentredMoments", "ScalarOfMoments", "merge_moments"]

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def merge_moments(a: State, b: State) -> State:
    """(count, mean, scatter) of the union of two sets of rows from those of the sets.

    scatter = scatter_a + scatter_b + (n_a·n_b/n)·δδᵀ with δ = mean_b − mean_a (Chan, Golub and LeVeque 1983): no
    cancellation, whatever the means.

    >>> one = torch.ones(1, dtype=torch.float64)
    >>> n, mean, scatter = merge_moments((one[0], 1 * one, 0 * one[None]), (one[0], 3 * one, 0 * one[None]))
    >>> float(mean), float(scatter)
    (2.0, 2.0)
    """
    (n_a, mean_a, scatter_a), (n_b, mean_b, scatter_b) = a, b
    n = n_a + n_b
    if not n:
        return a
    delta = mean_b - mean_a
    share = n_b.to(torch.float64) / n
    return n, mean_a + delta * share, scatter_a + scatter_b + torch.outer(delta, delta) * (n_a * share)


def _centred(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows without their mean, and that; differences of near numbers are exact, so that nothing is left of a feature
    that does not vary, whatever its size.
    """
    centred = values - values[:1]
    level = centred.mean(0)
    centred -= level
    return centred, values[0] + level


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    lower = matrix.tril()
    return lower + lower.tril(-1).T


class CentredMoments(ValueOfBatch):
    """Count, mean and scatter Σ(x − mean)(x − mean)ᵀ of rows that arrive in batches.

    Batch size and order change the result by rounding alone (about 1e-15 relative). Across processes, under
    ``torch.distributed``, the states are gathered and merged by the same formula. Memory: 8·d² bytes; for layers wider
    than the samples use ``feature_rank``, which chooses by itself.

    Parameters
    ----------
    width : int, optional
        d, the length of a row; default: that of the first rows.
    name : str
        The layer, for error messages.

    Raises
    ------
    DataError
        Rows of another width, NaN or infinite values (layer and sample named), no rows at all on ``compute``.

    Examples
    --------
    >>> moments = CentredMoments(2)
    >>> moments.update(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> moments.update(torch.tensor([[4.0, 1.0]]))
    >>> moments.compute().round(decimals=9)
    tensor([[4., 0.],
            [0., 0.]], dtype=torch.float64)
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better: bool | None = None

    count: torch.Tensor
    mean: torch.Tensor
    scatter: torch.Tensor

    def __init__(self, width: int | None = None, *, name: str = "features", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if width is not None:
            count_of(width, "width", most=2**17)
        self.name = name
        self.roundoff = 0.0  # unit roundoff of the coarsest rows, or outputs that they were made of
        self.magnitude = 0.0  # ‖X‖²_F of half-precision outputs whose rows are means over positions; else 0
        self._whole: State | None = None
        self._whole_of = 0  # rows of this process then: a member of a compute group gets more without an update
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        size = width or 0  # no width yet: the first rows bring it
        self.add_state("mean", torch.zeros(size, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("scatter", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx=None)

    @property
    def width(self) -> int:
        """d, the length of a row; 0 before the first rows where it was not given."""
        return int(self.mean.shape[-1])

    def _take_width(self, width: int) -> None:
        if not self.width and width:
            self.mean = self.mean.new_zeros(width)
            self.scatter = self.scatter.new_zeros(width, width)

    def _sync_dist(self, dist_sync_fn: Any = gather_all_tensors, process_group: Any = None) -> None:
        """torchmetrics stacks what it gathers, so a process without rows must have the width of the others."""
        width = torch.tensor(self.width, device=self.mean.device)
        self._take_width(max(int(w) for w in dist_sync_fn(width, group=process_group or self.process_group)))
        super()._sync_dist(dist_sync_fn, process_group)

    def set_dtype(self, dst_type: str | torch.dtype) -> CentredMoments:
        """States stay float64, also inside a module that is turned to half precision."""
        return self

    def update(self, rows: torch.Tensor) -> None:
        """Add (n, d) rows of any real dtype."""
        rows = dense(rows, self.name)
        if rows.ndim != 2 or not rows.shape[1] or rows.shape[1] != (self.width or rows.shape[1]):
            raise DataError(f"{self.name}: rows of shape {tuple(rows.shape)}; (n, {self.width or 'd'}) are expected")
        check_real(rows, self.name)
        if not len(rows):
            return
        self.roundoff = max(self.roundoff, unit_roundoff(rows.dtype))
        self._take_width(rows.shape[1])
        values = rows.detach().to(device=self.mean.device, dtype=torch.float64)
        centred, mean = _centred(values)
        # one that is not finite, or a sum that overflows, leaves no finite mean
        if not bool(torch.isfinite(mean).all()):
            at = first_bad_row(values)
            if at is None:
                raise DataError(f"{self.name}: features so large that their sums overflow float64; scale them down")
            raise DataError(
                f"{self.name}: sample {int(self.count) + at} holds a NaN or infinite value; remove it, or look for an "
                "overflow in the layers before"
            )
        self._merge_rows(centred, mean)

    def add_checked(self, rows: torch.Tensor) -> None:
        """The same for rows known to be finite and of the right width: nothing waits for the device."""
        self._take_width(rows.shape[1])
        values = rows.detach().to(device=self.mean.device, dtype=torch.float64)
        self.roundoff = max(self.roundoff, unit_roundoff(rows.dtype))
        self._merge_rows(*_centred(values))
        self._computed = None
        self._update_count += 1

    def _merge_rows(self, centred: torch.Tensor, mean: torch.Tensor) -> None:
        self._whole = None
        delta, n = mean - self.mean, len(centred)
        share = n / (self.count + n).to(torch.float64)  # on the device: reading the count back would wait for it
        # two rank updates in place: no second d × d matrix
        self.scatter.addmm_(centred.T, centred)
        delta_scaled = delta * (self.count * share).sqrt()
        self.scatter.addr_(delta_scaled, delta_scaled)
        self.mean += delta * share
        self.count += n

    def state(self) -> State:
        """(count, mean, scatter) of all rows, merged over processes where torchmetrics has gathered them.

        The scatter is symmetric to the last bit: a matrix product need not be, so its lower triangle counts.
        """
        if isinstance(self.count, torch.Tensor) and self.count.ndim == 0:
            return self.count, self.mean, _symmetric(self.scatter)
        # a process without rows may not know their width
        parts = [p for p in zip(self.count, self.mean, self.scatter, strict=True) if int(p[0])]
        if not parts:
            return self.count[0], self.mean[0], _symmetric(self.scatter[0])
        merged = parts[0]
        for part in parts[1:]:
            merged = merge_moments(merged, part)
        return merged[0], merged[1], _symmetric(merged[2])

    def whole(self) -> State:
        """(count, mean, scatter) of the rows of all processes: what the last ``compute`` merged, where it did.

        torchmetrics hands a process its own states back after ``compute``; what was merged is kept apart until more
        rows come. Nothing is gathered here, so that one process alone may ask.

        Raises
        ------
        UsageError
            Under ``torch.distributed`` with several processes, before any ``compute``: this process knows its own rows.
        """
        if self._whole is not None and not self._is_synced and int(self.count) == self._whole_of:
            return self._whole
        if (group_size() or 1) > 1 and self._to_sync and not self._is_synced:
            raise UsageError(
                f"{self.name}: these moments hold the {int(self.count)} rows of this process alone; call compute() in "
                f"every process first, or make them with {type(self).__name__}(…, sync_on_compute=False) to measure "
                "each apart"
            )
        return self.state()

    def _merge(self) -> State:
        """Inside ``compute``: keep what was gathered for ``whole``, while this process has these rows and no more."""
        count, mean, scatter = (part.clone() for part in self.state())
        own = self._cache["count"] if self._is_synced and self._cache else self.count
        self._whole, self._whole_of = (count, mean, scatter), int(own)  # type: ignore[arg-type]
        return count, mean, scatter

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._whole, self.roundoff, self.magnitude = None, 0.0, 0.0

    def no_value(self) -> torch.Tensor | None:
        """NaN, (d, d), for fewer than two rows."""
        return torch.full_like(self.scatter, torch.nan) if int(self.count) < 2 else None

    def compute(self) -> torch.Tensor:
        """The covariance, (d, d) float64, divided by N − 1."""
        count, _, scatter = self._merge()
        if count < 2:
            raise DataError(f"{self.name}: a covariance needs two samples; it got {int(count)}")
        return scatter / (count - 1)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in another metric of the same layer (or its state); any order gives the same."""
        other: dict[str, Any] = (
            incoming_state if isinstance(incoming_state, dict) else dict(incoming_state.metric_state)
        )
        self._take_width(other["mean"].shape[-1])
        if not other["mean"].shape[-1]:
            return
        if tuple(other["mean"].shape) != tuple(self.mean.shape):
            raise DataError(f"{self.name}: moments of width {other['mean'].shape[-1]} do not merge into {self.width}")
        self._whole = None
        self.roundoff = max(self.roundoff, getattr(incoming_state, "roundoff", 0.0))
        self.magnitude += getattr(incoming_state, "magnitude", 0.0)
        device = self.mean.device
        incoming = (other["count"].to(device), other["mean"].to(device), other["scatter"].to(device))
        self.count, self.mean, self.scatter = merge_moments((self.count, self.mean, self.scatter), incoming)
        self._computed = None
        self._update_count += 1


class ScalarOfMoments(CentredMoments):
    """One number of the moments. A subclass says which, in ``compute``."""

    higher_is_better = True

    def no_value(self) -> torch.Tensor | None:
        """NaN for fewer than two rows."""
        return torch.tensor(torch.nan, dtype=torch.float64) if int(self.count) < 2 else None
