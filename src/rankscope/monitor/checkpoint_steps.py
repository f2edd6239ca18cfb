"""Which step of training a checkpoint belongs to: by what the file says, else by the number in its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rankscope._base.errors import ModelError, first_line
from rankscope.loading.weight_files import read_file

__all__ = ["Step", "step_in_file", "steps_in_names"]

_STATE = "trainer_state.json"
_KEYS = (("global_step", "step"), ("step", "step"))  # what trainers write beside the weights, and its unit
_LABELS = (("step", "step"), ("iteration", "iteration"), ("iter", "iteration"), ("epoch", "epoch"))
_NO_COUNT = re.compile(r"\d+([.,]\d+|e[+-]?\d+|k|[mb](?![a-z\d]))+", re.IGNORECASE)  # 0.52, 1e-3, 10k, 7B
_ALONE = re.compile(r"\D*(?<![^\W\d_])\d+\D*")  # one number, no letter directly before it: that is a model's name
_DIGITS = 18  # of a longer number in a name, such as a date with a hash, nothing counts steps


class Step(NamedTuple):
    """A place in training and what it counts: ``step``, ``iteration``, ``epoch``, or a bare ``number`` of a name."""

    value: int
    unit: str


def step_in_file(path: Path) -> Step | None:
    """What a checkpoint says of itself: ``trainer_state.json`` of a folder, ``global_step`` or ``step`` of a file of
    torch, else its ``epoch``. The file is read as weights are: no code of it runs.

    Raises
    ------
    ModelError
        A file that is no whole checkpoint (yet).
    """
    if path.is_dir():
        return _in_folder(path)
    found = read_file(path)
    if path.suffix.lower() == ".safetensors" or not isinstance(found, Mapping):
        return None
    for key, unit in (*_KEYS, ("epoch", "epoch")):
        value = found.get(key)
        # a tensor of that name is a buffer of the network
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return Step(value, unit)
    return None


def _in_folder(folder: Path) -> Step | None:
    state = folder / _STATE
    if not state.exists():
        return None
    try:
        value = json.loads(state.read_bytes())["global_step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{_STATE} of {folder.name!r} cannot be read ({first_line(error)})") from error
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModelError(f"{_STATE} of {folder.name!r} has global_step {value!r}, which is no step")
    return Step(value, "step")


def steps_in_names(names: Sequence[str]) -> dict[str, Step]:
    """The step that each name holds: a number behind ``step``, else behind ``iter`` or ``iteration``, else behind
    ``epoch``; else the only one in which it differs from the other names of its form; else its only number, unless a
    letter is directly before it.

    Names that leave it open are not in the result. Decimals, powers of ten and multiples count no steps.

    >>> steps_in_names(["epoch=3-step=1200.ckpt", "checkpoint-500", "last.ckpt"])
    {'epoch=3-step=1200.ckpt': Step(value=1200, unit='step'), 'checkpoint-500': Step(value=500, unit='step')}
    >>> steps_in_names(["resnet18_a1.pt", "resnet18_a2.pt"])["resnet18_a2.pt"]
    Step(value=2, unit='number')
    """
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(re.sub(r"\d+", "#", _plain(name)), []).append(name)
    found: dict[str, Step] = {}
    epochs: dict[str, int] = {}
    for alike in forms.values():
        numbers = [re.findall(r"\d+", _plain(name)) for name in alike]
        changing = [i for i in range(len(numbers[0])) if len({row[i] for row in numbers}) > 1]
        for name, row in zip(alike, numbers, strict=True):
            labelled, epoch = _labelled(name)
            place = changing[0] if len(changing) == 1 else 0 if _ALONE.fullmatch(_plain(name)) else None
            if labelled is not None:
                found[name] = labelled
            elif place is not None and len(row[place]) <= _DIGITS:
                found[name] = Step(int(row[place]), "number")
            if epoch is not None:
                epochs[name] = epoch
    _begin_again(found, epochs)
    return {name: found[name] for name in names if name in found}


def _begin_again(found: dict[str, Step], epochs: Mapping[str, int]) -> None:
    """Mend the steps of names that have an epoch too. Where a later epoch has no larger step than an earlier one, steps
    begin again with each epoch: the epoch counts where each name has its own, and else the name leaves it open.
    """
    places = sorted((epoch, found[name].value) for name, epoch in epochs.items())
    if all(later > step or after == epoch for (epoch, step), (after, later) in pairwise(places)):
        return
    own = len(set(epochs.values())) == len(epochs)
    for name, epoch in epochs.items():
        if own:
            found[name] = Step(epoch, "epoch")
        else:
            del found[name]


def _plain(name: str) -> str:
    """The name without the ending of a file, and without numbers that count no steps: ``step-1.5`` of a folder has no
    ending, and its number no place among steps.
    """
    stem = re.sub(r"\.(ckpt|pt|pth|tar|bin|safetensors)\b", "", name, flags=re.IGNORECASE)
    return _NO_COUNT.sub("~", stem)


def _labelled(name: str) -> tuple[Step | None, int | None]:
    """The number behind the first label, and the epoch beside it."""
    if re.fullmatch(rf"checkpoint-\d{{1,{_DIGITS}}}", name):  # as the trainer of transformers calls its folders
        return Step(int(name.rpartition("-")[2]), "step"), None
    first: Step | None = None
    for label, unit in _LABELS:
        values = set(re.findall(rf"(?<![a-z]){label}s?[=_-]?(\d{{1,{_DIGITS}}})(?!\d)", _plain(name), re.IGNORECASE))
        if first is not None and unit == "epoch" and len(values) == 1:
            return first, int(values.pop())
        if first is None and len(values) == 1:
            first = Step(int(values.pop()), unit)
        elif first is None and values:
            return None, None
    return first, None
