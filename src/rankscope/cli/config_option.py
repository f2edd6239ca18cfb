"""``--config FILE``: options of a file become words of the command, before those that were given with it are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankscope._base.command import read_from
from rankscope._base.errors import UsageError, closest
from rankscope.cli.config_file import Given, read_options
from rankscope.cli.option_values import check_text, shown_name, texts

__all__ = ["words_of_file"]

_NOT_IN_A_FILE = ("config", "debug", "help")


def words_of_file(
    path: Path, params: Sequence[Any], values: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Options and arguments that the file adds to a command: those that the command's own words do not give.

    ``values`` is what these words gave, ``wanted`` the type of each parameter by name.

    Raises
    ------
    UsageError
        When the file cannot be read, a key is no option of the command, or a value is of another type than its option.
    """
    known = {key: param for param in params for key in _keys(param) if key not in _NOT_IN_A_FILE}
    given = read_options(path)
    taken: dict[int, str] = {}
    options: list[str] = []
    arguments: list[str] = []
    for key, found in given.items():
        param = known.get(key.replace("_", "-"))
        if param is None:
            raise UsageError(f"{path.name}: {_unknown(key, list(known))}")
        if id(param) in taken:
            raise UsageError(f"{path.name} gives {key} and {taken[id(param)]}, which are one option; give it once")
        taken[id(param)] = key
        _check(f"{key} in {path.name}", found, param, wanted.get(str(param.name)))
        if param.param_type_name == "argument":
            if not texts(values.get(str(param.name))):
                arguments += [value.text for value in found.values]
        elif values.get(str(param.name)) is None or str(param.name) not in values:
            options += _words(param, found)
    read_from(str(path), {key: found.plain() for key, found in given.items()})
    return options, arguments


def _keys(param: Any) -> list[str]:
    """An option's long names without their dashes; an argument's word in the help, in small letters."""
    if param.param_type_name == "argument":
        return [shown_name(param).lower().rstrip("."), str(param.name).replace("_", "-")]
    return [form.removeprefix("--") for form in param.opts if form.startswith("--")]


def _unknown(key: str, known: list[str]) -> str:
    if key in _NOT_IN_A_FILE:
        return f"--{key} belongs on the command line"
    near = closest(key.replace("_", "-"), known)
    return f"there is no option {key!r}" + (f"; did you mean {near!r}?" if near else "")


def _check(name: str, found: Given, param: Any, wanted: Any) -> None:
    many = getattr(param, "multiple", False) or param.nargs == -1
    if found.several and not many:
        raise UsageError(f"{name} is a list, but takes one value; write names and numbers of a list as one text: '1,2'")
    for value in found.values:
        if wanted is bool:
            if value.kind != "switch":
                raise UsageError(f"{name} is {value.shown}; give true or false")
            continue
        meant = {int: "a whole number", float: "a number"}.get(wanted, "a text or a number")
        if value.kind == "switch":
            raise UsageError(f"{name} is {value.text}; give {meant}")
        if wanted in (int, float) and value.kind == "text":
            raise UsageError(f"{name} is the text {value.text!r}; give {meant}, without quotes")
        check_text(name, value.text, wanted)


def _words(param: Any, found: Given) -> list[str]:
    form = next(form for form in param.opts if form.startswith("--"))
    if not getattr(param, "is_flag", False):
        return [f"{form}={value.text}" for value in found.values]
    if found.values[0].text == "true":
        return [form]
    return list(param.secondary_opts[:1])  # a switch that has no opposite is off where it is not given
