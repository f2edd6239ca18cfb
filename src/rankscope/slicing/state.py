"""What a model holds between two calls, kept and put back: buffers, plain attributes, and what these contain.

A forward pass may count its calls, fill a cache, append to a list, carry a hidden state or draw from a generator of its
own. A measurement calls the model thousands of times, at other precisions and under transforms, and it measures one
function only if each of these calls starts from the same state.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rankscope._base.errors import ModelError
from rankscope.slicing.fingerprints import fingerprint
from rankscope.slicing.generators import GeneratorState, generator_of
from rankscope.slicing.same import same_at_once, same_memory, same_numbers, version_of

__all__ = [
    "ModelState",
    "guarded",
    "kept_state",
    "outside_transforms",
    "set_aside",
]

_LARGE = 2**30  # bytes of parameters; beyond this fingerprints are kept, and a model that changes them is refused
_MOST = 100_000  # entries of containers; what a model holds beyond that is a data set, not its state
_THOROUGH = 3  # calls after which a tensor that is written to past its version counter has shown it
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)


@dataclass
class _Kept:
    """One container: how to read it now, what it held, and how to put that back."""

    name: str
    held: Any
    read: Callable[[], Any]
    write: Callable[[Any], object]
    live: dict[Any, Any] | None = None
    """The dictionary itself, where it is one, and what all of it held: a look at these alone mostly is enough."""
    keys: tuple[Any, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def untouched(self) -> bool:
        """Without a loop in Python and without a copy: a network has a thousand of these, looked at every call."""
        live = self.live
        return (
            live is not None
            and len(live) == len(self.keys)
            and all(map(is_, live.values(), self.values))
            and all(map(is_, live, self.keys))
        )


class _KeptTensor:
    """A tensor's values, by its version counter, or by comparison where it was written past that (``.data``)."""

    def __init__(self, name: str, tensor: Tensor, *, copy: bool) -> None:
        self.name, self.tensor = name, tensor
        self.version = version_of(tensor)
        self.data = tensor.detach()
        self.values = self.data.clone() if copy else None
        self.mark = None if copy else fingerprint(self.data)
        self.silent = False
        self.leaf = tensor.is_leaf
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if self.leaf else None
        self.grad_data = None if self.grad is None else self.grad.detach()

    def restore(self, *, thorough: bool, same: bool = False) -> bool:
        """Put the values back; whether they had changed. ``same``: a comparison shows no change."""
        if self.leaf:
            self._restore_gradient()
        moved = not same_memory(self.tensor, self.data)
        written = version_of(self.tensor) != self.version
        if not (moved or written or self.silent or thorough):
            return False
        if self.values is None and self.mark is None and not (moved or written):
            return False
        if moved:
            self.tensor.data = self.data
        changed = not same and self._changed()
        if changed and self.values is None:
            raise ModelError(
                f"the forward pass changes {self.name!r}, and of more than {_LARGE / 2**30:g} GiB of weights no copy "
                "is kept, so they are not what they were; load the model again, and measure one whose forward pass "
                "leaves its weights as they are"
            )
        if changed and self.values is not None:
            self.tensor.data.copy_(self.values)  # past the version counter: no graph of the caller saw a change
            self.silent = True  # from now on by value: it may be written to past the counter too
        self.version = version_of(self.tensor)
        return changed or moved

    def _changed(self) -> bool:
        """Whether it holds other numbers than it did; of what holds no plain ones any sign of it counts."""
        if self.values is not None:
            return not same_numbers(self.data, self.values)
        now = fingerprint(self.data)
        return now is None or self.mark is None or not torch.equal(now, self.mark)

    def _restore_gradient(self) -> None:
        """A conversion of a module converts its gradients too; whether one is wanted changes nothing computed here."""
        if self.tensor.requires_grad != self.requires_grad and self.tensor.is_leaf:
            self.tensor.requires_grad = self.requires_grad  # by this name also below a transform
        if self.grad is not None and self.grad_data is not None and not same_memory(self.grad, self.grad_data):
            self.grad.data = self.grad_data
        if self.tensor.is_leaf and self.tensor.grad is not self.grad:
            data = self.tensor.data
            if self.grad_data is not None:  # a model that is converted for now has gradients of its own dtype
                self.tensor.data = self.grad_data
            self.tensor.grad = self.grad
            self.tensor.data = data


