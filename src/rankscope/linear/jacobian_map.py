"""``linear_map``: a model's Jacobian at one sample as an object that one can multiply with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rankscope._base.checks import DeviceLike, DtypeLike, MemoryBudget, budget_of, device_of, dtype_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import UsageError, nearest, parameter
from rankscope._base.facts import Fact
from rankscope._base.text import counted
from rankscope.linear.derivative import Derivative, Settings
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.matrix import Matrix
from rankscope.linear.prepared import finite_weights, in_range, prepared, working_dtype
from rankscope.linear.returned import returned_facts
from rankscope.linear.rows import row_numbers, split_rows
from rankscope.linear.same_weights import SameWeights
from rankscope.linear.scipy_view import linear_operator
from rankscope.linear.tracing import at_home, traced_calls
from rankscope.linear.vectors import vectors
from rankscope.slicing import (
    ColumnsByShape,
    CutPointsLike,
    ModuleCall,
    Sample,
    Samples,
    measuring,
    mode_facts,
    read_samples,
)
from rankscope.slicing.batches import run_forward
from rankscope.slicing.precision import NARROW
from rankscope.slicing.values import is_array
from rankscope.slicing.wrapped import unwrapped
from rankscope.views.sentences import phrase, sentence

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["JacobianMap", "linear_map"]


def linear_map(
    model: nn.Module,
    x: Any,
    *,
    cut_points: CutPointsLike = "output",
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    dtype: DtypeLike = None,
    device: DeviceLike = None,
    memory_budget: MemoryBudget = None,
) -> JacobianMap:
    """The Jacobian of a model's cut points at one sample, known through its products.

    ``J.push(v)`` is J·v by forward mode and ``J.pull(u)`` is Jᵀ·u by reverse mode; J itself is never formed. Several
    cut points are stacked in the order in which the model calls them, and ``J[name]`` is one of them. The derivative is
    the same as in ``jacobian_rank``: in evaluation mode, in full float32 or in float64, at the model's current state.
    Every product leaves the model unchanged, also after an exception.

    Parameters
    ----------
    model : torch.nn.Module
        On any device. Its weights must stay as they are while the Jacobian is in use.
    x : Tensor, array, mapping or tuple
        One sample, with its batch dimension of size 1; read as the inputs of ``jacobian_rank``.
    cut_points : str or list of str
        As in ``jacobian_rank``; default: what the network returns.
    differentiate, shared, per_sample
        As in ``jacobian_rank``.
    dtype : torch.dtype or str, optional
        float32 or float64; default: the model's own, half precision raised to float32.
    device : torch.device or str, optional
        Where to compute; default: where the model is. The model is not moved.
    memory_budget : int or str, optional
        Bytes that the tangents pushed at once may take, or a text such as ``"4GB"``; default: 4 GiB or half of what is
        free. The model itself comes on top.

    Returns
    -------
    JacobianMap

    Raises
    ------
    UsageError, CutPointError
        For options that cannot be used, more than one sample, or unknown layers.
    DataError
        For an empty, non-numeric, NaN or infinite input.
    ModelError
        For a model with NaN weights, or whose forward pass fails.
    DeviceError
        For an absent device or a memory budget that is too small.
    MeasurementError
        When no way to push tangents works, or no cut point depends on the input.

    Examples
    --------
    >>> import torch, rankscope as rs
    >>> layer = torch.nn.Linear(6, 4).double().eval()
    >>> J = rs.linear_map(layer, torch.zeros(1, 6))
    >>> J.shape
    (4, 6)
    >>> v = torch.ones(6, dtype=torch.float64)
    >>> torch.allclose(J.push(v), layer.weight @ v)
    True
    >>> u = torch.ones(3, 4, dtype=torch.float64)
    >>> torch.allclose(J.pull(u), u @ layer.weight)
    True
    """
    model, cut_points, wrapping = unwrapped(model, cut_points)
    where = device_of(device, model)
    work_dtype, facts = working_dtype(model, dtype)
    budget = budget_of(memory_budget, where)
    finite_weights(model)
    options = {"differentiate": differentiate, "shared": shared, "per_sample": per_sample}
    sample, read = _one_sample(model, x, options)
    in_range(sample, work_dtype)
    chosen = traced_calls(model, read, sample, cut_points, work_dtype)
    facts = [*facts, *wrapping, *mode_facts(model), *read.facts(), *returned_facts(chosen.calls)]
    settings = Settings("auto", budget, False, where, work_dtype, ColumnsByShape("all"), chosen.trace.through)
    names = tuple(call.name for call in chosen.calls)
    kept = _Kept(model, names, options, tuple(facts), SameWeights(model))
    return _made(kept, chosen.calls, sample, settings, None)


def _one_sample(model: nn.Module, x: Any, options: Mapping[str, Any]) -> tuple[Sample, Samples]:
    """The sample, which shares no memory with what was given, and how it was read."""
    read = read_samples(model, x, **options)
    sample = next(read)
    if next(read, None) is not None:
        held = "more than one sample" if read.total is None else counted(read.total, "sample")
        alone = ", or x[None] if it is one sample" if is_array(x) else ""
        raise UsageError(f"{parameter('x')} holds {held}; give one, such as x[:1]{alone}")
    own = {k: _cloned(v) for k, v in sample.extra.items()}
    return replace(prepared(sample, ColumnsByShape("all"), "image"), x=sample.x.clone(), extra=own), read


def _cloned(value: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.clone(), value)


@dataclass(frozen=True)
class _Kept:
    """What the Jacobians of one model share, at whatever point and in whatever precision."""

    model: nn.Module
    names: tuple[str, ...]
    options: Mapping[str, Any]
    facts: tuple[Fact, ...]
    weights: SameWeights


class JacobianMap:
    """A Jacobian that is known through its products; ``linear_map`` makes it.

    It has ``shape`` (rows, columns): the columns are the entries of the sample in row-major order, the rows those of
    each cut point's output. Complex outputs have two rows an entry, the real and the imaginary part.
    """

    def __init__(self, kept: _Kept, derivative: Derivative, sample: Sample, matrix: Matrix, places: tuple[int, ...]):
        self._kept, self._derivative, self._sample, self._matrix, self._places = (
            kept,
            derivative,
            sample,
            matrix,
            places,
        )

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of all cut points together, and entries of the sample."""
        return self._matrix.shape

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one tangent: that of the sample without its batch dimension."""
        return tuple(self._sample.x.shape[1:])

    @property
    def rows(self) -> dict[str, range]:
        """The row numbers of each cut point, by its name."""
        ends = list(accumulate(self._matrix.sizes, initial=0))
        return {self._kept.names[k]: range(ends[i], ends[i + 1]) for i, k in enumerate(self._places)}

    @property
    def dtype(self) -> torch.dtype:
        """Of tangents, cotangents and products."""
        return self._matrix.map.dtype

    @property
    def device(self) -> torch.device:
        """Where tangents and cotangents have to be, and products are."""
        return self._matrix.map.device

    @property
    def method(self) -> Fact:
        """How tangents are pushed."""
        return self._derivative.way

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What was found out about the model and its derivative; a caution among them says that J is in doubt."""
        return (*self._kept.facts, *self._derivative.facts)

    @property
    def notes(self) -> tuple[str, ...]:
        """``facts`` as sentences."""
        return tuple(sentence(fact) for fact in self.facts)

    def __repr__(self) -> str:
        rows, columns = self.shape
        each = ", ".join(f"{name!r} {counted(len(r), 'row')}" for name, r in self.rows.items())
        dtype = dtype_name(self.dtype)
        lines = [f"JacobianMap of {rows:,} × {columns:,} ({each}), {dtype} on {self.device}, by {phrase(self.method)}"]
        return "\n".join([*lines, *(sentence(fact) for fact in self.facts if fact.caution)])

    # ---- products ----------------------------------------------------------------------------------------------------

    def push(self, v: Tensor, rows: Any = None) -> Tensor:
        """J·v.

        Parameters
        ----------
        v : Tensor
            One tangent of shape ``input_shape``, or k of them, ``(k, *input_shape)``; of this map's dtype and device.
        rows : sequence of int, optional
            Only these rows, in this order.

        Returns
        -------
        Tensor
            Of shape (rows,) or (k, rows). It carries no gradient.

        Raises
        ------
        UsageError
            For another shape, dtype or device, for rows that there are not, and where the model has changed.
        """
        tangents, one = vectors(v, "v", self.input_shape, self.dtype, self.device)
        total = self.shape[0]
        numbers = None if rows is None else row_numbers(rows, total)
        count = total if numbers is None else len(numbers)
        found = torch.zeros(len(tangents), count, dtype=self.dtype, device=self.device)
        if found.numel():
            columns = tangents.reshape(len(tangents), -1).T
            with self._measured():
                if numbers is None:
                    found = self._matrix.push(columns).T.contiguous()
                else:
                    places, order = split_rows(numbers, self._matrix.sizes, self.device)
                    found = self._matrix.push(columns, places).T.index_select(1, order)
        return found[0] if one else found

    def pull(self, u: Tensor) -> Tensor:
        """Jᵀ·u.

        Parameters
        ----------
        u : Tensor
            One cotangent of shape (rows,), or k of them, (k, rows); of this map's dtype and device.

        Returns
        -------
        Tensor
            Of shape ``input_shape`` or ``(k, *input_shape)``. It carries no gradient.

        Raises
        ------
        UsageError
            For another shape, dtype or device, and where the model has changed.
        MeasurementError
            Where reverse mode fails on this model.
        """
        cotangents, one = vectors(u, "u", (self.shape[0],), self.dtype, self.device)
        found = torch.zeros(len(cotangents), *self.input_shape, dtype=self.dtype, device=self.device)
        if len(cotangents):
            with self._measured():
                found = self._matrix.pull(cotangents.T).T.reshape(found.shape).contiguous()
        return found[0] if one else found

    def scipy(self) -> LinearOperator:
        """The same as a ``scipy.sparse.linalg.LinearOperator`` of float64 or float32, for vectors in row-major order.

        >>> import torch, rankscope as rs
        >>> from scipy.sparse.linalg import svds
        >>> layer = torch.nn.Linear(6, 4).double().eval()
        >>> top = svds(rs.linear_map(layer, torch.zeros(1, 6)).scipy(), k=1, return_singular_vectors=False)
        >>> bool(abs(top[0] - torch.linalg.matrix_norm(layer.weight, 2)) < 1e-9)
        True
        """

        def push(columns: Tensor) -> Tensor:
            with self._measured():
                return self._matrix.push(columns)

        def pull(columns: Tensor) -> Tensor:
            with self._measured():
                return self._matrix.pull(columns)

        return linear_operator(self._matrix, push, pull)

    # ---- other Jacobians of the same model ---------------------------------------------------------------------------

    def __getitem__(self, name: str) -> JacobianMap:
        """The Jacobian of one cut point; passes end at its output."""
        known = [self._kept.names[k] for k in self._places]
        if name not in known:
            raise UsageError(f"no cut point {name!r} here; {nearest(str(name), known)}")
        if len(known) == 1:
            return self
        here = known.index(name)
        # the matrix of a map of all cut points; its own maps have one each
        matrix = replace(
            self._matrix, map=self._matrix.map.of_place(here), sizes=(self._matrix.sizes[here],), chunk=None
        )
        return JacobianMap(self._kept, self._derivative, self._sample, matrix, (self._places[here],))

    def __iter__(self) -> Iterator[str]:
        """The cut points' names, in the order of their rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """How many cut points there are."""
        return len(self._places)

    def at(self, x: Any) -> JacobianMap:
        """The Jacobian at another sample, given as to ``linear_map``: with its checks, but traced anew only if needed.

        Raises
        ------
        UsageError, DataError, ModelError, MeasurementError
            As ``linear_map``; MeasurementError also where the model's path at this sample leads not to the cut points.
        """
        self._kept.weights.check()
        sample, _ = _one_sample(self._kept.model, x, self._kept.options)
        home = at_home(self._kept.model, sample)
        if sample.x.shape != self._sample.x.shape and home.x.dtype not in NARROW:
            # where the model does not take this shape it says so itself, in its own precision
            with measuring(self._kept.model, home.x.device):
                run_forward(self._kept.model, home, home.x.device)
        return self._of(sample, self._derivative.settings)

    def in_dtype(self, dtype: DtypeLike) -> JacobianMap:
        """The Jacobian at the same sample, as it was given, computed in float32 or float64."""
        self._kept.weights.check()
        return self._of(self._sample, replace(self._derivative.settings, dtype=dtype_of(dtype)))

    def _of(self, sample: Sample, settings: Settings) -> JacobianMap:
        in_range(sample, settings.dtype)
        whole = _made(self._kept, self._derivative.calls, sample, settings, self._derivative)
        return whole if len(self) == len(self._kept.names) else whole[self._kept.names[self._places[0]]]

    @contextmanager
    def _measured(self) -> Iterator[None]:
        self._kept.weights.check()
        try:
            with measuring(self._kept.model, self.device):
                yield
        finally:
            self._kept.weights.renew()


def _made(
    kept: _Kept, calls: Sequence[ModuleCall], sample: Sample, settings: Settings, before: Derivative | None
) -> JacobianMap:
    """The map at a sample, with every check made there; ``before`` lends what holds at any point."""
    moved = sample.to(settings.device, settings.dtype)
    try:
        with measuring(kept.model, settings.device):
            same = before is not None and before.settings.dtype == settings.dtype
            runners = (before.runner, None) if same and before is not None else None
            derivative = Derivative(kept.model, calls, settings, runners)
            with derivative.runner.hooked():
                derivative.prepare(moved, before.linearised if same and before is not None else None)
            jacobian: LinearMap = derivative.at(moved)
            sizes = tuple(out.numel() for out in jacobian.outputs())
    finally:
        kept.weights.renew()
    return JacobianMap(kept, derivative, sample, Matrix(jacobian, sizes, settings.budget), tuple(range(len(sizes))))
