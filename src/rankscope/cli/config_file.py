"""Options in a TOML or YAML file: read as the file's own types, refused by name where a command cannot take them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rankscope._base.errors import UsageError, first_line

__all__ = ["Given", "Value", "read_options"]

Kind: TypeAlias = Literal["text", "plain", "switch"]


@dataclass(frozen=True)
class Value:
    """A value as the command line would have it: a quoted text, a plain word or number, or true or false."""

    text: str
    kind: Kind

    @property
    def shown(self) -> str:
        return repr(self.text) if self.kind == "text" else self.text


@dataclass(frozen=True)
class Given:
    """The values of one key; ``several``: they are a list in the file."""

    values: tuple[Value, ...]
    several: bool

    def plain(self) -> Any:
        """As the record of the command keeps them."""
        made = [value.text == "true" if value.kind == "switch" else value.text for value in self.values]
        return made if self.several else made[0]


def read_options(path: Path) -> dict[str, Given]:
    """The keys of a ``.toml``, ``.yaml`` or ``.yml`` file with their values.

    Raises
    ------
    UsageError
        When there is no such file, it is of another type or malformed, a key is given twice, or a value is neither a
        text, a number, true, false, nor a list of these.
    """
    readers = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"the configuration {str(path)!r} ends with {path.suffix!r}; give a .toml, .yaml or .yml file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"cannot read the configuration {str(path)!r}: {first_line(error)}") from error
    return reader(text, path.name)


def _toml(text: str, name: str) -> dict[str, Given]:
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _malformed(name, error) from error
    return {key: _given(key, value, name) for key, value in found.items()}


def _given(key: str, value: Any, name: str) -> Given:
    if isinstance(value, list):
        return Given(tuple(_value(key, one, name) for one in value), several=True)
    return Given((_value(key, value, name),), several=False)


def _value(key: str, value: Any, name: str) -> Value:
    if isinstance(value, bool):
        return Value(str(value).lower(), "switch")
    if isinstance(value, int | float):
        return Value(repr(value), "plain")
    if isinstance(value, str):
        return Value(value, "text")
    what = "a table" if isinstance(value, dict) else "a list in a list" if isinstance(value, list) else str(value)
    raise _refused(key, what, name)


def _yaml(text: str, name: str) -> dict[str, Given]:
    """Read from the nodes: YAML itself makes 8 of 010, 90 of 1:30 and false of no, and takes the last of two keys."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _malformed(name, error) from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{name} holds no keys; write one option a line, as in seed: 1")
    found: dict[str, Given] = {}
    for key_node, node in root.value:
        key = str(key_node.value)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            raise UsageError(f"{name}: a key is no plain word; write one option a line, as in seed: 1")
        if key in found:
            raise UsageError(f"{name} gives {key} twice; give it once")
        listed = isinstance(node, yaml.SequenceNode)
        found[key] = Given(tuple(_of_node(key, one, name) for one in (node.value if listed else [node])), listed)
    return found


def _of_node(key: str, node: Any, name: str) -> Value:
    kind = node.tag.rpartition(":")[2]
    if kind in ("map", "seq"):
        raise _refused(key, "a table" if kind == "map" else "a list in a list", name)
    if kind == "null":
        raise _refused(key, "empty", name)
    if kind == "bool":
        # yes, no, on and off are switches of YAML 1.1 and words to everybody else
        if node.value.lower() in ("true", "false"):
            return Value(node.value.lower(), "switch")
        return Value(node.value, "plain")
    return Value(node.value, "plain" if node.style is None else "text")


def _refused(key: str, what: str, name: str) -> UsageError:
    return UsageError(f"{key} in {name} is {what}; give a text, a number, true, false, or a list of these")


def _malformed(name: str, error: BaseException) -> UsageError:
    where = getattr(error, "problem_mark", None)
    line = f", line {where.line + 1}" if where is not None else ""
    return UsageError(f"{name} cannot be read{line}: {getattr(error, 'problem', None) or first_line(error)}")
