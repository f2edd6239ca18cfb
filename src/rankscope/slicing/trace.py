"""One forward pass that lists every module call and the network's own output, and says which of them are true cuts.

A cut point is a true cut when all information from the input to the network's outputs passes through it: setting its
tangent to zero makes every output's tangent zero. Autograd's graph tells (``paths``).
"""

from __future__ import annotations

import torch
from torch import nn

from rankscope._base.errors import ModelError
from rankscope.slicing.capture import OUTPUT, CallKey
from rankscope.slicing.grad_mode import StaysOn
from rankscope.slicing.guard import measuring
from rankscope.slicing.members import Path
from rankscope.slicing.mixing import MixingGraph, mixing_before
from rankscope.slicing.module_calls import ModuleCall, Trace
from rankscope.slicing.paths import Place
from rankscope.slicing.returned import CallResult, Returned, Run
from rankscope.slicing.sample import Sample

__all__ = ["trace"]


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
            run = Run(model, sample, mode=StaysOn())
        except ModelError:
            run = None
        if run is not None:
            return _Described(model, sample, run).trace()
    # it fails of itself, or it writes into weights, which gradients would not let it
    with measuring(model, sample.x.device):
        return _Described(model, sample, Run(model, sample)).trace()


class _Described:
    """From what one pass returned to ``ModuleCall``s."""

    def __init__(self, model: nn.Module, sample: Sample, run: Run) -> None:
        self.model, self.sample, self.run, self.paths = model, sample, run, run.paths
        self.structured = bool(run.paths)
        self.known = run.complete or self.structured
        everything = [*run.calls.values(), run.output]
        places = [r.place for c in everything for r in (*c.returned.values(), *c.records.values())]
        self.graph = mixing_before([p[0] for p in places if p], run.leaf) if self.known else MixingGraph()
        self.modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
        self.groups: list[list[Returned]] = []
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

    def _add(self, name: str, key: CallKey, call: CallResult) -> None:
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

    def _whole(self, name: str, key: CallKey, call: CallResult) -> ModuleCall:
        several = tuple(call.returned) if len(call.returned) > 1 else ()
        left = tuple(f"{path} ({kind})" if path else kind for path, kind in call.objects.items())
        left += tuple(call.records)
        if set(call.returned) != {""}:
            key = key._replace(parts=tuple(call.returned))
        return self._call(name, key, call.module, list(call.returned.values()), several, left)

    def _parts(self, name: str, key: CallKey, call: CallResult) -> list[ModuleCall]:
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
        returned: list[Returned],
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

    def _depends(self, made: Returned) -> bool:
        return not self.known or (made.place is not None and made.place[0] in self.graph.some)

    def _passes_on(self, made: Returned) -> bool:
        return made.place is not None and self.paths.passes_on(made.place)

    def _number(self, returned: list[Returned]) -> int:
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


def _weights_up_to(before: list[ModuleCall], module: nn.Module) -> int:
    """Where no graph tells: one bit for every call so far of a module that holds a weight matrix of its own."""
    own = any(p.ndim >= 2 for p in module.parameters(recurse=False))
    earlier = before[-1].mixing if before else 0
    return earlier | (1 << len(before) if own else 0)
