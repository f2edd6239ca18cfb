"""``chain_exponents``: Lyapunov-style exponents of a real network's chain of equal-width blocks (paper, Theorem 4)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rankscope._base.checks import DeviceLike, DtypeLike, count_of, device_of, seed_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import CutPointError, DataError, ModelError, first_line, is_out_of_memory, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Progress, progress_for
from rankscope._base.provenance import device_name, versions
from rankscope._base.text import was
from rankscope.jacobian.exponents_record import ChainExponents
from rankscope.linear.block_runner import BlockRunner
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.matrix import Matrix
from rankscope.linear.methods import Method, choose_method
from rankscope.linear.prepared import finite_weights, in_range, working_dtype
from rankscope.linear.runner import Runner
from rankscope.linear.tracing import traced
from rankscope.slicing import (
    CUT_POINT_WORDS,
    CallKey,
    CutPointsLike,
    ModuleCall,
    Sample,
    Trace,
    measuring,
    mode_facts,
    read_samples,
    select,
)
from rankscope.slicing.memory import forward_facts
from rankscope.slicing.one_sample import naming_the_batch
from rankscope.slicing.values import is_array
from rankscope.slicing.wrapped import unwrapped

if TYPE_CHECKING:
    from rankscope.theory import LyapunovExponents

__all__ = ["chain_exponents"]

_TOP = 64


@dataclass(frozen=True)
class _Chain:
    """Where the chain starts (None: the input itself), the calls that end its blocks, and what passes between them."""

    start: ModuleCall | None
    blocks: tuple[ModuleCall, ...]
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    def starts(self) -> list[CallKey | None]:
        return [None if self.start is None else self.start.key, *(b.key for b in self.blocks[:-1])]


def chain_exponents(
    model: nn.Module,
    inputs: Any,
    *,
    cut_points: CutPointsLike = "blocks",
    top: int = _TOP,
    dtype: DtypeLike = "float64",
    chunk_size: int = 64,
    device: DeviceLike = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool | Progress | None = None,
    name: str | None = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
) -> ChainExponents:
    """Rates at which a network's own blocks stretch and shrink perturbations: λ_k, nats per block.

    The longest run of cut points of one output shape is the chain; its factors are the Jacobians J_l of its blocks at
    the point that the input takes there. An orthonormal frame is pushed through each by forward mode and made
    orthonormal again (QR); the exponents are the means of log|R_kk| over the blocks, sorted. exp(L·Σ_k λ_k) over all
    that are tracked is the factor by which the frame's volume grows over the L blocks; with all directions
    (``top`` ≥ width) the sum of the exponents is the mean of log|det J_l|.

    The frame starts at random, and in a chain this short the exponents depend on it. They are the growth rates of
    random directions, and λ_1 + … + λ_k is below the sum of (1/L)·log σ_k of the whole product. The difference grows as
    the number of blocks falls; the sums over all k are equal.

    Parameters
    ----------
    model : torch.nn.Module
        Measured in evaluation mode, whichever mode it is in; left as it was.
    inputs
        As in ``jacobian_rank``, with ``differentiate``, ``shared`` and ``per_sample``; one spectrum of exponents each.
    cut_points : str or list of str
        Where blocks may end; those that are no true cut are left out. ``"blocks"`` finds a transformer's or mixer's
        own; in a plain network a block is a layer that mixes features (linear, convolution) with all that follows it
        until the next one. Names or globs choose other blocks, and are taken as they are.
    top : int
        How many leading exponents at most; all where the width is no larger. Width is tokens × channels (37,824 for
        ViT-T), so all are out of reach there.
    dtype : torch.dtype or str, optional
        float64 (default), so that singular blocks show as such; float32 is about twice as fast and cannot tell
        shrinking below 1e-7 from zero. None: the model's own.
    chunk_size : int
        Tangents pushed at once.
    device : torch.device or str, optional
        Where to compute; default: where the model is.
    limit : int, optional
        Use at most this many samples.
    seed : int
        Of the frame's start, the same for every input.
    progress : bool or callable, optional
        As in ``jacobian_rank``.
    name : str, optional
        What the record calls the model; default: its class.

    Raises
    ------
    CutPointError
        When there is no run of two blocks or more of one width; the message names the shapes seen.
    UsageError, DataError, ModelError, DeviceError
        As in ``jacobian_rank``; DataError also when a block's Jacobian is not finite, ModelError when the model does
        not run in ``dtype``.
    MeasurementError
        When no way to push tangents works.

    Examples
    --------
    >>> import torch, rankscope as rs
    >>> net = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)]).double().eval()
    >>> found = rs.chain_exponents(net, torch.zeros(1, 4, dtype=torch.float64))
    >>> logs = [torch.linalg.slogdet(layer.weight)[1] for layer in net]
    >>> bool(abs(found.mean.sum() - sum(logs) / 3) < 1e-12)
    True
    """
    from rankscope.theory import lyapunov_exponents

    started = time.perf_counter()
    top, chunk_size = count_of(top, "top"), count_of(chunk_size, "chunk_size")
    seed = seed_of(seed)
    model, cut_points, wrapping = unwrapped(model, cut_points)
    where = device_of(device, model)
    work_dtype, facts = working_dtype(model, dtype)
    facts += [*wrapping, *mode_facts(model)]
    finite_weights(model)
    samples = read_samples(
        model, inputs, limit=limit, differentiate=differentiate, shared=shared, per_sample=per_sample
    )
    first = next(samples)
    facts += samples.facts()
    with naming_the_batch(inputs.shape if is_array(inputs) else None):
        path = traced(model, first, work_dtype)
    calls = select(model, path, cut_points)
    # a list of names is taken as it is
    chain = _longest(path, calls, merge=isinstance(cut_points, str) and cut_points in CUT_POINT_WORDS)
    tracked = min(top, chain.width)
    if tracked < chain.width:
        leading = {"tracked": tracked, "width": chain.width, "seed": seed}
        facts.append(Fact(FactKind.LEADING_EXPONENTS, leading))
    facts.append(Fact(FactKind.SHORT_CHAIN, {"blocks": len(chain.blocks)}))

    report = progress_for(progress, "chain exponents")
    found: list[LyapunovExponents] = []
    way = _Way()
    with measuring(model, where):
        facts += forward_facts(model, first, device_of(None, model), {})
        try:
            for index, raw in enumerate([first, *samples]):
                in_range(raw, work_dtype)
                if raw.x.shape != first.x.shape:
                    raise DataError(
                        f"{raw.name} has shape {tuple(raw.x.shape[1:])} where the first has "
                        f"{tuple(first.x.shape[1:])}; give inputs of one shape"
                    )
                sample = raw.to(where, work_dtype)
                with _named_failure(path.model, work_dtype):
                    operators = _operators(model, chain, sample, where, work_dtype, chunk_size, way)
                    found.append(lyapunov_exponents(operators, k=tracked, seed=seed, progress=False))
                report(index + 1, None, raw.name)
        finally:
            report.close()
    return ChainExponents(
        model=name or path.model,
        blocks=tuple(b.name for b in chain.blocks),
        start="the input" if chain.start is None else chain.start.name,
        shape=chain.shape,
        images=tuple(f"sample {i}" for i in range(len(found))),
        per_image=tuple(found),
        method=way.fact(),
        dtype=dtype_name(work_dtype),
        device=device_name(where),
        failed_methods=tuple(way.failures),
        facts=tuple(facts),
        seconds=time.perf_counter() - started,
        versions=versions(),
    )


@contextmanager
def _named_failure(model: str, dtype: torch.dtype) -> Iterator[None]:
    """torch's own errors as one that says what to do; running out of memory stays what it is."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        width = dtype_name(dtype)
        words = first_line(error)
        # the model itself ran in its own dtype when it was traced
        remedy = parameter("dtype", "float32" if dtype == torch.float64 else "float64")
        raise ModelError(
            f"{model} does not run in {width}: {words}; give {remedy}, or leave "
            f"{parameter('dtype')} out for the model's own"
        ) from error


