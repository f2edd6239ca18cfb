"""A function's operators written down while they run, on the tensors themselves.

``torch.fx.experimental.proxy_tensor.make_fx`` writes the same graph. For compilers it also makes an abstract twin of
every value, which nothing here reads and which takes most of its time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.utils._python_dispatch import TorchDispatchMode, autograd_would_have_decomposed
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Recorded", "dtype_of", "recorded"]

aten = torch.ops.aten
_KNOWN = (Tensor, nn.Parameter)
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_ASKING = (aten.size.default, aten.stride.default, aten.storage_offset.default)
# torch.tensor(1) lifts a tensor that was made unseen: what writes into the value must not write into the constant.
# Views of the whole and detached values look alike below autograd: both are written as the former.
_WRITTEN_AS = {
    aten.lift_fresh.default: aten.lift_fresh_copy.default,
    aten.detach.default: aten.alias.default,
}


@dataclass
class Recorded:
    """The operators from one input on, and by node name the tensors that they take beside what they make."""

    graph: fx.Graph
    constants: dict[str, Tensor]

    def __call__(self, x: Tensor) -> Any:
        """Run them, one after another."""
        values: dict[str, Any] = dict(self.constants)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node.name] = x
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
                values[node.name] = node.target(*args, **kwargs)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: values[n.name])
        raise AssertionError("no output was recorded")


def recorded(function: Callable[[Tensor], Any], x: Tensor) -> Recorded:
    """The operators of ``function`` at ``x`` in the form that writes into nothing, as far as torch has one."""
    recorder = _Recorder(x)
    with _no_kept_casts(), recorder:
        out = functionalize(function, remove="mutations")(x)
    return recorder.ending_with(out)


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """That of the tensor which an operator made; ``None`` where it made none, or several."""
    found: torch.dtype | None = node.meta.get("dtype")
    return found


class _Recorder(TorchDispatchMode):
    """Writes down what runs inside. A tensor that none of it made is a constant."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._made = WeakTensorKeyDictionary()  # a value that the model lets go of is not kept for this
        self._note(x, self.graph.placeholder("x"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions for a tensor's device
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        if not all(type(t) in _KNOWN for t in leaves if isinstance(t, Tensor)):
            return NotImplemented  # a class of its own takes itself apart
        if func not in _ASKING and autograd_would_have_decomposed(func, leaves):
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        func = _WRITTEN_AS.get(func, func)
        taken = self._taken(args), {name: self._taken(value) for name, value in kwargs.items()}
        node = self.graph.create_node("call_function", func, *taken, name=func.overloadpacket.__name__)
        out = func(*args, **kwargs)
        self._note(out, node)
        return out

    def _taken(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, list | tuple):
            return type(value)(self._taken(v) for v in value)
        if isinstance(value, _PLAIN):
            return value
        raise NotImplementedError(f"an operator takes a {type(value).__name__}")

    def _node(self, tensor: Tensor) -> fx.Node:
        node: fx.Node | None = self._made.get(tensor)
        if node is None:
            node = self.graph.create_node("get_attr", "constant", name="constant")
            self.constants[node.name] = tensor
            self._made[tensor] = node
        return node

    def _note(self, value: Any, node: fx.Node) -> None:
        """From now on the tensor is what this operator made, also where it is one that the operator wrote into."""
        if isinstance(value, Tensor):
            self._made[value] = node
            node.meta["dtype"] = value.dtype
        elif isinstance(value, list | tuple):
            for place, each in enumerate(value):
                if isinstance(each, Tensor | list | tuple):
                    self._note(each, self.graph.call_function(operator.getitem, (node, place)))

    def ending_with(self, out: Any) -> Recorded:
        self.graph.output(self._taken(out))
        return Recorded(self.graph, self.constants)


@contextmanager
def _no_kept_casts() -> Iterator[None]:
    """Inside, autocast converts a weight anew at each use: a copy that it kept before would be a constant."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
