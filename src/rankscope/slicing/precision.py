"""Models in another precision than their own, and whether one works in less inside than it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, bfloat16, complex64, complex128, dtype, finfo, float16, float64, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankscope._base.errors import ModelError

__all__ = ["NARROW", "LowerPrecision", "WithoutCasts", "converted"]

NARROW = (float16, bfloat16)


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
            if tensor is not None and tensor.dtype != _meant(tensor, wanted) and not tensor.is_inference():
                held.setdefault(id(tensor), (tensor, tensor.data))
    try:
        for tensor, data in held.values():
            try:
                tensor.data = data.to(_meant(tensor, wanted))
            except (RuntimeError, TypeError, NotImplementedError) as error:
                raise ModelError(f"{type(model).__name__} holds a tensor that cannot be {wanted}") from error
        yield
    finally:
        for tensor, data in held.values():
            tensor.data = data


def _meant(tensor: Tensor, wanted: dtype) -> dtype:
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


class WithoutCasts(TorchDispatchMode):
    """Inside, no operator that is asked for a narrower result makes one of a float64 tensor: it stays float64.

    A model that casts inside is so evaluated without what the casts round off. What does not take its result's dtype
    as an argument (writing into a narrower tensor) is as before.

    >>> import torch
    >>> with WithoutCasts():
    ...     print(torch.ones(3, dtype=torch.float64).bfloat16().dtype)
    torch.float64
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("dtype")
        wide = any(isinstance(t, Tensor) and t.dtype == float64 for t in tree_leaves(args))
        if wide and isinstance(asked, dtype) and is_narrower(asked, float64):
            kwargs = {**kwargs, "dtype": float64}
        return func(*args, **kwargs)


def is_narrower(one: dtype, other: dtype) -> bool:
    """Whether a floating dtype has fewer digits than another.

    >>> import torch
    >>> is_narrower(torch.float32, float64), is_narrower(bfloat16, float16), is_narrower(float64, torch.float32)
    (True, True, False)
    """
    return one.is_floating_point and finfo(one).eps > finfo(other).eps
