"""Which step of training a checkpoint belongs to: by what the file says, else by the number in its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rankscope._base.errors import ModelError, first_line
from rankscope.loading.weight_files import read_file

__all__ = ["Step", "step_in_file", "steps_in_names"]

_STATE = "trainer_state.json"
_KEYS = (("global_step", "step"), ("step", "step"))  # what trainers write beside the weights, and its unit
_LABELS = (("step", "step"), ("iteration", "iteration"), ("iter", "iteration"), ("epoch", "epoch"))
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
    ``epoch``; else its only number; else the only one in which it differs from the other names of its form.

    Names that leave it open are not in the result.

    >>> steps_in_names(["epoch=3-step=1200.ckpt", "checkpoint-500", "last.ckpt"])
    {'epoch=3-step=1200.ckpt': Step(value=1200, unit='step'), 'checkpoint-500': Step(value=500, unit='step')}
    >>> steps_in_names(["resnet18_a1.pt", "resnet18_a2.pt"])["resnet18_a2.pt"]
    Step(value=2, unit='number')
    """
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(re.sub(r"\d+", "#", _stem(name)), []).append(name)
    found: dict[str, Step] = {}
    for alike in forms.values():
        numbers = [re.findall(r"\d+", _stem(name)) for name in alike]
        changing = [i for i in range(len(numbers[0])) if len({row[i] for row in numbers}) > 1]
        for name, row in zip(alike, numbers, strict=True):
            labelled = _labelled(name)
            place = 0 if len(row) == 1 else changing[0] if len(changing) == 1 else None
            if labelled is not None:
                found[name] = labelled
            elif place is not None and len(row[place]) <= _DIGITS:
                found[name] = Step(int(row[place]), "number")
    return {name: found[name] for name in names if name in found}


def _stem(name: str) -> str:
    """The name without the ending of a file: ``step-1.5`` of a folder stays whole, for its endings are no file's."""
    return re.sub(r"\.(ckpt|pt|pth|tar|bin|safetensors)\b", "", name, flags=re.IGNORECASE)


def _labelled(name: str) -> Step | None:
    stem = _stem(name)
    if re.fullmatch(rf"checkpoint-\d{{1,{_DIGITS}}}", name):  # as the trainer of transformers calls its folders
        return Step(int(name.rpartition("-")[2]), "step")
    for label, unit in _LABELS:
        values = set(re.findall(rf"(?<![a-z]){label}s?[=_-]?(\d{{1,{_DIGITS}}})(?!\d)", stem, re.IGNORECASE))
        if len(values) == 1:
            return Step(int(values.pop()), unit)
        if values:
            return None
    return None
