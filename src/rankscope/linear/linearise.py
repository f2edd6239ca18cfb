"""A network's forward-mode derivative at one input as a list of plain tensor operations.

Pushing tangents through ``vmap(jvp)`` computes every nonlinearity's derivative again for each tangent, dispatches each
operator through two layers of transforms, and runs normalisation as a dozen element-wise passes. At a fixed input the
derivative is linear with constant coefficients: here the network is traced once into operators, each operator's
coefficients are computed once an image, and a chunk of tangents then costs about one batched forward pass.

Rules for the common operators stand in ``rules``; every other operator goes through ``vmap(jvp)`` by itself. The result
is compared with the plain path on the first image, and the float64 certificate, which uses the plain path, covers it
on every image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from rankscope.linear.folding import fold_normalisation
from rankscope.linear.graphs import record
from rankscope.linear.methods import METHODS, Method
from rankscope.linear.rules import Push, rule_for
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample

__all__ = ["Linearised", "TracedNetwork", "same_call"]


@dataclass
class _Step:
    """One operator's tangent rule: which tangents it takes, what may be freed after it."""

    name: str
    push: Push
    takes: tuple[str, ...]
    last: tuple[str, ...]


class _Detached(TorchFunctionMode):
    """Whether the code that runs inside takes a tensor out of the computation, by whatever name."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func in _DETACHING
        return func(*args, **(kwargs or {}))


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
        runner.rows = [None] * len(runner.keys)

        def run(x: Tensor) -> tuple[Tensor, ...]:
            return runner.outputs(sample, x)

        # values of constants may be read (a mask that is all ones, say); values of the input are refused below
        with _Detached() as detached:
            self.module = make_fx(functionalize(run, remove="mutations"), _error_on_data_dependent_ops=False)(sample.x)
        self._refuse_read_values(detached=detached.found)
        if any(_writes(n.target) for n in self._nodes("call_function")):
            # written by an operator's own decomposition, which ran below the first pass
            self.module = make_fx(functionalize(self.module, remove="mutations"), _error_on_data_dependent_ops=False)(
                sample.x
            )
        self._replace_in_place()
        self.module.graph.eliminate_dead_code()
        self.constants = {n.name: _attribute(self.module, str(n.target)) for n in self._nodes("get_attr")}
        self.nodes = list(self.module.graph.nodes)
        written = [n for n in self._nodes("call_function") if _writes(n.target)]
        if written:  # the rules never look at what an operator writes into its arguments
            raise NotImplementedError(f"{written[0].target} stays in place after functionalisation")
        self.outputs = [str(a) for a in next(n for n in self.nodes if n.op == "output").args[0]]
        self.depends = self._depends()
        self.folded = fold_normalisation(self.nodes, self.constants, self.depends)
        self.last_use = self._last_use()

    def _nodes(self, op: str) -> list[fx.Node]:
        return [n for n in self.module.graph.nodes if n.op == op]

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
                raise NotImplementedError("the trace does not tell a detached value from a view of it (aten.alias)")
            if torch.Tag.data_dependent_output in tags:
                raise NotImplementedError(f"the model reads a value that depends on the input ({node.target})")
            # the tag stands at every indexing; only masks among the indices make a size
            index = node.target in _INDEXING
            masks = [
                n for n in read if n is not node.args[0] and _is_mask(n.meta.get("val", n.meta.get("tensor_meta")))
            ]
            if masks if index else torch.Tag.dynamic_output_shape in tags:
                raise NotImplementedError(f"the model makes a size that depends on the input ({node.target})")

    def _replace_in_place(self) -> None:
        """Composite operators (recurrent cells) write in place below functionalisation: take the functional twin.

        Only where nothing reads the overwritten value afterwards; what remains is seen when the paths are compared.
        """
        position = {n: i for i, n in enumerate(self.module.graph.nodes)}
        for node in self._nodes("call_function"):
            target = node.target
            if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
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
        for node in self.module.graph.nodes:
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

    def linearise(self, x: Tensor) -> tuple[list[_Step], tuple[Tensor, ...]]:
        """Run the network at ``x`` and keep, for each operator on the way, the coefficients of its derivative.

        With them come the outputs of the cut points.
        """
        values: dict[str, Any] = dict(self.constants)
        steps: list[_Step] = []
        found: dict[str, Tensor] = {n: values[n].reshape(-1) for n in self.outputs if n in values}
        for node in self.nodes:
            if node.op == "placeholder":
                values[node.name] = x
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n.name])
                out = node.target(*args, **kwargs)
                values[node.name] = out
                if node.name in self.depends:
                    takes = tuple(dict.fromkeys(n.name for n in node.all_input_nodes if n.name in self.depends))
                    push = self.folded.get(node.name) or rule_for(node, args, kwargs, out, self.depends)
                    freed = tuple(n for n in self.last_use.get(node.name, ()) if n not in self.outputs)
                    steps.append(_Step(node.name, push, takes, freed))
            if node.name in self.outputs:
                found[node.name] = values[node.name].reshape(-1)
            for name in self.last_use.get(node.name, ()):
                if name not in self.constants:
                    values.pop(name, None)
        return steps, tuple(found[n] for n in self.outputs)

    def push(self, steps: list[_Step], tangents: Tensor, take: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """Tangents (chunk, B, *shape) to ``take(i, tangent)`` of every output i."""
        values: dict[str, Any] = {self.input.name: tangents}
        found: dict[int, Tensor] = {}
        wanted: dict[str, list[int]] = {}
        for i, name in enumerate(self.outputs):
            wanted.setdefault(name, []).append(i)
        holders = _Holders()
        holders.add(tangents)
        holders.add(tangents)  # the caller's own reference: never written to
        for step in steps:
            taken = [values.get(n) for n in step.takes]
            reusable = {n for n, t in zip(step.takes, taken, strict=True) if n in step.last and holders.alone(t)}
            out = step.push(taken, [n in reusable for n in step.takes])
            for i in wanted.get(step.name, ()):
                if out is not None:
                    found[i] = take(i, out)
            for n in step.last:
                holders.remove(values.pop(n, None))
            if out is not None:
                values[step.name] = out
                holders.add(out)
        chunk = len(tangents)
        return [found[i] if i in found else tangents.new_zeros(chunk, 0) for i in range(len(self.outputs))]


class _Holders:
    """How many live values share each storage: only a value that is alone may be overwritten."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    @staticmethod
    def _places(value: Any) -> list[int]:
        members = value if isinstance(value, list | tuple) else [value]
        return [t.untyped_storage().data_ptr() for t in members if isinstance(t, Tensor)]

    def add(self, value: Any) -> None:
        for place in self._places(value):
            self.counts[place] = self.counts.get(place, 0) + 1

    def remove(self, value: Any) -> None:
        for place in self._places(value):
            self.counts[place] -= 1
            if self.counts[place] == 0:
                del self.counts[place]

    def alone(self, value: Any) -> bool:
        if not isinstance(value, Tensor):
            return False
        return self.counts.get(value.untyped_storage().data_ptr(), 0) == 1 and not _overlaps_itself(value)


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


