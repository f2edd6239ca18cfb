"""One forward pass that lists every module call and the network's own output, and says which of them are true cuts.

A cut point is a true cut when all information from the input to the network's outputs passes through it: setting its
tangent to zero makes every output's tangent zero. Autograd's graph tells (``paths``).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import ModelError
from rankscope.slicing.capture import OUTPUT, CallKey, capture
from rankscope.slicing.grad_mode import StaysOn, recording_through
from rankscope.slicing.guard import measuring
from rankscope.slicing.members import Path, every_member, members, objects, real
from rankscope.slicing.mixing import MixingGraph, Stretch, mixing_before
from rankscope.slicing.one_sample import call_failed
from rankscope.slicing.paths import Paths, Place
from rankscope.slicing.same import version_of
from rankscope.slicing.sample import Sample, call_model

__all__ = ["ModuleCall", "Trace", "trace"]


@dataclass(frozen=True)
class ModuleCall:
    """One call of one module, or one of the tensors that it returned, or the network's own output.

    ``name`` is the dotted module name, with ``#k`` (k from 1) where the module is called several times, and with the
    tensor's path (``lstm.0``) where one of several tensors is meant.
    ``node`` identifies what it returned: two calls with one ``node`` returned the very same tensors.
    ``mixing`` has one bit for every operation before its output that mixes features (matrix product, convolution, …);
    ``always`` those of them that all ways from the input to this output pass through.
    ``tensors`` are the paths of what it returned, where that was more than one tensor; ``left_out`` what else it
    returned that is not measured. ``part`` is the path of the one tensor that is meant, where there are several.
    ``complex``: its rows are real and imaginary parts.
    """

    name: str
    key: CallKey
    kind: str
    shape: tuple[int, ...]
    true_cut: bool
    depends: bool
    leaf: bool
    node: int
    mixing: int = 0
    always: int = 0
    tensors: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    part: Path = ""
    complex: bool = False

    @property
    def of_network(self) -> bool:
        """Whether it is the network's own output, or one of several outputs."""
        return self.key.of_network

    @property
    def bare(self) -> str:
        """Its name without the number of the call: that of the module, or of a tensor that the module returns."""
        return self._module + self._rest

    @property
    def numbered(self) -> str:
        """Its name with the number of the call, also where the module is called once."""
        return self.name if self.of_network else f"{self._module}#{self.key.call + 1}{self._rest}"

    @property
    def _module(self) -> str:
        return self.name if self.of_network else self.key.module

    @property
    def _rest(self) -> str:
        return self.name.removeprefix(self._module).removeprefix(f"#{self.key.call + 1}")


@dataclass(frozen=True)
class Trace:
    """All module calls of one forward pass, in the order in which the modules returned, and the network's output."""

    calls: tuple[ModuleCall, ...]
    """What ``"all"`` stands for. A module of whose several tensors only one is used further stands here as that tensor.
    The network's output stands here where no module returned the very same tensor."""

    model: str
    input_shape: tuple[int, ...]
    structured: bool
    """Whether autograd's graph was there to tell true cuts; without it ``true_cut`` is False everywhere."""

    sizes: tuple[tuple[int, int], ...] = ()
    """By bit of ``ModuleCall.mixing``: how many values enter and leave the operation."""

    nameable: tuple[ModuleCall, ...] = ()
    """Everything that can be asked for by name, in depth order: ``calls``, each tensor of several, and the output."""

    output: ModuleCall | None = None
    """All outputs of the network together."""

    through: bool = False
    """Whether the model turns gradients off inside, so that reverse mode has to leave them on to be right."""

    called: frozenset[tuple[str, int]] = frozenset()
    """Every call that was made, as (module, number of the call), also of what returned nothing that can be measured."""

    def mixes(self, calls: Sequence[ModuleCall]) -> list[Stretch]:
        """For each of some calls in depth order: what mixes features between the last true cut of them and it.

        Where no true cut is known the last call counts instead.
        """
        found, before = [], 0
        for call in calls:
            found.append(self._stretch(call.mixing & ~before, call.always))
            if call.true_cut or not self.structured:
                before = call.mixing
        return found

    def _stretch(self, between: int, always: int) -> Stretch:
        chain = self.structured and between & ~always == 0
        sizes = tuple(size for k, size in enumerate(self.sizes) if chain and between >> k & 1)
        return Stretch(between.bit_count(), sizes)

    def by_name(self, name: str) -> list[ModuleCall]:
        """Every call of one module, or the one call, tensor or output of that name.

        ``layer#1`` is the first call also where it is the only one: another sample may make more.
        """
        everything = self.nameable or self.calls
        one = [c for c in everything if c.name == name]
        return one or [c for c in everything if name in (c.numbered, c.bare)]

    def stands_for_output(self, calls: Iterable[ModuleCall]) -> ModuleCall | None:
        """Of some calls the last that returned the very tensors that the network returns."""
        if self.output is None:
            return None
        same = [c for c in calls if c.name == self.output.name or c.node == self.output.node]
        return same[-1] if same else None


