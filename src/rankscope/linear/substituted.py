"""A model whose weights, buffers and tensor attributes are on another device or of another dtype during a call.

The model's own are never moved or converted: converted copies take their places. All of them at once are a second
model; where that is more than there is room for, large weights are converted for one operator at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankscope.linear.on_demand import OnDemand
from rankscope.slicing import (
    ModelState,
    on_a_gpu,
    outside_transforms,
    same_at_once,
    same_memory,
    same_numbers,
    version_of,
)

__all__ = ["Converted"]

_THOROUGH = 3  # calls after which a copy that is written to past its version counter (``.data``) has shown it
_SMALL = 2**16  # bytes; converted copies below this are kept, since together they are small beside the large ones


@dataclass
class _Tensor:
    """One tensor in the device and dtype asked for; ``owner`` is the module that holds it as a plain attribute."""

    full: str
    name: str
    owner: nn.Module | None
    source: Tensor
    made: Tensor
    silent: bool = False
    """Whether calls write to it past its version counter."""
    data: Tensor = field(init=False)
    version: int = field(init=False)

    def __post_init__(self) -> None:
        self.take(self.made)

    def take(self, made: Tensor) -> None:
        """From now on this one stands in the source's place."""
        self.made, self.data, self.version = made, _data(made), version_of(made)


class Converted:
    """The converted tensors of one model, for calls of it.

    ``room`` are the bytes that copies of all weights may take; ``None``: any. ``bytes`` are those that they take or
    would take, and ``on_demand`` says whether large ones are converted each time.
    """

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype, room: int | None = None) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        places = list(self._places())
        sizes = {id(source): source.numel() * _itemsize(self._wanted(source)) for *_, source in places}
        self.bytes = sum(sizes.values())
        self.on_demand = False
        over = room is not None and self.bytes > room
        made: dict[int, Tensor] = {}
        self._calls = 0
        self._tensors: list[_Tensor] = []
        for full, name, owner, source in places:
            if id(source) not in made:
                late = over and sizes[id(source)] >= _SMALL and _waits(source)
                self.on_demand |= late
                made[id(source)] = self._on_demand(source) if late else self._convert(source)
            self._tensors.append(_Tensor(full, name, owner, source, made[id(source)]))

    def __bool__(self) -> bool:
        return bool(self._tensors)

    @property
    def forward(self) -> Any:
        """The model's own, which names the arguments of a call."""
        return self.model.forward

    @property
    def in_place(self) -> list[Tensor]:
        """The weights that a call uses, converted or the model's own."""
        converted = {id(each.source): each.made for each in self._tensors}
        return [converted.get(id(p), p) for p in self.model.parameters()]

    def _places(self) -> list[tuple[str, str, nn.Module | None, Tensor]]:
        """Where the model holds tensors that have to change: full name, own name, owner of a plain attribute."""
        found: list[tuple[str, str, nn.Module | None, Tensor]] = []
        own = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        for prefix, module in self.model.named_modules():
            attributes = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
            for held in (module._parameters, module._buffers, attributes):
                for name, tensor in held.items():
                    if tensor is None or (tensor.device == self.device and tensor.dtype == self._wanted(tensor)):
                        continue
                    if held is attributes and tensor.device == self.device and tensor.dtype != own:
                        continue  # a table that the model keeps in a precision of its own, as the code that made it
                    full = f"{prefix}.{name}" if prefix else name
                    found.append((full, name, module if held is attributes else None, tensor))
        return found

    def _wanted(self, tensor: Tensor) -> torch.dtype:
        if tensor.is_complex():
            return torch.complex128 if self.dtype == torch.float64 else torch.complex64
        return self.dtype if tensor.is_floating_point() else tensor.dtype

    def _convert(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, self._wanted(tensor))

    def _on_demand(self, tensor: Tensor) -> OnDemand:
        return OnDemand(tensor, self.device, self._wanted(tensor))

    def keep_all(self) -> None:
        """From now on copies of all tensors are held."""
        _replace((each for each in self._tensors if isinstance(each.made, OnDemand)), self._convert)
        self.on_demand = False

    def renew(self, state: ModelState | None) -> None:
        """Make the tensors what they are to be before a call: one that a call wrote into is made again."""
        thorough = 0 < self._calls < _THOROUGH
        with outside_transforms():
            same = same_at_once(map(self._again, self._tensors)) if thorough else [False] * len(self._tensors)
            pairs = zip(self._tensors, same, strict=True)
            changed = [each for each, known in pairs if self._has_changed(each, state, thorough=thorough and not known)]
        late, held = ([e for e in changed if isinstance(e.made, OnDemand) == on_demand] for on_demand in (True, False))
        _replace(late, self._on_demand)
        _replace(held, self._copy)

    def _again(self, each: _Tensor) -> tuple[Tensor, Tensor | None]:
        """A copy and what it is to be; nothing of one that is made anew in any case, or that is not on a GPU."""
        late = isinstance(each.made, OnDemand) or not same_memory(each.made, each.data) or not on_a_gpu(each.made)
        return each.made, None if late else self._convert(each.source)

    def _has_changed(self, each: _Tensor, state: ModelState | None, *, thorough: bool) -> bool:
        if isinstance(each.made, OnDemand):
            return each.made.written
        if each.silent or version_of(each.made) != each.version or (state is not None and each.full in state.changed):
            return True
        if not same_memory(each.made, each.data):  # the call assigned to it, or converted its module
            each.made.data = each.data
        if thorough:
            again = self._convert(each.source)
            each.silent = each.made.shape != again.shape or not same_numbers(each.made, again)
        if each.silent and state is not None:
            state.distrust(each.source)
        return each.silent

    def _copy(self, tensor: Tensor) -> Tensor:
        again = self._convert(tensor)
        return again.clone() if again is tensor else again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with these tensors in their places."""
        tensors = {each.full: each.made for each in self._tensors if each.owner is None}
        for each in self._tensors:
            if each.owner is not None:
                each.owner.__dict__[each.name] = each.made
        try:
            # the state names tied weights itself: torch's own way leaves a module that stands in two places changed
            made = torch.func.functional_call(self.model, tensors, args, kwargs, tie_weights=False)
        except Exception:  # a transform may have refused just what writes into a copy
            self._calls -= 1
            raise
        finally:
            self._calls += 1
            for each in self._tensors:
                if each.owner is not None:
                    each.owner.__dict__[each.name] = each.source
        return made


def _replace(tensors: Iterable[_Tensor], make: Callable[[Tensor], Tensor]) -> None:
    """Others in their places, one for each source, which may have several."""
    fresh: dict[int, Tensor] = {}
    with outside_transforms():
        for each in tensors:
            if id(each.source) not in fresh:
                fresh[id(each.source)] = make(each.source)
            each.take(fresh[id(each.source)])


def _itemsize(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def _data(tensor: Tensor) -> Tensor:
    """Its memory, also after the tensor was given another."""
    if isinstance(tensor, OnDemand):
        return tensor
    with outside_transforms():
        return tensor.detach()


def _waits(tensor: Tensor) -> bool:
    """Whether a tensor can be converted on demand: a weight of torch's own type, dense, of real numbers."""
    if type(tensor) is not nn.Parameter or tensor.layout != torch.strided or not tensor.is_floating_point():
        return False
    formats = {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(tensor.ndim, [])
    return any(tensor.is_contiguous(memory_format=f) for f in [torch.contiguous_format, *formats])
