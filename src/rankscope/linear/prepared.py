"""What stands before any derivative: the dtype it is computed in, weights that are numbers, and the samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rankscope._base.checks import DtypeLike, dtype_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, ModelError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope.slicing import ColumnsByShape, Sample, weights_with_numbers

__all__ = ["finite_weights", "in_range", "prepared", "working_dtype"]

_SUMMED = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


def working_dtype(model: nn.Module, dtype: DtypeLike) -> tuple[torch.dtype, list[Fact]]:
    if dtype is not None:
        return dtype_of(dtype), []
    own = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if own == {torch.float64}:
        return torch.float64, []
    narrow = own - {torch.float32, torch.float64}
    names = tuple(sorted(dtype_name(d) for d in narrow))
    return torch.float32, [Fact(FactKind.WEIGHTS_RAISED, {"dtypes": names})] if narrow else []


def finite_weights(model: nn.Module) -> None:
    weights_with_numbers(model)
    for name, tensor, finite in _sums(model):
        if finite or bool(torch.isfinite(tensor).all()):  # finite numbers may have a sum that is not
            continue
        if name in _constants(model) and not torch.isnan(tensor).any():
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        raise ModelError(f"the weights of {name!r} hold {bad} NaN or infinite values; load other weights")


def _sums(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Every tensor of numbers, and whether its sum is finite, as it is of finite numbers alone.

    A sum takes a fifth of what a look at every number takes, and a GPU is waited for once.
    """
    found: list[tuple[str, Tensor]] = []
    lazy = ""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            lazy = name
            break
        if tensor.is_floating_point() or tensor.is_complex():
            found.append((name, _stored(tensor).detach()))
    finite = [False] * len(found)
    summed: dict[torch.device, list[int]] = {}
    for place, (_, tensor) in enumerate(found):
        if type(tensor) is Tensor and tensor.dtype in _SUMMED and not tensor.is_mkldnn:
            summed.setdefault(tensor.device, []).append(place)
    for places in summed.values():
        known = torch.stack([torch.isfinite(found[p][1].sum()) for p in places]).tolist()
        for place, one in zip(places, known, strict=True):
            finite[place] = one
    yield from ((name, tensor, one) for (name, tensor), one in zip(found, finite, strict=True))
    if lazy:
        raise ModelError(f"the weights of {lazy!r} are not made yet; call the model once with an input")


def _stored(tensor: Tensor) -> Tensor:
    """A tensor's numbers; of a sparse one those that it stores."""
    if tensor.layout == torch.sparse_coo:
        return tensor.detach().coalesce().values()
    return tensor if tensor.layout == torch.strided or tensor.is_mkldnn else tensor.detach().values()


def _constants(model: nn.Module) -> set[str]:
    """Buffers in which infinity may be meant, such as attention masks and the bounds of a clamp."""
    return {name for name, _ in model.named_buffers() if not name.endswith(("running_mean", "running_var"))}


def in_range(sample: Sample, dtype: torch.dtype) -> Sample:
    """The same sample; one whose every number is below the range of the dtype would be measured at zero.

    What is above the range is infinite there, and so are its outputs, which nothing is certified of.
    """
    if sample.x.dtype == torch.float64 and dtype != torch.float64 and sample.x.numel():
        top = float(sample.x.abs().max())
        if 0 < top < torch.finfo(dtype).tiny:
            raise DataError(
                f"the largest number of {sample.name} is {top:.1e}, which {dtype_name(dtype)} cannot hold; give "
                f"{parameter('dtype', 'float64')}, or scale the inputs"
            )
    return sample


def prepared(sample: Sample, columns: ColumnsByShape, background: str) -> Sample:
    # Inference tensors carry no derivatives. A tangent of a view may be allocated as large as all that it views: one
    # image of a batch gets storage of its own.
    if sample.x.is_inference() or sample.x.untyped_storage().nbytes() > sample.x.nbytes:
        sample = replace(sample, x=sample.x.clone())
    if background == "image":
        return sample
    coordinates = columns.coordinates(tuple(sample.x.shape[1:]))
    assert coordinates is not None
    kept = torch.zeros_like(sample.x).flatten(1)
    kept[:, coordinates] = sample.x.flatten(1)[:, coordinates]
    return replace(sample, x=kept.view_as(sample.x))