@dataclass
class _Returned:
    """One tensor that a module returned, without holding it."""

    shape: tuple[int, ...]
    place: Place | None
    version: int
    complex: bool
    tensor: weakref.ref[Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> _Returned:
        place = None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)
        return cls(tuple(real(tensor).shape), place, version_of(tensor), tensor.is_complex(), weakref.ref(tensor))

    def same(self, other: _Returned) -> bool:
        if self.place is not None or other.place is not None:
            return self.place == other.place
        mine = self.tensor()
        return mine is not None and mine is other.tensor() and self.version == other.version


@dataclass
class _Call:
    """What one call returned: tensors by path (each tensor once), and what cannot be looked into."""

    module: nn.Module
    returned: dict[Path, _Returned]
    records: dict[Path, _Returned]
    objects: dict[Path, str]

    @classmethod
    def of(cls, module: nn.Module, output: Any) -> _Call:
        results = members(output)
        made: dict[Path, _Returned] = {}
        records: dict[Path, _Returned] = {}
        outside = objects(output)
        for path, tensor in every_member(output).items():
            if tensor.is_meta or tensor.is_nested:  # a nested one has no shape
                outside[path] = "tensor on the meta device" if tensor.is_meta else "nested tensor"
                continue
            one = _Returned.of(tensor)
            into = made if path in results else records
            if not any(one.same(other) for other in made.values()):
                into[path] = one
        return cls(module, made, records, outside)


class _Run:
    """One forward pass and what its calls returned."""

    def __init__(self, model: nn.Module, sample: Sample, *, mode: StaysOn | None = None) -> None:
        self.calls: dict[tuple[str, int], _Call] = {}

        def take(key: tuple[str, int], module: nn.Module, output: Any) -> bool:
            self.calls[key] = _Call.of(module, output)
            return True

        leaf = sample.x.detach().clone()
        with torch.inference_mode(False), torch.enable_grad(), recording_through(model, mode):
            self.leaf = leaf.clone().requires_grad_()
            with capture(model, None, take):
                try:
                    # × 1: an in-place operation on a leaf would be refused
                    self.made = call_model(model, sample, self.leaf * 1)
                except Exception as error:
                    what = f"{type(model).__name__} failed on an input of shape {tuple(leaf.shape)}"
                    raise call_failed(model, what, sample, error) from error
            self.output = _Call.of(model, self.made)
        self.through = mode is not None and mode.needed
        self.complete = mode is not None
        """Whether what the graph does not hold has no derivative."""
        if not self.output.returned:
            raise ModelError(_nothing(model, self.output))
        self.paths = Paths([r.place for r in self.output.returned.values() if r.place is not None], self.leaf)


def trace(model: nn.Module, sample: Sample) -> Trace:
    """Run the model once on one sample and describe every module call and the network's output.

    Gradients stay on where the model turns them off (``torch.no_grad``): that changes nothing that it computes, and its
    function has a derivative all the same.

    Raises
    ------
    ModelError
        When the forward pass fails; the message holds the model's own words.
    """
    with measuring(model, sample.x.device):
        try:
            run = _Run(model, sample, mode=StaysOn())
        except ModelError:
            run = None
        if run is not None:
            return _Described(model, sample, run).trace()
    # it fails of itself, or it writes into weights, which gradients would not let it
    with measuring(model, sample.x.device):
        return _Described(model, sample, _Run(model, sample)).trace()


