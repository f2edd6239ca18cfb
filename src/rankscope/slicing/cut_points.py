"""From what the user asks for to module calls, and the table of everything that can be asked for."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from rankscope._base.checks import refuse_unused
from rankscope._base.errors import CutPointError, nearest, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.records import Record
from rankscope._base.text import counted, one_line
from rankscope.slicing.blocks import default_blocks
from rankscope.slicing.example import example_sample
from rankscope.slicing.guard import mode_facts
from rankscope.slicing.module_calls import ModuleCall, Trace
from rankscope.slicing.one_sample import naming_the_batch
from rankscope.slicing.paper_networks import paper_cut_points
from rankscope.slicing.reader import read_samples
from rankscope.slicing.trace import trace
from rankscope.slicing.values import is_array
from rankscope.slicing.wrapped import unwrapped
from rankscope.views.bars_figure import plot_bars
from rankscope.views.noted import Noted
from rankscope.views.sentences import note

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = [
    "CUT_POINT_WORDS",
    "CutPointsLike",
    "LayerTable",
    "NeverCalledError",
    "check_names",
    "layers",
    "on_this_path",
    "select",
]

CutPointsLike: TypeAlias = str | Sequence[str]
CUT_POINT_WORDS = ("blocks", "paper", "reference", "all")
"""What chooses cut points without naming a layer."""


def check_names(wanted: Any) -> None:
    """Refuse what is neither one name or glob nor several: ``CutPointError``.

    >>> check_names("blocks"), check_names(["0", "layer*"])
    (None, None)
    """
    several = isinstance(wanted, Iterable) and not isinstance(wanted, bytes | Iterator)
    if not isinstance(wanted, str) and not (several and all(isinstance(name, str) for name in wanted)):
        raise CutPointError(
            f"cut_points is {one_line(wanted)}; give 'blocks', 'paper', 'reference', 'all', a name, a glob, or a "
            "list of these"
        )


class NeverCalledError(CutPointError):
    """One sample calls nothing of this name; another may."""


def on_this_path(model: nn.Module, found: Trace, wanted: CutPointsLike) -> tuple[list[ModuleCall], tuple[str, ...]]:
    """``select`` of what one sample calls, and the names under which only another sample may call anything.

    Raises
    ------
    CutPointError
        For a name that nothing can have.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> net.add_module("spare", nn.Identity())
    >>> net.forward = lambda x: net[0](x)
    >>> calls, waiting = on_this_path(net, trace(net, example_sample(net, torch.ones(1, 2))), ["0", "spare"])
    >>> [call.name for call in calls], waiting
    (['0'], ('spare',))
    """
    check_names(wanted)
    if wanted in CUT_POINT_WORDS:
        return select(model, found, wanted), ()
    present, waiting = [], []
    for name in [wanted] if isinstance(wanted, str) else list(wanted):
        try:
            _match(model, found, name)
        except NeverCalledError:
            waiting.append(name)
        else:
            present.append(name)
    return select(model, found, present) if present or not waiting else [], tuple(waiting)


def select(model: nn.Module, found: Trace, wanted: CutPointsLike) -> list[ModuleCall]:
    """The calls that ``cut_points=`` names, in depth order.

    ``"blocks"``, ``"paper"``, ``"reference"`` (the layers of the paper's code: of a ResNet from the max-pooling to the
    logits), ``"all"`` (every call and the output), ``"output"`` (what the network returns), a dotted name, a glob over
    dotted names, or a list of these. A module called several times stands for all its calls; ``name#2`` is its second,
    and a glob with ``#`` in it chooses calls by number. What returns several tensors stands for all of them together;
    ``name.path`` is one of them: ``lstm.0``, ``output.logits``. Where a module has that name too, the module is meant,
    and ``name:path`` or ``network:output`` the tensor.

    Raises
    ------
    CutPointError
        For a name that no module has (with the nearest), and for one that is never called.
    """
    check_names(wanted)
    if wanted == "blocks":
        return default_blocks(model, found)
    if wanted in ("paper", "reference"):
        return paper_cut_points(found, code=wanted == "reference")
    if wanted == "all":
        return list(found.calls)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if not names:
        raise CutPointError("cut_points is empty; give 'blocks', 'paper', dotted names or a glob")
    picked: dict[str, ModuleCall] = {}
    for name in names:
        for call in _match(model, found, name):
            picked[call.name] = call
    chosen = [c for c in found.nameable or found.calls if c.name in picked]
    others = [c for c in chosen if c is not found.output]
    # the output that a chosen module returned is there already, under that module's name
    return others if len(others) < len(chosen) and found.stands_for_output(others) else chosen


def _match(model: nn.Module, found: Trace, name: str) -> list[ModuleCall]:
    exact = found.by_name(name) or found.by_name(name.removeprefix("network:"))
    if not exact and ":" in name:  # lstm:0 is lstm.0 where no module is called that
        exact = [c for c in found.by_name(name.removeprefix("network:").replace(":", ".")) if c.part]
    if exact:
        return exact
    if any(ch in name for ch in "*?["):
        everything = [c for c in found.nameable or found.calls if _matches(c, name)]
        listed = [c for c in everything if c in found.calls]
        if everything:  # of tensors that already stand in the list under another name, only if nothing else is meant
            return listed if any(not c.of_network for c in listed) else everything
        never = f"no called module matches {name!r}; {nearest(name, [c.name for c in found.calls])}"
        others = (k for k, m in model.named_modules() if k and _can_be_called(m))
        raise NeverCalledError(never) if fnmatch.filter(others, name) else CutPointError(never)
    modules = dict(model.named_modules(remove_duplicate=False))
    if name in modules:
        same = next((k for k, m in model.named_modules() if m is modules[name] and k != name), None)
        if same and found.by_name(same):
            return found.by_name(same)
        raise (NeverCalledError if _can_be_called(modules[name]) else CutPointError)(
            f"module {name!r} is never called in a forward pass, or returns no floating-point tensor; "
            f"choose one that {parameter('rs.layers(model)')} lists"
        )
    names = [c.name for c in found.nameable or found.calls] + list(CUT_POINT_WORDS)
    raise (NeverCalledError if _of_another_path(modules, found, name) else CutPointError)(
        f"there is no module {name!r}; {nearest(name, names)}"
    )


def _matches(call: ModuleCall, glob: str) -> bool:
    """A glob with ``#`` speaks of calls by number, any other of modules with all their calls.

    So what it chooses of one sample does not depend on how often that sample calls a module.
    """
    return fnmatch.fnmatchcase(call.numbered if "#" in glob else call.bare, glob)


def _can_be_called(module: nn.Module) -> bool:
    """Whether a module has a forward pass of its own, which a list of modules has not."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _of_another_path(modules: dict[str, nn.Module], found: Trace, name: str) -> bool:
    """Whether a name is that of a further call of a module, or of a tensor of one that was not called."""
    base, mark, number = name.rpartition("#")
    if mark and number.isdecimal() and base in modules:
        return int(number) > 0 and _can_be_called(modules[base])
    ends = [i for i, letter in enumerate(name) if letter in ".:" and name[:i] in modules]
    if not ends:
        return False
    owner = name[: ends[-1]]
    return _can_be_called(modules[owner]) and owner not in {module for module, _ in found.called}