_Points = list[tuple[ModuleCall | None, tuple[int, ...]]]  # None: the input


def _longest(found: Trace, calls: list[ModuleCall], *, merge: bool) -> _Chain:
    """The longest chain of blocks of one shape along true cuts; of equal ones the first.

    ``merge``: a block is what mixes features and all that follows it until the next that does.
    """
    points: _Points = [(None, found.input_shape)]
    points += [(c, tuple(c.shape[1:])) for c in calls if c.true_cut and c.shape[:1] == (1,) and not c.tensors]
    kept = _run(points, merge=merge)
    if merge:  # shapes that alternate inside the blocks, as before and after a gated unit
        kept = max(kept, _run(_merged(points), merge=False), key=len)
    if len(kept) < 3:
        seen = ", ".join(f"{'input' if c is None else c.name} {'×'.join(map(str, s))}" for c, s in points[:12])
        more = f" and {len(points) - 12} more" if len(points) > 12 else ""
        plain = _run(points, merge=False)
        if merge and len(plain) > 2:
            raise CutPointError(
                f"{found.model} has no chain of two blocks or more: {_operations(plain)} recognised along its "
                f"{len(plain) - 1} cut points of one width, and a block is one with all that follows it; to take each "
                f"cut point as a block, name them under {parameter('cut_points')}: "
                f"{', '.join([c.name for c, _ in plain if c is not None][:4])}"
            )
        raise CutPointError(
            f"{found.model} has no chain of two blocks or more of one width along its true cuts: {seen}{more}; name "
            f"cut points of one shape ({parameter('rs.layers(model)')} lists them), or use "
            f"{parameter('rs.jacobian_rank')}, which needs no equal widths"
        )
    return _Chain(kept[0][0], tuple(c for c, _ in kept[1:] if c is not None), kept[0][1])


