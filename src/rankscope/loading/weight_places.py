"""Where in a checkpoint the weights of a model are: under which prefix all of its names are found.

Nesting (``{"state_dict": …}``) and prefixes (``model.``, ``backbone.``) are the same once every tensor has its dotted
name: a place is a prefix under which the model's own names follow. Wrappers' segments (``module``, ``_orig_mod`` …) are
left out on both sides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

__all__ = ["Names", "Place", "averaged", "is_counter", "places_of", "prefixes_of", "without_wrappers"]

_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_AVERAGED = frozenset(("ema", "swa", "averaged", "average", "avg", "shadow", "polyak"))
_TRIED = 6  # places whose names fit in part
# The two spellings of weight normalisation: torch's own loading knows the first as the second, not the reverse.
_NORM = (("parametrizations.{}.original0", "{}_g"), ("parametrizations.{}.original1", "{}_v"))


class Names:
    """The tensors that a model wants, by name without wrappers; which of them are one tensor; what it has beside."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        state = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
        self.actual = {plain: name for name, plain in without_wrappers(state).items()}
        self.tensors = {plain: state[name] for plain, name in self.actual.items()}

    @cached_property
    def ties(self) -> dict[str, list[str]]:
        """For each name all names of the same tensor, where there are several."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            if nn.parameter.is_lazy(tensor) or tensor.is_meta or not tensor.numel():
                continue
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            groups.setdefault(place, []).append(name)
        return {name: group for group in groups.values() if len(group) > 1 for name in group}

    @cached_property
    def passing(self) -> dict[str, torch.Tensor]:
        """Buffers that the model computes itself and does not save."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        return {plain: buffers[name] for name, plain in without_wrappers(buffers).items() if plain not in self.tensors}

    def is_new(self, name: str, beside: Mapping[str, torch.Tensor]) -> bool:
        """Whether a tensor that the model lacks is a part of its own (a head, a criterion), not one more layer of it.

        A model without a head has ``nn.Identity`` in its place, or nothing. ``beside`` are all tensors of the place.
        """
        first = name.partition(".")[0]
        heads = {own.partition(".")[0] for own in self.tensors}
        if first not in heads and not (first.isdecimal() and all(head.isdecimal() for head in heads)):
            module = getattr(self.model, first, None)
            return not isinstance(module, nn.Module) or self._was_head(name, beside)
        return self._was_head(name, beside)

    def _was_head(self, name: str, beside: Mapping[str, torch.Tensor]) -> bool:
        holder = name.rpartition(".")[0]
        try:
            module = self.model.get_submodule(holder)
        except AttributeError:
            return False
        weight = beside.get(f"{holder}.weight")
        return isinstance(module, nn.Identity) and weight is not None and weight.squeeze().ndim >= 2


@dataclass(frozen=True)
class Place:
    """The tensors under a prefix, by the model's names, beside what the model wants."""

    prefix: str
    given: dict[str, torch.Tensor]  # of the model's names, those that the place holds
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    strange: tuple[str, ...]  # tensors inside the model's own modules that the model has not
    beside: tuple[str, ...]  # full names of what is left over in the file

    @property
    def fits(self) -> bool:
        """Whether every tensor of the model is there, in its shape, and none too many."""
        return not (self.missing or self.misshapen or self.strange)


def places_of(flat: Mapping[str, torch.Tensor], names: Names) -> list[Place]:
    """The places where most of the model's names follow, the fullest first."""
    found = [_place(flat, names, prefix, 0) for prefix in prefixes_of(flat, names.tensors)]
    if any(place.fits for place in found):
        return found
    # a model that wraps the network of the file: all of its names begin alike. The file must hold nothing else then,
    # or any layer of the same shape would do.
    for drop in range(1, _shared(names.tensors) + 1):
        outer = [_place(flat, names, prefix, drop) for prefix in _roots(flat)]
        whole = [place for place in outer if place.fits and not place.beside]
        if whole:
            return whole
    return found