_INDEXING = tuple(
    getattr(torch.ops.aten, name).default if name != "index" else torch.ops.aten.index.Tensor
    for name in ("index", "index_put", "index_put_", "_unsafe_index")
    if hasattr(torch.ops.aten, name) and (name == "index" or "default" in getattr(torch.ops.aten, name).overloads())
)


def _is_mask(value: Any) -> bool:
    return getattr(value, "dtype", None) in (torch.bool, torch.uint8)


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _attribute(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def same_call(a: Sample, b: Sample) -> bool:
    """Whether everything but the differentiated tensor is equal: the trace holds it as constants."""
    if a.extra is b.extra:
        return True
    if a.keyword != b.keyword or a.extra.keys() != b.extra.keys():
        return False
    return all(_same_value(a.extra[k], b.extra[k]) for k in a.extra)


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype and torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same_value(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same_value, left, right))
    return isinstance(left, bool | int | float | str | None) and bool(left == right)


class Linearised:
    """Stands in for a ``Method`` for one runner: traces on the first image, linearises once an image.

    On a GPU both steps are recorded as CUDA graphs, so that a further image costs no launches.
    """

    def __init__(self, runner: Runner, method: Method = METHODS[0], *, replay: bool = False) -> None:
        self.runner, self.method = runner, method
        self.replay = replay
        self._points: dict[tuple[int, ...], tuple[_AtPoint, Sample]] = {}
        self._point: _AtPoint | None = None
        self._at: Tensor | None = None

    def __call__(self, runner: Runner, sample: Sample, tangents: Tensor) -> tuple[Tensor, ...]:
        if self._at is not sample.x:
            self._at = None
            self._point = self._move_to(runner, sample)
            self._at = sample.x
        assert self._point is not None
        out = self._point.push(tangents, runner.rows)
        for key, rows, t in zip(runner.keys, runner.rows, out, strict=True):
            if t.shape[1] == 0 and rows is None:
                raise RuntimeError(f"no tangent reached {key[0]!r} in the traced network")
        return out

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Flat outputs of every cut point at the image that was asked for last."""
        assert self._point is not None
        return self._point.outputs

    def _move_to(self, runner: Runner, sample: Sample) -> _AtPoint:
        shape = tuple(sample.x.shape)
        known = self._points.get(shape)
        if known is not None and same_call(known[1], sample):
            known[0].move(sample.x)
            return known[0]
        rows = runner.rows
        with self.method.kernels():
            network = TracedNetwork(runner, sample)
        runner.rows = rows
        point = _AtPoint(network, sample.x, replay=self.replay)
        self._points[shape] = point, sample
        return point


class _AtPoint:
    """A traced network linearised at one image, and then at the next."""

    def __init__(self, network: TracedNetwork, x: Tensor, *, replay: bool) -> None:
        self.network = network
        self.replay = replay
        self.steps, self.outputs = network.linearise(x)
        self._x = x
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pushes: dict[Any, _RecordedPush] = {}
        if replay:
            self.pool = torch.cuda.graph_pool_handle()
            self._x = x.clone()
            try:
                self._graph, (self.steps, self.outputs) = record(lambda: network.linearise(self._x), self.pool)
                self._graph.replay()
            except RuntimeError:
                torch.cuda.synchronize()
                self.replay = False
                self.steps, self.outputs = network.linearise(x)

    def move(self, x: Tensor) -> None:
        if self._graph is not None and self.replay:
            self._x.copy_(x)
            self._graph.replay()
        else:
            self.steps, self.outputs = self.network.linearise(x)

    def push(self, tangents: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        if not self.replay:
            return self._push(tangents, rows)
        lengths = [None if r is None else len(r) for r in rows]
        key = (len(tangents), tuple(None if n is None else n > 0 for n in lengths))
        found = self._pushes.get(key)
        if found is None or not found.fits(lengths):
            self._pushes.pop(key, None)
            static, padded = tangents.clone(), [_padded(r) for r in rows]
            try:
                graph, out = record(lambda: self._push(static, padded), self.pool)
            except RuntimeError:
                torch.cuda.synchronize()
                self.replay = False
                return self._push(tangents, rows)
            found = self._pushes[key] = _RecordedPush(graph, static, padded, out)
        return found(tangents, rows, lengths)

    def _push(self, tangents: Tensor, rows: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        def take(i: int, tangent: Tensor) -> Tensor:
            chosen = rows[i]
            flat = tangent.reshape(len(tangent), -1)
            return flat.clone() if chosen is None else flat.index_select(1, chosen)

        images = self._x.shape[0]
        full = tangents[:, None].expand(-1, images, *tangents.shape[1:])
        return tuple(self.network.push(self.steps, full, take))


_SLACK = 1.06  # further images light up a few more rows than the first


def _padded(rows: Tensor | None) -> Tensor | None:
    if rows is None or len(rows) == 0:
        return rows
    out = rows.new_zeros(int(len(rows) * _SLACK) + 64)
    out[: len(rows)] = rows
    return out


@dataclass
class _RecordedPush:
    graph: torch.cuda.CUDAGraph
    tangents: Tensor
    rows: list[Tensor | None]
    outputs: tuple[Tensor, ...]

    def fits(self, lengths: Sequence[int | None]) -> bool:
        return all(n is None or r is None or n <= len(r) for n, r in zip(lengths, self.rows, strict=True))

    def __call__(
        self, tangents: Tensor, rows: Sequence[Tensor | None], lengths: Sequence[int | None]
    ) -> tuple[Tensor, ...]:
        self.tangents.copy_(tangents)
        for static, actual in zip(self.rows, rows, strict=True):
            if static is not None and actual is not None and len(actual):
                static[: len(actual)] = actual
        self.graph.replay()
        return tuple(o if n is None else o[:, :n] for o, n in zip(self.outputs, lengths, strict=True))
