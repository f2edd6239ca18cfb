"""From what ``cut_points=`` says to dotted module names whose outputs a hook can keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from rankscope._base.errors import CutPointError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.hooks import inference
from rankscope.slicing import (
    CUT_POINT_WORDS,
    CutPointsLike,
    ModuleCall,
    Sample,
    Trace,
    check_names,
    on_this_path,
    select,
    trace,
)
from rankscope.slicing.batches import dtype_of_inputs
from rankscope.slicing.calls import differentiable

__all__ = ["Chosen", "chosen_calls", "chosen_names", "cut_names", "is_plain", "layer_names", "not_called"]


def is_plain(model: nn.Module, wanted: CutPointsLike) -> bool:
    """Whether ``wanted`` is a list of names without globs: no forward pass is needed to read it.

    A word is no name, also where a module is called that, as ``blocks`` of a vision transformer: ``["blocks"]`` names
    the module.
    """
    check_names(wanted)
    if isinstance(wanted, str):
        return wanted not in CUT_POINT_WORDS and wanted in dict(model.named_modules())
    return not any(set(name) & set("*?[") for name in wanted)


def chosen_calls(model: nn.Module, x: torch.Tensor | Sample, wanted: CutPointsLike) -> list[ModuleCall]:
    """The calls that ``wanted`` names (as in ``jacobian_rank``), from one forward pass of the sample ``x`` (1, …).

    Raises
    ------
    CutPointError
        A name that no module has or calls, or inputs that are integers (tokens), of which there is no graph to read.
    """
    return _chosen(model, x, wanted)[0]


def _chosen(
    model: nn.Module, x: torch.Tensor | Sample, wanted: CutPointsLike
) -> tuple[list[ModuleCall], Mapping[str, int]]:
    sample = _floating(model, x if isinstance(x, Sample) else Sample(x, "the first sample"))
    found = _traced(model, sample)
    return select(model, found, wanted), Counter(module for module, _ in found.called)


def _floating(model: nn.Module, sample: Sample) -> Sample:
    sample = differentiable(model, sample)
    if not sample.x.is_floating_point():
        kind = sample.x.dtype
        raise CutPointError(f"blocks and globs are read off a graph that {kind} inputs do not have; name layers")
    return sample


def _traced(model: nn.Module, sample: Sample) -> Trace:
    with inference(model) as device:
        return trace(model, sample.to(device, dtype_of_inputs(model, sample.x)))


def layer_names(model: nn.Module, call: ModuleCall, times: Mapping[str, int]) -> list[str]:
    """What a hook is asked for: the module, one call of several (``layer#2``), or each of the tensors it returned.

    ``times`` says how often one sample, the same for all, calls each module: it decides whether the first call has a
    number.
    """
    whole = call.name if not call.part else call.name.removesuffix(call.part)[:-1]
    if call.of_network:
        whole = call.name.split(".")[0]
    else:
        several = call.key.call > 0 or times.get(call.key.module, 1) > 1
        whole = f"{call.key.module}#{call.key.call + 1}" if several else call.key.module
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = [call.part] if call.part else list(call.tensors)
    names = [f"{whole}.{path}" if f"{whole}.{path}" not in modules else f"{whole}:{path}" for path in paths]
    return names or [whole]


def _names(model: nn.Module, calls: Iterable[ModuleCall], times: Mapping[str, int]) -> list[str]:
    return list(dict.fromkeys(name for call in calls for name in layer_names(model, call, times)))


def cut_names(model: nn.Module, x: torch.Tensor | Sample, wanted: CutPointsLike) -> list[str]:
    """Dotted names in order of depth; plain names are taken as they are.

    >>> cut_names(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), torch.zeros(1, 2), "*")
    ['0', '1']
    """
    if is_plain(model, wanted):
        return [wanted] if isinstance(wanted, str) else list(wanted)
    calls, called = _chosen(model, x, wanted)
    return _names(model, calls, called)


@dataclass(frozen=True)
class Chosen:
    """What one sample shows: the layers that were asked for, in order of depth, and what another may still show."""

    names: list[str]
    written_out: bool
    """Whether layers were named one by one: then other samples add calls of these modules, and no others."""
    waiting: set[str]
    """What was asked for under which this sample calls nothing."""


def chosen_names(
    model: nn.Module,
    sample: Sample,
    wanted: CutPointsLike,
    times: Mapping[str, int],
    *,
    fits: Callable[[ModuleCall], bool] | None = None,
) -> Chosen:
    """``cut_names`` of one sample among several, of which the first calls each module so many times.

    With ``fits``, of the calls for which it is true.

    Raises
    ------
    CutPointError
        As ``chosen_calls``, but for names that the sample alone does not call.
    """
    if is_plain(model, wanted):
        return Chosen([wanted] if isinstance(wanted, str) else list(wanted), True, set())
    found = _traced(model, _floating(model, sample))
    calls, waiting = on_this_path(model, found, wanted)
    calls = [call for call in calls if fits is None or fits(call)]
    return Chosen(_names(model, calls, times), False, set(waiting))


def not_called(names: Iterable[str], calling: Mapping[str, int], total: int) -> tuple[Fact, ...]:
    """Which layers some of the samples do not call, and how many do not; ``calling`` counts those that do."""
    without = {name: total - calling[name] for name in names if calling[name] < total}
    values = {"names": tuple(without), "counts": tuple(without.values()), "total": total}
    return (Fact(FactKind.NOT_CALLED, values),) if without else ()