def prefixes_of(flat: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Prefixes before the wanted names, those with most of them first; shorter ones first among equals."""
    own, votes = set(wanted), Counter[str]()
    for name in flat:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                votes[".".join((*parts[:start], ""))] += 1
    most = max(votes.values(), default=0)
    full = [p for p, count in votes.items() if count == most]
    rest = [p for p, count in votes.items() if count != most and 2 * count > most]
    order = sorted(full, key=lambda p: (p.count("."), p)) + sorted(rest, key=lambda p: (-votes[p], p.count("."), p))
    roots = [p for p in _roots(flat) if p not in order]
    return [*order[: max(_TRIED, len(full))], *roots[:_TRIED]]


def averaged(prefix: str) -> bool:
    """Whether a prefix names weights averaged over training.

    >>> averaged("state_dict_ema."), averaged("ema_model."), averaged("schema.")
    (True, True, False)
    """
    return not _AVERAGED.isdisjoint(re.split(r"[^a-z]+", prefix.lower()))


def is_counter(name: str) -> bool:
    """Whether this counts BatchNorm's batches: it changes nothing in evaluation, and old files lack it."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Every name without the segments that wrappers add; left as it is where two would become one.

    >>> without_wrappers(["module._orig_mod.fc.weight"])
    {'module._orig_mod.fc.weight': 'fc.weight'}
    """
    plain = {name: ".".join(p for p in name.split(".") if p not in _WRAPPERS) or name for name in names}
    count = Counter(plain.values())
    return {name: short if count[short] == 1 else name for name, short in plain.items()}


def _place(flat: Mapping[str, torch.Tensor], names: Names, prefix: str, drop: int) -> Place:
    """Compare what follows ``prefix`` with the model's names, of which the first ``drop`` segments are left out."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
    given: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for own in names.tensors:
        short = ".".join(own.split(".")[drop:])
        found = next((s for s in _spellings(short) if s in inside), None)
        if found is not None:
            given[own] = inside[found]
            used.add(found)
    missing = [
        own for own in names.tensors
        if own not in given and not is_counter(own) and not any(tie in given for tie in names.ties.get(own, ()))
    ]  # fmt: skip
    misshapen = [own for own, tensor in given.items() if not _shaped(names.tensors[own], tensor)]
    rest = [name for name in inside if name not in used and not is_counter(name)]
    rest = [name for name in rest if name not in names.passing or not _equal(names.passing[name], inside[name])]
    new = [name for name in rest if name not in names.passing and names.is_new(name, inside)]
    strange = [name for name in rest if name not in new]
    outside = [name for name in flat if not name.startswith(prefix)]
    beside = (*(prefix + name for name in new), *outside)
    return Place(prefix, given, tuple(missing), tuple(misshapen), tuple(strange), beside)


def _spellings(name: str) -> Sequence[str]:
    """A name, and the other spelling of weight normalisation where it is one."""
    for new, old in _NORM:
        pattern = re.escape(new).replace(r"\{\}", r"(\w+)")
        match = re.fullmatch(rf"(.*\.)?{pattern}", name)
        if match is not None:
            return name, (match[1] or "") + old.format(match[2])
        match = re.fullmatch(rf"(.*\.)?(\w+){old[2:]}", name)
        if match is not None:
            return name, (match[1] or "") + new.format(match[2])
    return (name,)


def _shaped(own: torch.Tensor, given: torch.Tensor) -> bool:
    return nn.parameter.is_lazy(own) or own.shape == given.shape


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one.cpu() == other.to(one.dtype)).all())


def _shared(names: Iterable[str]) -> int:
    """How many leading segments all names share."""
    split = [name.split(".")[:-1] for name in names]
    count = 0
    while split and all(len(parts) > count and parts[count] == split[0][count] for parts in split):
        count += 1
    return count


def _roots(flat: Iterable[str]) -> list[str]:
    """Prefixes that all names share, the empty one first, then the first segments with more than a tensor."""
    listed = list(flat)
    shared = ["".join(f"{p}." for p in listed[0].split(".")[:n]) for n in range(_shared(listed) + 1)] if listed else []
    base = shared[-1] if shared else ""
    count = Counter(name.removeprefix(base).partition(".")[0] for name in listed if "." in name.removeprefix(base))
    return [*shared, *(f"{base}{first}." for first, found in count.most_common() if found > 1)]
