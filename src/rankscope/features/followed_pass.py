"""What the operators of a pass say of its samples: whether anything is computed of several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from rankscope._base.errors import is_out_of_memory
from rankscope.slicing.calls import Call
from rankscope.slicing.sample import Sample
from rankscope.slicing.sample_mixing import Mixing, mixing_of

__all__ = ["followed_pass"]

_NOT_FOLLOWED = "operators that cannot be followed"
_NO_MEMORY = "operators that there is no memory to follow"


def followed_pass(call: Call, outputs: Callable[[Sample], Mapping[str, Tensor]]) -> dict[str, Any]:
    """Why the samples of a call have to be called alone, as a fact says it; nothing where they can share a pass."""
    several = _followed(call, len(call), outputs)
    if several.reads:  # which a sample alone does not
        return {"coupled": False}
    if several.mixes:
        undecided = several.undecided
        return {"coupled": True} if undecided is None else {"coupled": False, "undecided": undecided}
    one = _followed(call, 1, outputs)
    # a number that only several samples lead to may be how many they are; one that takes a batch for a sample has none
    return {"coupled": True, "place": True} if not one.mixes and several.numbers - one.numbers else {}


def _followed(call: Call, count: int, outputs: Callable[[Sample], Mapping[str, Tensor]]) -> Mixing:
    # each tensor in memory of its own: views of one would be taken for each other's samples
    part = call.part(0, count)
    x = part.x.clone(memory_format=torch.contiguous_format)
    own = tree_map_only(Tensor, lambda t: t.clone(memory_format=torch.contiguous_format), part.per_sample)
    samples = replace(part, x=x, per_sample=own).rows(0, count, "a batch")
    given = [x, *(t for t in tree_leaves(own) if isinstance(t, Tensor) and t.ndim and len(t) == count)]
    try:
        return mixing_of(given, count, lambda: outputs(samples))
    except Exception as error:  # the pass itself runs, without the codes beside its numbers
        why = _NO_MEMORY if is_out_of_memory(error) else _NOT_FOLLOWED
        return Mixing(True, False, why, frozenset())
