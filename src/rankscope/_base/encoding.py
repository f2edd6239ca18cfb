"""Values to JSON and back, by the type that a dataclass declares for its field.

``plain`` is for readers: arrays are nested lists, and what is not finite is ``null``. ``exact`` loses nothing: marks
that begin with ``$`` stand for what JSON has no word for.
"""

from __future__ import annotations

import base64
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

__all__ = ["exact", "frozen", "plain", "read", "same"]

_FEW = 64  # array entries that a person may want to read in the file


def plain(value: Any) -> Any:
    """JSON values for readers. A dataclass with a ``to_dict`` of its own gives that, any other its fields."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        own = getattr(value, "to_dict", None)
        return own() if own is not None else {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k.value if isinstance(k, Enum) else k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(v) for v in value]
    raise TypeError(f"a {type(value).__name__} has no form in JSON; give text, numbers, arrays or collections of these")


def exact(value: Any) -> Any:
    """JSON values from which ``read`` makes the same value again."""
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return {"$float": str(float(value))}
    if isinstance(value, np.ndarray):
        return _array(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: exact(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        if all(isinstance(k, str) and not isinstance(k, Enum) and not k.startswith("$") for k in value):
            return {k: exact(v) for k, v in value.items()}
        return {"$pairs": [[exact(k), exact(v)] for k, v in value.items()]}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [exact(v) for v in value]
    return plain(value)


def _array(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    about = {"dtype": str(value.dtype), "shape": list(value.shape)}
    if value.dtype.kind not in "biuf":
        raise TypeError(f"an array of {value.dtype} cannot be saved; give booleans or real numbers")
    if value.size <= _FEW:
        return {"$array": about | {"values": [exact(v) for v in value.ravel().tolist()]}}
    content = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
    return {"$array": about | {"base64": base64.b64encode(content.tobytes()).decode()}}


def read(hint: Any, data: Any) -> Any:
    """The value of this type that ``exact`` wrote (what ``plain`` wrote is read as far as it goes).

    Raises
    ------
    TypeError, ValueError, KeyError
        When the data do not fit the type.
    """
    data = _unmarked(data)
    hint = _without_alias(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return frozen(data)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, data)
    if origin is Literal:
        if data not in arguments:
            raise ValueError(f"{data!r} is none of {', '.join(map(repr, arguments))}")
        return data
    if origin in (np.ndarray,) or hint is np.ndarray:
        return _as_array(hint, data)
    if origin is not None and isinstance(origin, type):
        return _collection(origin, arguments, data)
    return _single(hint, data)


def _without_alias(hint: Any) -> Any:
    """What a name made by the ``type`` statement stands for, as NumPy's ``NDArray`` is one from Python 3.12 on."""
    while True:
        alias = getattr(get_origin(hint), "__value__", None)
        if alias is not None:
            hint = alias[get_args(hint)]
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def _single(hint: Any, data: Any) -> Any:
    if hint is type(None):
        if data is not None:
            raise ValueError(f"{data!r} where nothing belongs")
        return None
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(data, Mapping):
            raise TypeError(f"{type(data).__name__} where a {hint.__name__} belongs")
        known = _hints(hint)
        now = getattr(hint, "from_earlier", None)  # a class that had other fields in files of earlier versions
        data = data if now is None else now(data)
        return hint(**{name: read(kind, data[name]) for name, kind in known.items() if name in data})
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):  # a named tuple
        known = get_type_hints(hint)
        return hint(*(read(known[name], one) for name, one in zip(known, data, strict=True)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(data)
    if hint in (bool, str) or (isinstance(hint, type) and issubclass(hint, np.bool_)):
        if not isinstance(data, hint):
            raise TypeError(f"{data!r} where a {hint.__name__} belongs")
        return data
    if hint is float and data is None:
        return math.nan  # as ``plain`` writes it
    if isinstance(hint, type) and issubclass(hint, int | float | np.number):
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise TypeError(f"{data!r} where a number belongs")
        if hint is int and data != int(data):
            raise ValueError(f"{data!r} where a whole number belongs")
        return hint(data)  # type: ignore[arg-type]
    if hint is Path:
        return Path(data)
    if hint in (tuple, list, dict, set, frozenset):
        return hint(frozen(data).items() if hint is dict else frozen(data))
    raise TypeError(f"values of type {hint!r} cannot be read back")


def _collection(origin: type, arguments: tuple[Any, ...], data: Any) -> Any:
    if issubclass(origin, Mapping):
        key, value = arguments or (Any, Any)
        pairs = data.items()
        return {_key(key, k): read(value, v) for k, v in pairs}
    if not isinstance(data, list | tuple):
        raise TypeError(f"{type(data).__name__} where a list belongs")
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return tuple(read(kind, v) for kind, v in zip(arguments, data, strict=True))
    kind = arguments[0] if arguments else Any
    if issubclass(origin, set | frozenset | list):
        return origin(read(kind, v) for v in data)
    return tuple(read(kind, v) for v in data)


def _key(hint: Any, key: Any) -> Any:
    """Keys are text in JSON."""
    if hint is int and isinstance(key, str):
        return int(key)
    return key if hint is str else read(hint, key)


def _one_of(choices: tuple[Any, ...], data: Any) -> Any:
    if data is None and type(None) in choices:
        return None
    failures = []
    # text is read as text before anything that could be made of it, whole numbers before others, a list as a list:
    # what was an array is one again before it comes here
    known = isinstance(data, np.ndarray)
    plainest = (type(data), str, bool, int)
    for choice in sorted(choices, key=lambda c: (_is_array(c) is not known, *(c is not kind for kind in plainest))):
        if choice is type(None):
            continue
        try:
            return read(choice, data)
        except (TypeError, ValueError, KeyError) as error:
            failures.append(str(error))
    raise ValueError("; ".join(failures))


def _is_array(hint: Any) -> bool:
    hint = _without_alias(hint)
    return hint is np.ndarray or get_origin(hint) is np.ndarray


def _as_array(hint: Any, data: Any) -> np.ndarray[Any, Any]:
    if isinstance(data, np.ndarray):
        return data
    dtype = next((get_args(a)[0] for a in get_args(hint) if get_origin(a) is np.dtype), None)
    real = dtype if isinstance(dtype, type) and not issubclass(dtype, np.integer | np.bool_) else None
    array = np.array(data, dtype=dtype if real is None or dtype is Any else real)
    array.setflags(write=False)
    return array


def _unmarked(data: Any) -> Any:
    if not isinstance(data, dict) or len(data) != 1:
        return data
    ((mark, content),) = data.items()
    if mark == "$float":
        return float(content)
    if mark == "$pairs":
        return {read(Any, k): v for k, v in content}
    if mark != "$array":
        return data
    dtype, shape = np.dtype(content["dtype"]), tuple(content["shape"])
    if dtype.kind not in "biuf":
        raise TypeError(f"an array of {dtype} is none that is ever written")
    if "values" in content:
        array = np.array([_unmarked(v) for v in content["values"]], dtype=dtype).reshape(shape)
    else:
        raw = np.frombuffer(base64.b64decode(content["base64"]), dtype=dtype.newbyteorder("<"))
        array = raw.astype(dtype).reshape(shape)
    array.setflags(write=False)
    return array


@lru_cache(maxsize=256)
def _hints(kind: type) -> dict[str, Any]:
    """Types of the fields that ``__init__`` takes; a module must import at run time what its fields are declared as.

    What is too heavy for that the class gives by name in ``late_types``.
    """
    late = getattr(kind, "late_types", None)
    known = get_type_hints(kind, localns=None if late is None else late())
    return {f.name: known[f.name] for f in fields(kind) if f.init}


def frozen(value: Any) -> Any:
    """Free values as they come back from a file: lists as tuples, numpy's scalars as Python's, arrays read-only."""
    value = _unmarked(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.flags.writeable:
            value = value.copy()
            value.setflags(write=False)
        return value
    if isinstance(value, Mapping):
        return {k: frozen(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(frozen(v) for v in value)
    return value


def same(one: Any, other: Any) -> bool:
    """Equality that knows arrays, and in which NaN is itself."""
    if one is other:
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)):
            return False
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
    if isinstance(one, float | np.floating) and isinstance(other, float | np.floating):
        return bool(one == other or (math.isnan(one) and math.isnan(other)))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(v, other[k]) for k, v in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(same(a, b) for a, b in zip(one, other, strict=True))
    if is_dataclass(one) and is_dataclass(other) and not isinstance(one, type):
        if type(one) is not type(other):
            return False
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.compare)
    return bool(one == other)