def _run(points: _Points, *, merge: bool) -> _Points:
    """The start and the blocks of the longest run of points of one shape."""
    best: list[int] = []
    run: list[int] = []
    for i, (_, shape) in enumerate(points):
        run = [*run, i] if run and points[run[-1]][1] == shape else [i]
        if len(run) > len(best):
            best = run
    # A norm or dropout between blocks belongs to the block that follows; one after them to none. One before them moves
    # the start.
    blocks = [i for i in best[1:] if not _leaf(points[i][0])]
    if len(blocks) > 1:
        return [points[i] for i in (blocks[0] - 1, *blocks)]
    whole = [points[i] for i in best]
    return _merged(whole) if merge else whole


def _merged(points: _Points) -> _Points:
    """Of these points the last before each operation that mixes features, and the last of all."""
    mixing = [0 if c is None else c.mixing for c, _ in points]
    kept = [p for p, own, after in zip(points, mixing, mixing[1:], strict=False) if after & ~own]
    return [*kept, points[-1]]


def _operations(points: _Points) -> str:
    first, last = (0 if c is None else c.mixing for c, _ in (points[0], points[-1]))
    count = (last & ~first).bit_count()
    if not count:
        return "no operation that mixes features (matrix product, convolution, …) was"
    how_many = f"{count} operations that mix features" if count > 1 else "only one operation that mixes features"
    return f"{how_many} {was(count)}"


def _leaf(call: ModuleCall | None) -> bool:
    return call is None or call.leaf


@dataclass
class _Way:
    """How tangents are pushed: found for each block at the first sample, kept for all others."""

    methods: dict[CallKey, Method] = field(default_factory=dict)
    failures: list[Fact] = field(default_factory=list)

    def at(self, block: CallKey, runner: BlockRunner, point: Sample) -> LinearMap:
        if block not in self.methods:
            with runner.hooked():
                runner.outputs(point, point.x)  # a block that does not run in this dtype is no matter of derivatives
                self.methods[block], _, failures = choose_method(runner, point, torch.ones_like(point.x[:1]))
            self.failures += [one for one in failures if one not in self.failures]
        return LinearMap(runner, self.methods[block], point)

    def fact(self) -> Fact:
        return Fact(FactKind.PUSHED, {"name": " and ".join(dict.fromkeys(m.name for m in self.methods.values()))})


@dataclass(frozen=True)
class _Operator:
    """One block's Jacobian at one point, known through its products with float64 columns."""

    block: str
    matrix: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def matmat(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        own = self.matrix.map
        product = self.matrix.push(torch.from_numpy(columns).to(own.device, own.dtype)).to("cpu", torch.float64)
        if not torch.isfinite(product).all():
            raise DataError(
                f"the Jacobian of {self.block} has NaN or infinite entries on {own.sample.name}; check the model's "
                "weights and this input, or leave it out"
            )
        return np.asarray(product.numpy())


def _operators(
    model: nn.Module,
    chain: _Chain,
    sample: Sample,
    device: torch.device,
    dtype: torch.dtype,
    chunk: int,
    way: _Way,
) -> list[_Operator]:
    """The blocks' Jacobians at the points that this sample takes."""
    keys = chain.starts()
    inner = [k for k in keys if k is not None]
    runner = Runner(model, inner, device, dtype)
    with runner.hooked():
        values = dict(zip(inner, runner.outputs(sample, sample.x), strict=True))
    found = []
    for start, block in zip(keys, chain.blocks, strict=True):
        x = sample.x if start is None else values[start].view(1, *chain.shape)
        between = BlockRunner(model, start, block.key, sample, device, dtype)
        point = way.at(block.key, between, replace(sample, x=x))
        found.append(_Operator(block.name, Matrix(point, (chain.width,), 0, chunk)))
    return found
