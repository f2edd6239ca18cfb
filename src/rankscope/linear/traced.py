"""A network's operators between its input and the cut points, written down by tracing it once.

The trace is the network only where no value of the input decides what Python code does: where one is read, or makes a
size, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from rankscope.linear.assignments import moves, sets_data
from rankscope.linear.folding import fold_normalisation
from rankscope.linear.recorder import dtype_of, recorded
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample

__all__ = ["TracedNetwork"]


class _Detached(TorchFunctionMode):
    """Whether the code that runs inside takes a tensor out of the computation, by whatever name."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False
        self.assigned = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func in _DETACHING
        if sets_data(func):
            if not moves(*args):
                return None
            self.assigned = True  # the model may catch what is raised
            raise NotImplementedError(_ASSIGNED)
        return func(*args, **(kwargs or {}))


# the weights are put back after each call, and the trace holds the weights themselves
_ASSIGNED = "the model gives new memory to a tensor's data"
_DETACHING = (
    Tensor.detach,
    Tensor.detach_,
    torch.detach,
    torch.detach_,
    torch.detach_copy,
    Tensor.data.__get__,  # type: ignore[attr-defined]
    Tensor.data.__set__,  # type: ignore[attr-defined]
    Tensor.requires_grad_,
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__deepcopy__,
)


class TracedNetwork:
    """The operators between the input and the cut points, for inputs of one shape."""

    def __init__(self, runner: Runner, sample: Sample) -> None:
        def run(x: Tensor) -> tuple[Tensor, ...]:
            return runner.outputs(sample, x)

        # values of constants may be read (a mask that is all ones, say); values of the input are refused below
        with _Detached() as detached:
            self.recorded = recorded(run, sample.x)
        if detached.assigned:
            raise NotImplementedError(_ASSIGNED)
        self._refuse_read_values(detached=detached.found)
        self._replace_in_place(lambda target: target is torch.ops.aten.as_strided_.default)
        if any(_writes(n.target) for n in self._nodes("call_function")):
            # written by an operator's own decomposition, which ran below the first pass
            self.recorded = recorded(self.recorded, sample.x)
        self._replace_in_place(_writes)
        self.recorded.graph.eliminate_dead_code()
        self.constants = {n.name: self.recorded.constants[n.name] for n in self._nodes("get_attr")}
        self.nodes = list(self.recorded.graph.nodes)
        written = [n for n in self._nodes("call_function") if _writes(n.target)]
        if written:  # the rules never look at what an operator writes into its arguments
            raise NotImplementedError(f"{written[0].target} stays in place after functionalisation")
        self.outputs = [str(a) for a in next(n for n in self.nodes if n.op == "output").args[0]]
        self.depends = self._depends()
        self.folded = fold_normalisation(self.nodes, self.constants, self.depends)
        self.last_use = self._last_use()

    def _nodes(self, op: str) -> list[fx.Node]:
        return [n for n in self.recorded.graph.nodes if n.op == op]

    @property
    def input(self) -> fx.Node:
        return self._nodes("placeholder")[0]

    def _refuse_read_values(self, *, detached: bool) -> None:
        """What the model's Python code reads, a number or a size, is fixed in the trace: no input may decide it."""
        depends = self._depends()
        for node in self._nodes("call_function"):
            tags = getattr(node.target, "tags", ())
            read = [n for n in node.all_input_nodes if n.name in depends]
            if not read:
                continue
            if detached and node.target == torch.ops.aten.alias.default:
                # a trace without gradients writes detach() as it does a view of the whole, such as h[:, :8] of eight
                raise NotImplementedError(
                    "the trace does not distinguish a detached value from a view of it (aten.alias)"
                )
            if torch.Tag.data_dependent_output in tags:
                raise NotImplementedError(f"the model reads a value that depends on the input ({node.target})")
            # the tag stands at every indexing; only masks among the indices make a size
            index = node.target in _INDEXING
            masks = [n for n in read if n is not node.args[0] and dtype_of(n) in _MASKS]
            if masks if index else torch.Tag.dynamic_output_shape in tags:
                raise NotImplementedError(f"the model makes a size that depends on the input ({node.target})")

    def _replace_in_place(self, kind: Callable[[Any], bool]) -> None:
        """Composite operators (recurrent cells) write in place below functionalisation: take the functional twin.

        Only where nothing reads the overwritten value afterwards; what remains is seen when the paths are compared.
        ``kind`` chooses: ``as_strided_`` writes no number, only where a tensor's own are, and needs no second trace.
        """
        position = {n: i for i, n in enumerate(self.recorded.graph.nodes)}
        for node in self._nodes("call_function"):
            target = node.target
            if not isinstance(target, torch._ops.OpOverload) or not _writes(target) or not kind(target):
                continue
            written = node.args[0] if node.args else None
            twin = getattr(torch.ops.aten, target._opname.removesuffix("_"), None)
            if (
                target._opname.endswith("_")
                and isinstance(written, fx.Node)
                and all(position[user] <= position[node] for user in written.users)
                and target._overloadname in (twin.overloads() if twin is not None else ())
            ):
                node.target = getattr(twin, target._overloadname)

    def _depends(self) -> set[str]:
        found = {self.input.name}
        for node in self.recorded.graph.nodes:
            if any(n.name in found for n in node.all_input_nodes):
                found.add(node.name)
        return found

    def _last_use(self) -> dict[str, list[str]]:
        """For every node, the values that nothing after it needs."""
        last: dict[str, str] = {}
        for node in self.nodes:
            for used in node.all_input_nodes:
                last[used.name] = node.name
        freed: dict[str, list[str]] = {}
        for name, node_name in last.items():
            freed.setdefault(node_name, []).append(name)
        return freed


_INDEXING = tuple(
    getattr(torch.ops.aten, name).default if name != "index" else torch.ops.aten.index.Tensor
    for name in ("index", "index_put", "index_put_", "_unsafe_index")
    if hasattr(torch.ops.aten, name) and (name == "index" or "default" in getattr(torch.ops.aten, name).overloads())
)
_MASKS = (torch.bool, torch.uint8)


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