class ModelState:
    """A model's state at one moment. ``restore`` puts it back; ``changed`` names what calls have changed so far.

    ``drawn`` are those of ``changed`` that are random generators.
    """

    def __init__(self, model: nn.Module) -> None:
        self.changed: set[str] = set()
        self.drawn: set[str] = set()
        self._kept: list[_Kept] = []
        self._tensors: list[_KeptTensor] = []
        self._seen: dict[int, Any] = {}
        self._paused = 0
        self._calls = 0
        self._entries = 0
        self._compared = False
        self._copy_parameters = sum(p.numel() * p.element_size() for p in model.parameters()) <= _LARGE
        # breadth first: where there is too much, what the model itself holds comes before what that leads to
        self._queue: deque[tuple[str, Any]] = deque(model.named_modules())
        with outside_transforms():
            while self._queue and self._entries < _MOST:
                self._take(*self._queue.popleft())
        self._queue.clear()

    # ---- taking stock ------------------------------------------------------------------------------------------------

    def _take(self, name: str, value: Any) -> None:
        if isinstance(value, (*_PLAIN, *_CODE)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value  # holds it, so that no other object gets its identity
        generator = generator_of(value)
        if generator is not None:
            read, write = generator
            self._keep(name, read(), read, write, [])
            return
        if isinstance(value, nn.Module):
            self._module(name, value)
        elif isinstance(value, Tensor):
            parameter = isinstance(value, nn.Parameter)
            self._tensors.append(_KeptTensor(name, value, copy=self._copy_parameters or not parameter))
        elif isinstance(value, np.ndarray):
            self._keep(name, value.copy(), lambda: value, lambda held: value.__setitem__(..., held), [])
        elif isinstance(value, dict):
            members = [(f"{name}[{key!r}]", member) for key, member in value.items()]
            self._keep(name, dict(value), lambda: value, lambda held: _refill(value, held), members, live=value)
        elif isinstance(value, list | deque | set):
            self._keep(name, value.copy(), lambda: value, lambda held: _refill(value, held), [(name, m) for m in value])
        elif isinstance(value, tuple | frozenset):
            self._later([(name, member) for member in value])
        elif isinstance(getattr(value, "__dict__", None), dict) and not type(value).__module__.startswith("torch."):
            inner = vars(value)
            members = [(f"{name}.{key}", member) for key, member in inner.items()]
            self._keep(name, dict(inner), lambda: inner, lambda held: _refill(inner, held), members, live=inner)

    def _module(self, name: str, module: nn.Module) -> None:
        def own() -> dict[str, Any]:
            return {
                k: v for k, v in vars(module).items() if not (k[:1] == "_" and "hook" in k)
            }  # the capture's own hooks stay

        def write(held: dict[str, Any]) -> None:
            for key in own().keys() - held.keys():
                del module.__dict__[key]
            module.__dict__.update(held)

        held = own()
        start = name + "." if name else ""
        members = [(start + k, v) for k, v in held.items() if k not in _REGISTRIES]
        self._keep(name, held, own, write, members, live=vars(module))
        for registry in _REGISTRIES:
            inner = held.get(registry)
            if isinstance(inner, dict):
                members = [(start + k, v) for k, v in inner.items()]
                self._keep(name, dict(inner), partial(_itself, inner), partial(_refill, inner), members, live=inner)

    def _keep(
        self,
        name: str,
        held: Any,
        read: Callable[[], Any],
        write: Callable[[Any], object],
        members: list[tuple[str, Any]],
        live: dict[Any, Any] | None = None,
    ) -> None:
        whole = {} if live is None else live
        self._kept.append(_Kept(name, held, read, write, live, tuple(whole), tuple(whole.values())))
        self._later(members)

    def _later(self, members: list[tuple[str, Any]]) -> None:
        self._entries += len(members)
        self._queue.extend(members)

    # ---- putting it back ---------------------------------------------------------------------------------------------

    def restore(self, *, last: bool = False, call: bool = True) -> None:
        """Everything as it was. ``last`` compares all tensors by value, however late one was written to.

        ``call`` says that a call of the model follows, which may show what it writes to.
        """
        thorough = last or self._calls < _THOROUGH
        # a fingerprint takes longer than a comparison: once where the first call has shown it, and at the end
        once = last or (self._calls > 0 and not self._compared)
        self._compared |= once
        self._calls += call
        for kept in self._kept:
            if kept.untouched:
                continue
            now = kept.read()
            if not _same(now, kept.held):
                self.changed.update(_differences(kept.name, now, kept.held))
                if isinstance(kept.held, GeneratorState):
                    self.drawn.add(kept.name)
                kept.write(kept.held)
        lost: ModelError | None = None
        with outside_transforms():
            same = same_at_once((t.data, t.values) for t in self._tensors) if thorough else [False] * len(self._tensors)
            for t, unchanged in zip(self._tensors, same, strict=True):
                try:
                    if t.restore(thorough=once if t.mark is not None else thorough, same=unchanged):
                        self.changed.add(t.name)
                except ModelError as error:  # the others can be put back
                    lost = lost or error
        if lost is not None:
            raise lost

    def distrust(self, tensor: Tensor) -> None:
        """A call wrote past the version counter into a copy of this tensor, so it may write into this one too."""
        for kept in self._tensors:
            if kept.tensor is tensor:
                kept.silent = True
                self.changed.add(kept.name)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, a call of the model restores nothing: other tensors stand in its places for the time being."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def before_call(self, *_: Any) -> None:
        """A forward pre-hook of the model."""
        if not self._paused:
            self.restore()


_REGISTRIES = ("_parameters", "_buffers", "_modules")
_ACTIVE: WeakKeyDictionary[nn.Module, ModelState] = WeakKeyDictionary()


def guarded(model: nn.Module) -> ModelState | None:
    """The state that a guard around the code that runs now has kept of this model."""
    return _ACTIVE.get(model)


@contextmanager
def kept_state(model: nn.Module) -> Iterator[ModelState]:
    """Each call of the model inside starts from the state that it has now, and the model leaves with it."""
    outer = _ACTIVE.get(model)
    if outer is not None:  # a guard within a guard: the outer one keeps the state
        yield outer
        return
    state = ModelState(model)
    handle = model.register_forward_pre_hook(state.before_call, prepend=True)
    _ACTIVE[model] = state
    try:
        yield state
    finally:
        _ACTIVE.pop(model, None)
        handle.remove()
        state.restore(last=True)


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Inside, a guard around this one keeps nothing: the model holds other tensors there, which another guard keeps."""
    outer = _ACTIVE.pop(model, None)
    if outer is None:
        yield
        return
    outer.restore()
    try:
        with outer.paused():
            yield
    finally:
        _ACTIVE[model] = outer


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Plain tensor arithmetic inside, also while a trace records or a derivative is under way.

    A mode for functions would see every question for a tensor's address or version, which costs more than the answer.
    """
    with _disable_current_modes(), torch._C._DisableFuncTorch(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _itself(container: Any) -> Any:
    return container


def _refill(container: Any, held: Any) -> None:
    if isinstance(container, list):
        container[:] = held
        return
    container.clear()
    container.extend(held) if isinstance(container, deque) else container.update(held)


def _same(now: Any, held: Any) -> bool:
    """Whether a container has the very same members in the same places."""
    if isinstance(held, dict):  # first and without a loop in Python: every module has ten of them, looked at every call
        same_size = len(now) == len(held)
        return same_size and all(map(is_, now, held)) and all(map(is_, now.values(), held.values()))
    if isinstance(held, GeneratorState):
        return bool(now == held)
    if isinstance(held, np.ndarray):
        return now.shape == held.shape and bool(np.array_equal(now, held, equal_nan=held.dtype.kind in "fc"))
    if len(now) != len(held):
        return False
    if isinstance(held, set):
        return {id(x) for x in now} == {id(x) for x in held}
    return all(x is y for x, y in zip(now, held, strict=True))


def _differences(name: str, now: Any, held: Any) -> set[str]:
    """What to call the members that are others; an equal plain value in the place of one is no change."""
    if not isinstance(held, dict):
        return {name}
    keys = [k for k in now.keys() | held.keys() if not _alike(now.get(k), held.get(k))]
    return {f"{name}.{k}" if name else str(k) for k in keys}


def _alike(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)