class _Described:
    """From what one pass returned to ``ModuleCall``s."""

    def __init__(self, model: nn.Module, sample: Sample, run: _Run) -> None:
        self.model, self.sample, self.run, self.paths = model, sample, run, run.paths
        self.structured = bool(run.paths)
        self.known = run.complete or self.structured
        everything = [*run.calls.values(), run.output]
        places = [r.place for c in everything for r in (*c.returned.values(), *c.records.values())]
        self.graph = mixing_before([p[0] for p in places if p], run.leaf) if self.known else MixingGraph()
        self.modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
        self.groups: list[list[_Returned]] = []
        self.numbers: dict[tuple[Place | None, ...], int] = {}
        self.calls: list[ModuleCall] = []
        self.nameable: list[ModuleCall] = []

    def trace(self) -> Trace:
        counts: dict[str, int] = {}
        for name, _ in self.run.calls:
            counts[name] = counts.get(name, 0) + 1
        for (module, index), call in self.run.calls.items():
            if call.returned:
                name = module if counts[module] == 1 else f"{module}#{index + 1}"
                self._add(name, CallKey(module, index), call)
        output = self._add_output()
        return Trace(
            tuple(self.calls),
            type(self.model).__name__,
            tuple(self.sample.x.shape[1:]),
            self.structured,
            tuple(self.graph.sizes),
            tuple(self.nameable),
            output,
            through=self.run.through,
            called=frozenset(self.run.calls),
        )

    def _add(self, name: str, key: CallKey, call: _Call) -> None:
        parts = self._parts(name, key, call)
        whole = self._whole(name, key, call)
        self.nameable += [*parts, whole]
        live = [p for p, r in call.returned.items() if self._depends(r)]
        used = [p for p in live if self._passes_on(call.returned[p])]
        if self.structured and len(live) > 1 and len(used) == 1:  # the rest of the network takes this one alone
            self.calls += [c for c in parts if c.part == used[0]]
        else:
            self.calls.append(whole)

    def _add_output(self) -> ModuleCall:
        called = {c.key.module for c in self.calls}
        name = f"network:{OUTPUT}" if OUTPUT in called | self.modules else OUTPUT
        key, call = CallKey(OUTPUT, -1), self.run.output
        listed = {c.node for c in self.calls}
        parts = self._parts(name, key, call)
        whole = self._whole(name, key, call)
        self.nameable += [*parts, whole]
        if whole.node not in listed:
            # a record of the inside is no output, and what a module returned stands there under its name
            self.calls += [c for c in parts if c.part in call.returned and c.node not in listed]
            self.calls.append(whole)
        return whole

    def _whole(self, name: str, key: CallKey, call: _Call) -> ModuleCall:
        several = tuple(call.returned) if len(call.returned) > 1 else ()
        left = tuple(f"{path} ({kind})" if path else kind for path, kind in call.objects.items())
        left += tuple(call.records)
        if set(call.returned) != {""}:
            key = key._replace(parts=tuple(call.returned))
        return self._call(name, key, call.module, list(call.returned.values()), several, left)

    def _parts(self, name: str, key: CallKey, call: _Call) -> list[ModuleCall]:
        """Each of several tensors; a module's name comes before a tensor's."""
        every = call.returned | call.records
        if len(every) < 2:
            return []
        return [
            self._call(
                f"{name}.{path}" if f"{name}.{path}" not in self.modules else f"{name}:{path}",
                key._replace(parts=(path,)),
                call.module,
                [made],
                part=path,
            )
            for path, made in every.items()
        ]

    def _call(
        self,
        name: str,
        key: CallKey,
        module: nn.Module,
        returned: list[_Returned],
        tensors: tuple[Path, ...] = (),
        left_out: tuple[str, ...] = (),
        part: Path = "",
    ) -> ModuleCall:
        places = [r.place for r in returned if r.place is not None]
        mixing, always = 0, -1
        for node in (p[0] for p in places if p[0] in self.graph.some):
            mixing |= self.graph.some[node]
            always &= self.graph.every[node]
        return ModuleCall(
            name=name,
            key=key,
            kind=type(module).__name__,
            shape=_shape([r.shape for r in returned]),
            true_cut=self.structured and self.paths.is_cut(places),
            depends=any(self._depends(r) for r in returned),
            # what follows the last module is a layer of no size of its own
            leaf=key.of_network or next(module.children(), None) is None,
            node=self._number(returned),
            mixing=mixing if self.structured else _weights_up_to(self.calls, module),
            always=max(always, 0),
            tensors=tensors,
            left_out=left_out,
            part=part,
            complex=any(r.complex for r in returned),
        )

    def _depends(self, made: _Returned) -> bool:
        return not self.known or (made.place is not None and made.place[0] in self.graph.some)

    def _passes_on(self, made: _Returned) -> bool:
        return made.place is not None and self.paths.passes_on(made.place)

    def _number(self, returned: list[_Returned]) -> int:
        places = tuple(r.place for r in returned)
        if None not in places:
            return self.numbers.setdefault(places, len(self.numbers))
        for number, group in enumerate(self.groups):  # without a graph, numbers from −1 down
            if len(group) == len(returned) and all(a.same(b) for a, b in zip(group, returned, strict=True)):
                return -1 - number
        self.groups.append(returned)
        return -len(self.groups)


def _shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Several tensors together: how many values for each sample, where the first dimension counts samples in all."""
    if len(shapes) == 1:
        return shapes[0]
    total = sum(torch.Size(s).numel() for s in shapes)
    return (1, total) if all(s[:1] == (1,) for s in shapes) else (total,)


def _nothing(model: nn.Module, output: _Call) -> str:
    name = type(model).__name__
    if output.objects:
        path, kind = next(iter(output.objects.items()))
        where = f" at {path!r}" if path else ""
        return (
            f"return tensors with values from {name}, alone or in a tuple, list, dict, named tuple or dataclass; it "
            f"returned a {kind}{where}"
        )
    return f"{name} returned no floating-point tensor; there is nothing to measure"


def _weights_up_to(before: list[ModuleCall], module: nn.Module) -> int:
    """Where no graph tells: one bit for every call so far of a module that holds a weight matrix of its own."""
    own = any(p.ndim >= 2 for p in module.parameters(recurse=False))
    earlier = before[-1].mixing if before else 0
    return earlier | (1 << len(before) if own else 0)
