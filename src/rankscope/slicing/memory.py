"""Whether what one call leaves in a model changes what the next one returns; a cache changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.facts import Fact, FactKind
from rankscope.slicing.apart import APART, worst, worst_gap
from rankscope.slicing.batches import run_forward
from rankscope.slicing.global_generators import FURTHER_DRAWS, GlobalGenerators
from rankscope.slicing.members import every_tensor, real
from rankscope.slicing.sample import Sample
from rankscope.slicing.state import ModelState, guarded

__all__ = ["draw_facts", "forward_facts", "state_facts", "values_of"]

_NAMED = 3  # of what a call changes


def state_facts(state: ModelState, run: Callable[[bool], Sequence[Tensor]]) -> list[Fact]:
    """What is to be said of a model that remembers; nothing of one that does not, or that draws random numbers.

    ``run`` makes a whole call and returns every tensor that came of it, copied: from the kept state for ``True``, else
    from what the last call has left. It is called once where calls change nothing. A model that draws from a generator
    of its own remembers, whether or not two draws happen to be equal.
    """
    first = run(True)
    state.restore()
    if not state.changed:
        return []
    again = run(True)
    try:
        other = bool(state.drawn) or not _apart(run(False), first) <= APART
    except Exception:  # from the state that a call leaves, the next may take any path
        other = True
    finally:
        state.restore()
    if not other or not _apart(again, first) <= APART:
        return []
    return [Fact(FactKind.KEEPS_STATE, {"where": tuple(sorted(state.changed))[:_NAMED]})]


def forward_facts(model: nn.Module, sample: Sample, device: torch.device, kept: Mapping[str, Tensor]) -> list[Fact]:
    """The same for what only runs a model forward, inside its guard; and whether it draws random numbers.

    Hooks fill ``kept`` in every call, by layer.
    """
    state = guarded(model)
    if state is None:
        return []

    calls: list[dict[str, list[Tensor]]] = []

    def run(fresh: bool) -> list[Tensor]:
        with nullcontext() if fresh else state.paused():
            made = run_forward(model, sample, device)
        calls.append({**{name: values_of([value]) for name, value in kept.items()}, "output": values_of([made])})
        # by name: hooks fill a dictionary that is not empty in another order than an empty one
        return [tensor for _, values in sorted(calls[-1].items()) for tensor in values]

    def once() -> dict[str, list[Tensor]]:
        run(True)
        return calls.pop()

    generators = GlobalGenerators(model, device)
    try:
        found = state_facts(state, run)
        return [*found, *draw_facts(generators, calls[0], once, at_least=1)]
    except Exception:  # a call that fails is the measurement's to report
        return []


def draw_facts(
    generators: GlobalGenerators,
    first: Mapping[str, Sequence[Tensor]],
    call: Callable[[], Mapping[str, Sequence[Tensor]]],
    *,
    at_least: int = 0,
) -> list[Fact]:
    """What is to be said of a model that draws from generators which it does not hold.

    ``first`` is what a call gave since ``generators`` was made, by layer, copied; ``call`` makes another from the same
    state. So many are made where nothing moved: of a generator that is out of sight two calls may tell.
    """
    further = 0
    while further < (FURTHER_DRAWS if generators.moved else at_least):
        again, further = call(), further + 1
        where = next((name for name in first if not _apart(first[name], again.get(name, ())) <= APART), None)
        if where is not None:
            return [Fact(FactKind.RANDOM_MODEL, {"where": where}, caution=True)]
    return [Fact(FactKind.DRAWS_UNUSED, {"calls": further + 1})] if generators.moved else []


def values_of(outputs: Sequence[Any]) -> list[Tensor]:
    """Every tensor in what was returned, as flat copies in float64: the next call may write into the originals."""
    tensors = [t for output in outputs for t in every_tensor(output) if not t.is_meta]
    return [real(t).detach().to(torch.float64, copy=True).reshape(-1) for t in tensors]


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(found) != len(expected):
        return float("inf")
    return worst(worst_gap(a, b) for a, b in zip(found, expected, strict=True))
