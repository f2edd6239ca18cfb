"""Layers that a word or a glob chose, and whose rows are no samples: the windows of Swin's attention, for instance.

A name that the caller wrote is refused later, with its shape. What "blocks", "all" or a glob found beside other layers
is left out, and a fact says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from rankscope._base.errors import CutPointError, ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.hooks import inference, record_outputs, spelling
from rankscope.slicing import CUT_POINT_WORDS, CutPointsLike, Sample
from rankscope.slicing.batches import run_forward
from rankscope.slicing.calls import can_be_repeated, repeated

__all__ = ["spelled", "with_rows_of_samples", "without_rows"]


def with_rows_of_samples(
    model: nn.Module, sample: Sample, names: Sequence[str], wanted: CutPointsLike | None, called: Mapping[str, int]
) -> tuple[list[str], tuple[Fact, ...]]:
    """``names`` without those that ``wanted`` does not spell out and whose first dimension counts something else.

    One sample has to give one row, and two have to give two where they can share a pass. So a fixed number of rows is
    seen, whatever it is. ``names`` come from a pass in which embeddings stood for token ids, and a model may fill up
    embeddings by calls of their own: a call beyond those that the sample makes, ``called``, is the last of these.

    Raises
    ------
    CutPointError
        Where no layer is left.
    """
    names, given = _as_called(model, names, called), list(names)
    found = [name for name in names if not spelled(model, name, wanted)]
    if not found:
        return list(names), ()
    shapes: dict[str, tuple[int, ...]] = {}
    with inference(model) as device:
        for count in (1, 2) if can_be_repeated(model, sample) else (1,):
            together = sample if count == 1 else repeated(sample, torch.cat([sample.x] * count))
            with record_outputs(model, found) as outputs:
                try:
                    run_forward(model, together, device)
                except ModelError:
                    if count == 1:
                        raise
                    break  # it takes one sample at a time, as a decoder's classifier without a padding token
                if count == 1 and names != given and set(names) <= set(outputs):
                    names = [name for name in outputs if name in names]  # in the order of the calls that it makes
                wrong = {n: tuple(o.shape) for n, o in outputs.items() if not o.ndim or len(o) != count}
            shapes = {**wrong, **shapes}
    left = [name for name in found if name in shapes]
    kept = [name for name in names if name not in shapes]
    if not kept:
        raise CutPointError(
            f"no layer that cut_points={wanted!r} chooses returns rows that count samples; {left[0]!r} returns a "
            f"tensor of shape {shapes[left[0]]} for one sample or two"
        )
    if not left:
        return kept, ()
    return kept, (Fact(FactKind.ROWS_NOT_SAMPLES, {"names": tuple(left), "shape": shapes[left[0]]}),)


def without_rows(
    model: nn.Module, wanted: CutPointsLike | None, names: Sequence[str], calling: Mapping[str, int]
) -> tuple[Fact, ...]:
    """Which of ``names``, layers that some pass calls, no sample has a row of; ``calling`` counts those that have.

    An expert that no sample is led to returns no row, and so does a layer that is given an empty part of a parameter.

    Raises
    ------
    CutPointError
        Where the caller wrote the name, of which no call has a row, and where none has of all that was asked for.
    """
    empty = [name for name in names if not calling[name]]
    shown = {name.partition("#")[0] for name in names if calling[name]}
    asked = [
        n for n in empty if spelled(model, n, wanted) and (n.partition("#")[0] not in shown or n in (wanted or ()))
    ]
    if asked or (empty and not shown and wanted is not None):
        name = [*asked, *empty][0]
        raise CutPointError(f"layer {name!r} is called, but with no row of any sample; choose another cut point")
    return (Fact(FactKind.NO_ROWS, {"names": tuple(empty)}),) if empty else ()


def _as_called(model: nn.Module, names: Sequence[str], called: Mapping[str, int]) -> list[str]:
    """``names``, where a call that the sample does not make is its last one of that module."""
    modules = dict(model.named_modules(remove_duplicate=False))
    known = {id(module): name for name, module in model.named_modules()}
    kept: dict[str, None] = {}
    for name in names:
        found = spelling(modules, name)
        last = called.get(known[id(modules[found.base])], 0) if found is not None else 0
        if found is not None and found.call is not None and found.call > last > 0:
            name = f"{found.base}#{last}{found.end}" if last > 1 else f"{found.base}{found.end}"
        kept[name] = None
    return list(kept)


def spelled(model: nn.Module, name: str, wanted: CutPointsLike | None) -> bool:
    """Whether the caller wrote this name, or that of the module of which it is one tensor."""
    if wanted is None or (isinstance(wanted, str) and wanted in CUT_POINT_WORDS):
        return False
    modules = dict(model.named_modules(remove_duplicate=False))
    for one in [wanted] if isinstance(wanted, str) else wanted:
        if set(one) & set("*?["):
            continue
        base = one.partition("#")[0]
        if name.partition("#")[0] == base or (name not in modules and name.startswith((f"{base}.", f"{base}:"))):
            return True
    return False
