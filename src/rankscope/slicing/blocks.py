"""The default cut points of any network: stem, each repeated block, pooled features, logits.

Only true cuts are chosen, so exact rank has to fall along them. Walking down from the root, a module is kept whole (a
block) when information branches inside it, or when it is a compound member of a repeated container; otherwise its
children are visited. Of the plain modules before the first block only the last is kept (the stem), between blocks the
last of each run (a transition), after the last block the last two (pooled features and logits).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rankscope.slicing.module_calls import ModuleCall, Trace

__all__ = ["default_blocks"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class _Entry:
    call: ModuleCall
    block: bool


def default_blocks(model: nn.Module, trace: Trace) -> list[ModuleCall]:
    """The calls that ``cut_points="blocks"`` stands for, in depth order.

    In a network without any block every plain module that passes all information is a cut point. The network's output
    is the last, under the name of the module that returned it where that is one of the others.
    """
    modules = dict(model.named_modules())
    calls = [c for c in trace.calls if not c.of_network]
    cuts = [c for c in calls if c.true_cut]
    by_name = {c.key.module: c for c in calls}
    entries = _Walk(modules, cuts, by_name).expand("")
    chosen = [e.call for e in _thin(_distinct(entries))]
    if trace.output is None or trace.stands_for_output(chosen):
        return chosen
    return [*chosen, trace.output]


class _Walk:
    def __init__(self, modules: dict[str, nn.Module], cuts: list[ModuleCall], called: dict[str, ModuleCall]) -> None:
        self.modules, self.cuts, self.called = modules, cuts, called
        self.first_name = {module: name for name, module in modules.items()}
        self.order = {c.name: i for i, c in enumerate(cuts)}

    def _children(self, name: str) -> list[str]:
        # a module that stands in several places goes by its first name, as in the trace
        return [self.first_name[child] for child in self.modules[name].children()]

    def _inside(self, name: str) -> list[ModuleCall]:
        return [c for key, c in self.called.items() if key.startswith(f"{name}.") and c.depends]

    def _repeated_kinds(self, name: str) -> set[str]:
        """Classes of which this module has two or more compound children that pass all information."""
        seen: set[str] = set()
        repeated: set[str] = set()
        for child in self._children(name):
            call = self.called.get(child)
            if (
                call is None
                or not call.true_cut
                or not self._compound(child)
                or isinstance(self.modules[child], _CONTAINERS)
            ):
                continue
            (repeated if call.kind in seen else seen).add(call.kind)
        return repeated

    def _compound(self, name: str) -> bool:
        """Whether a module holds two or more weight matrices: a block, not a convolution with its normalisation."""
        modules = self.modules[name].modules()
        weights = (p for m in modules for p in m.parameters(recurse=False) if p.ndim >= 2)
        return sum(1 for _ in weights) >= 2

    def _member(self, parent: str, child: str) -> bool:
        """Whether the child is one of a container's repeated blocks."""
        if not self._compound(child):
            return False
        if isinstance(self.modules[parent], _CONTAINERS):
            return parent != ""
        return self.called[child].kind in self._repeated_kinds(parent)

    def _holds_blocks(self, name: str) -> bool:
        """Whether a repeated container at or below this module has compound members that pass all information."""
        for inner in self.modules:
            if inner != name and not inner.startswith(f"{name}."):
                continue
            for child in self._children(inner):
                call = self.called.get(child)
                if call is not None and call.true_cut and self._member(inner, child):
                    return True
        return False

    def expand(self, name: str) -> list[_Entry]:
        found: list[_Entry] = []
        for child in self._children(name):
            calls = [c for c in self.cuts if c.key.module == child]
            if not calls:
                if child not in self.called or self._holds_blocks(child):
                    found += self.expand(child)
                continue
            if calls[0].leaf or len(calls) > 1:
                found += [_Entry(c, False) for c in calls]
            elif self._holds_blocks(child):
                found += self.expand(child)
            else:
                branches = any(not c.true_cut for c in self._inside(child))
                if branches or self._member(name, child):
                    found.append(_Entry(calls[0], True))
                else:
                    found += self.expand(child) or [_Entry(calls[0], False)]
        return sorted(found, key=lambda e: self.order[e.call.name])


def _distinct(entries: list[_Entry]) -> list[_Entry]:
    """Of entries that returned the very same tensor, the first block, else the first."""
    kept: dict[int, _Entry] = {}
    for entry in entries:
        present = kept.get(entry.call.node)
        if present is None or (entry.block and not present.block):
            kept[entry.call.node] = entry
    return [e for e in entries if kept[e.call.node] is e]


def _thin(entries: list[_Entry]) -> list[_Entry]:
    places = [i for i, e in enumerate(entries) if e.block]
    if not places:
        return entries
    kept = []
    for i, entry in enumerate(entries):
        last_of_run = i + 1 == len(entries) or entries[i + 1].block
        trailing = i > places[-1] and i >= len(entries) - 2
        if entry.block or last_of_run or trailing:
            kept.append(entry)
    return kept