@dataclass(frozen=True, eq=False, repr=False)
class LayerTable(Noted, Record):
    """Every module call of a model that can be a cut point, in depth order, and its output. Prints as a table.

    Attributes
    ----------
    calls : tuple of ModuleCall
        Name, class, output shape (with the batch dimension), whether it is a true cut, whether it depends on the input.
    default : tuple of str
        The names that ``cut_points="blocks"`` chooses.
    output : str
        The name under which the network's own output stands here: ``"output"``, or the module that returned it last.
    facts : tuple of Fact
        How the input was read, and the mode that the model came in; ``notes`` are their sentences.
    """

    calls: tuple[ModuleCall, ...]
    default: tuple[str, ...]
    model: str
    output: str = ""
    facts: tuple[Fact, ...] = ()

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Any:
        return iter(self.calls)

    def only(self, *globs: str, true_cuts: bool = False) -> LayerTable:
        """The calls whose names match any of the globs (default: all), and that are true cuts if asked for.

        Raises ``CutPointError`` for a glob that matches no call.

        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
        >>> [call.name for call in layers(net).only("[1-9]", true_cuts=True)]
        ['1']
        """
        for glob in globs:
            if not any(_matches(c, glob) for c in self.calls):
                raise CutPointError(f"no layer matches {glob!r}; {nearest(glob, [c.name for c in self.calls])}")
        kept = tuple(
            call
            for call in self.calls
            if (call.true_cut or not true_cuts) and (not globs or any(_matches(call, glob) for glob in globs))
        )
        names = {call.name for call in kept}
        return replace(self, calls=kept, default=tuple(name for name in self.default if name in names))

    def table(self) -> pd.DataFrame:
        """One row a call: ``name``, ``kind``, ``shape``, ``true_cut``, ``depends``, ``default``."""
        import pandas as pd

        chosen = set(self.default)
        rows = [(c.name, c.kind, c.shape, c.true_cut, c.depends, c.name in chosen) for c in self.calls]
        return pd.DataFrame(rows, columns=["name", "kind", "shape", "true_cut", "depends", "default"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = self.table().to_dict("records")
        about = {"schema_version": self.schema_version, "kind": self.kind_name(), "model": self.model}
        return {**about, "layers": [{**r, "shape": list(r["shape"])} for r in rows], "notes": list(self.notes)}

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Numbers in every output, without the batch dimension, on a logarithmic scale."""
        sizes = [math.prod(c.shape[1:]) for c in self.calls]
        names = [c.name for c in self.calls]
        return plot_bars(names, sizes, quantity="outputs", title=self.model, log=True, ax=ax)

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table

    def __str__(self) -> str:
        width = max([len(one_line(c.name)) for c in self.calls] + [5])
        lines = [f"{'layer':<{width}}  {'module':<22} {'output':<20} cut"]
        chosen = set(self.default)
        for c in self.calls:
            cut = "true cut" if c.true_cut else "in a branch" if c.depends else "independent of the input"
            mark = "  *" if c.name in chosen else ""
            shape = "×".join(map(str, c.shape[1:])) or ("scalar" if not c.shape else str(c.shape[0]))
            lines.append(f"{one_line(c.name):<{width}}  {one_line(c.kind):<22} {shape:<20} {cut}{mark}")
            if c.tensors:
                lines[-1] += f"  ({len(c.tensors)} tensors: {', '.join(c.tensors)})"
        same = f"; output = {self.output}" if self.output not in ("", "output") else ""
        lines.append(f"{counted(len(self.calls), 'call')}; * = cut points of 'blocks' ({len(self.default)}){same}")
        lines += map(note, self.facts)
        return "\n".join(lines)


def layers(
    model: nn.Module,
    inputs: Any = None,
    *,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
) -> LayerTable:
    """Every module call that can be a cut point and the network's output, with its shape and whether it is a true cut.

    Runs one forward pass, on the first of ``inputs`` or on an example of the model's input shape. ``inputs``,
    ``differentiate``, ``shared`` and ``per_sample`` are those of ``jacobian_rank``.

    Raises
    ------
    ModelError
        When the forward pass fails.
    UsageError
        When no input is given and the model's input shape is not known.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    >>> [call.name for call in layers(net)]
    ['0', '1']
    """
    model, _, facts = unwrapped(model, ())
    facts += mode_facts(model)
    if inputs is None:
        told = {"differentiate": differentiate, "shared": shared, "per_sample": per_sample}
        refuse_unused({k: v for k, v in told.items() if v}, "without inputs")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if inputs is None:
        sample = example_sample(model)
    else:
        samples = read_samples(
            model, inputs, limit=1, differentiate=differentiate, shared=shared, per_sample=per_sample
        )
        sample = next(samples)
        facts += samples.facts(FactKind.COUNTED)
    with naming_the_batch(inputs.shape if is_array(inputs) else None):
        found = trace(model, sample.to(device, dtype))
    try:
        default = tuple(c.name for c in default_blocks(model, found))
    except KeyError:  # a model that changes its own modules while it runs
        default = ()
    output = found.stands_for_output(found.calls)
    return LayerTable(found.calls, default, found.model, "" if output is None else output.name, tuple(facts))
