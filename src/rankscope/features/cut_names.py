"""From what ``cut_points=`` says to dotted module names whose outputs a hook can keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from rankscope._base.errors import CutPointError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.hooks import inference
from rankscope.slicing import CutPointsLike, ModuleCall, Sample, Trace, check_names, on_this_path, select, trace
from rankscope.slicing.batches import dtype_of_inputs
from rankscope.slicing.calls import differentiable

__all__ = ["Chosen", "chosen_calls", "chosen_names", "cut_names", "is_plain", "layer_names", "not_called"]


def is_plain(model: nn.Module, wanted: CutPointsLike) -> bool:
    """Whether ``wanted`` is a list of names without globs or call numbers: no forward pass is needed to read it."""
    check_names(wanted)
    if isinstance(wanted, str):
        return wanted in dict(model.named_modules())
    return not any(set(name) & set("*?[#") for name in wanted)


def chosen_calls(model: nn.Module, x: torch.Tensor | Sample, wanted: CutPointsLike) -> list[ModuleCall]:
    """The calls that ``wanted`` names (as in ``jacobian_rank``), from one forward pass of the sample ``x`` (1, …).

    Raises
    ------
    CutPointError
        A name that no module has or calls, an earlier call of a module that is called several times, or inputs that
        are integers (tokens), of which there is no graph to read.
    """
    sample = _floating(model, x if isinstance(x, Sample) else Sample(x, "the first sample"))
    found = _traced(model, sample)
    return _last_calls(found, select(model, found, wanted))


def _floating(model: nn.Module, sample: Sample) -> Sample:
    sample = differentiable(model, sample)
    if not sample.x.is_floating_point():
        kind = sample.x.dtype
        raise CutPointError(f"blocks and globs are read off a graph that {kind} inputs do not have; name layers")
    return sample


def _traced(model: nn.Module, sample: Sample) -> Trace:
    with inference(model) as device:
        return trace(model, sample.to(device, dtype_of_inputs(model, sample.x)))


def _last_calls(found: Trace, calls: list[ModuleCall]) -> list[ModuleCall]:
    last: dict[str, int] = {}
    for call in found.calls:
        last[call.key.module] = max(call.key.call, last.get(call.key.module, -1))
    # a hook keeps the last output of a module: an earlier one cannot be meant by its number alone
    kept = [call for call in calls if call.of_network or call.key.call == last[call.key.module]]
    missing = {call.key.module for call in calls} - {call.key.module for call in kept}
    if missing:
        name = min(missing)
        number = f"{name}#{last[name] + 1}"
        raise CutPointError(f"{name!r} is called several times; features are those of its last call: {number}")
    return kept


def layer_names(model: nn.Module, call: ModuleCall) -> list[str]:
    """What a hook is asked for: the module, or each of the tensors that it returned."""
    module = call.name.split(".")[0] if call.of_network else call.key.module
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = [call.part] if call.part else list(call.tensors)
    names = [f"{module}.{path}" if f"{module}.{path}" not in modules else f"{module}:{path}" for path in paths]
    return names or [module]


def cut_names(model: nn.Module, x: torch.Tensor | Sample, wanted: CutPointsLike) -> list[str]:
    """Dotted names in order of depth; plain names are taken as they are.

    >>> cut_names(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.zeros(1, 2), "*")
    ['0', '1']
    """
    if is_plain(model, wanted):
        return [wanted] if isinstance(wanted, str) else list(wanted)
    names = [name for call in chosen_calls(model, x, wanted) for name in layer_names(model, call)]
    return list(dict.fromkeys(names))


@dataclass(frozen=True)
class Chosen:
    """What one sample shows: the layers that were asked for, in order of depth, and what another may still show."""

    names: list[str]
    called: set[str] | None
    """The modules that it calls; ``None`` where layers were named one by one, so that no other sample adds any."""
    waiting: set[str]
    """What was asked for under which this sample calls nothing."""


def chosen_names(model: nn.Module, sample: Sample, wanted: CutPointsLike) -> Chosen:
    """``cut_names`` of one sample among several.

    Raises
    ------
    CutPointError
        As ``chosen_calls``, but for names that the sample alone does not call.
    """
    if is_plain(model, wanted):
        return Chosen([wanted] if isinstance(wanted, str) else list(wanted), None, set())
    found = _traced(model, _floating(model, sample))
    calls, waiting = on_this_path(model, found, wanted)
    names = [name for call in _last_calls(found, calls) for name in layer_names(model, call)]
    called = {module for module, _ in found.called} | {""}
    return Chosen(list(dict.fromkeys(names)), called, set(waiting))


def not_called(names: Iterable[str], calling: Mapping[str, int], total: int) -> tuple[Fact, ...]:
    """Which layers some of the samples do not call, and how many do not; ``calling`` counts those that do."""
    without = {name: total - calling[name] for name in names if calling[name] < total}
    values = {"names": tuple(without), "counts": tuple(without.values()), "total": total}
    return (Fact(FactKind.NOT_CALLED, values),) if without else ()
