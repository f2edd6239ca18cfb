"""Models in another precision than their own, and whether one works in less inside than it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, bfloat16, complex64, complex128, dtype, finfo, float16, float64, nn, ops
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rankscope._base.errors import ModelError

__all__ = ["NARROW", "LowerPrecision", "converted", "meant", "without_casts"]

NARROW = (float16, bfloat16)

_MAKES = ("empty", "zeros", "ones", "full")
_MEMORY = {getattr(ops.aten, name) for made in _MAKES for name in (made, f"new_{made}", f"{made}_like")} | {
    ops.aten.empty_strided,
    ops.aten.new_empty_strided,
}
_ONE_DTYPE = {
    *(functional.conv1d, functional.conv2d, functional.conv3d, functional.prelu),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
}
"""What compares the dtypes of its arguments before any operator is called."""


@contextmanager
def converted(model: nn.Module, wanted: dtype) -> Iterator[None]:
    """Inside, the floating-point tensors of a model are of dtype ``wanted``; afterwards each has its own memory again.

    A plain attribute of another dtype than the first parameter's stays: it is a table that the model keeps in a
    precision of its own.

    Raises
    ------
    ModelError
        Where a tensor has no such dtype.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 2).bfloat16()
    >>> with converted(layer, torch.float32):
    ...     print(layer(torch.ones(1, 2)).dtype)
    torch.float32
    >>> layer.weight.dtype
    torch.bfloat16
    """
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    held: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        tables = (v for v in vars(module).values() if isinstance(v, Tensor) and v.dtype == own)
        for tensor in (*module._parameters.values(), *module._buffers.values(), *tables):
            if tensor is not None and tensor.dtype != meant(tensor, wanted) and not tensor.is_inference():
                held.setdefault(id(tensor), (tensor, tensor.data))
    try:
        for tensor, data in held.values():
            try:
                tensor.data = data.to(meant(tensor, wanted))
            except (RuntimeError, TypeError, NotImplementedError) as error:
                raise ModelError(f"{type(model).__name__} holds a tensor that cannot be {wanted}") from error
        yield
    finally:
        for tensor, data in held.values():
            tensor.data = data


def meant(tensor: Tensor, wanted: dtype) -> dtype:
    """The dtype that a tensor of a model has in precision ``wanted``: complex and whole numbers stay what they are."""
    if tensor.is_complex():
        return complex128 if wanted == float64 else complex64
    return wanted if tensor.is_floating_point() else tensor.dtype


class LowerPrecision(TorchDispatchMode):
    """Inside, ``found`` becomes true when an operator makes a narrower floating tensor of one of dtype ``wide``.

    ``narrowest`` is the dtype of the fewest bits among those. Constants that are born narrow (a mask, an epsilon) do
    not count: they lose nothing of what is computed.

    >>> import torch
    >>> with LowerPrecision() as seen:
    ...     _ = torch.ones(3, dtype=torch.float64).float() * 2
    >>> seen.found, seen.narrowest
    (True, torch.float32)
    """

    def __init__(self, wide: dtype = float64) -> None:
        super().__init__()
        self.wide = wide
        self.narrowest: dtype | None = None

    @property
    def found(self) -> bool:
        return self.narrowest is not None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, Tensor) and t.dtype == self.wide for t in tree_leaves((args, kwargs))):
            for t in tree_leaves(out):
                if isinstance(t, Tensor) and is_narrower(t.dtype, self.wide) and t.numel() > 1:
                    known = self.narrowest
                    self.narrowest = t.dtype if known is None or is_narrower(t.dtype, known) else known
        return out


class _WithoutRounding(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("dtype")
        if isinstance(asked, dtype) and any(_loses(t, asked) for t in tree_leaves(args)):
            if func.overloadpacket is ops.aten._to_copy:
                return func(*args, **{**kwargs, "dtype": float64})
            if _wide(args):
                kwargs = {**kwargs, "dtype": float64}
        if _wide(args) and not func._schema.is_mutable:
            args = tree_map(_raised, args)
        out = func(*args, **kwargs)
        return tree_map(_raised, out) if func.overloadpacket in _MEMORY else out


class _OneDtype(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ONE_DTYPE and _wide((args, kwargs)):
            args, kwargs = tree_map(_raised, (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def without_casts() -> Iterator[None]:
    """Inside, no operator that is asked for a narrower result rounds: it makes float64.

    A model that casts inside is so evaluated without what the casts round off. Constants that the model makes in a
    narrower dtype (a grid, a kernel) are raised where they meet float64: many operators, unlike sums, take one dtype
    alone. Memory that it makes to write into is float64 from the start. Writing into any other narrower tensor rounds
    as before.

    >>> import torch
    >>> with without_casts():
    ...     print(torch.ones(3, dtype=torch.float64).bfloat16().dtype)
    ...     print((torch.eye(3) @ torch.ones(3, dtype=torch.float64)).dtype)
    torch.float64
    torch.float64
    """
    with _OneDtype(), _WithoutRounding():
        yield


def _loses(value: Any, asked: dtype) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and is_narrower(asked, value.dtype)


def _wide(values: Any) -> bool:
    return any(isinstance(t, Tensor) and t.dtype == float64 for t in tree_leaves(values))


def _raised(value: Any) -> Any:
    narrow = isinstance(value, Tensor) and is_narrower(value.dtype, float64)
    return value.to(float64) if narrow else value


def is_narrower(one: dtype, other: dtype) -> bool:
    """Whether a floating dtype has fewer digits than another.

    >>> import torch
    >>> is_narrower(torch.float32, float64), is_narrower(bfloat16, float16), is_narrower(float64, torch.float32)
    (True, True, False)
    """
    return one.is_floating_point and finfo(one).eps > finfo(other).eps
