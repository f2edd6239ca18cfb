"""What a model or a data set is, as a digest: every value it holds and the code that works on them.

Two objects have the same digest when they compute the same from the same input: all bytes of tensors and arrays, plain
attributes, and the code of classes and functions with what that refers to. An installed package's code is its version.
An address, a device, random state, a lock, a hook, a cache or the training flag does not enter. A digest is built from
the digests of the parts, so that it does not depend on which of them are one object.
"""

from __future__ import annotations

import collections
import dis
import enum
import functools
import hashlib
import io
import logging
import os
import random
import threading
import types
import uuid
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from rankscope._base.files import digest_of_file, digest_of_tensors
from rankscope._base.installed import code_is_installed, installed_name, module_version

__all__ = ["Identity", "identity_of"]


@dataclass(frozen=True)
class Identity:
    """The digest, and the types of the values whose content could not be read (then nothing may be taken as equal)."""

    digest: str
    unreadable: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Text that equals that of the same object in another run; of what could not be read, of no other run."""
        return f"not comparable {uuid.uuid4().hex}" if self.unreadable else self.digest


def identity_of(*values: Any, files: bool = False) -> Identity:
    """Identity of all values together; with ``files`` a text or path that names a file stands for its content too.

    >>> identity_of([1, 2.0, "a"]) == identity_of([1, 2.0, "a"]), identity_of(1) == identity_of(1.0)
    (True, False)
    >>> k = 2
    >>> identity_of(lambda x: x * k) == identity_of(lambda x: x + k)
    False
    """
    walk = _Walk(files)
    try:
        digest = walk.of(tuple(values))
    except RecursionError:
        return Identity("", ("a structure that is nested too deeply",))
    return Identity(digest.hex(), tuple(sorted(walk.unreadable)))


_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
_FEW = 64
# state of a run, not of a function
_SKIPPED: tuple[type, ...] = (
    torch.device,
    torch.Generator,
    torch.Stream,
    torch.Event,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Thread,
    threading.local,
    threading.Event,
    threading.Condition,
    weakref.ReferenceType,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    logging.Logger,
)
_BOILERPLATE = {
    "__abstractmethods__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__match_args__",
    "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__slotnames__", "__static_attributes__",
    "__weakref__", "_abc_impl", "_autograd_function_id", "_backward_cls", "_compiled_autograd_key",
}  # fmt: skip
_MODULE_ONLY = {  # of every nn.Module: bookkeeping, hooks and flags
    *vars(nn.Module()),
    "_is_hf_initialized",
    "_old_forward",
} - {"_parameters", "_buffers", "_modules"}
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR"}


def _node(tag: str, *parts: bytes) -> bytes:
    total = hashlib.blake2b(tag.encode("utf-8", "surrogatepass"), digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


class _Walk:
    """Digests by object; one that is met within itself is only marked."""

    def __init__(self, files: bool) -> None:
        self.files = files
        self.unreadable: set[str] = set()
        self._done: dict[int, bytes] = {}
        self._alive: list[Any] = []  # what was digested keeps its address
        self._open: set[int] = set()
        self._contents: dict[str, bytes] = {}

    def of(self, value: Any) -> bytes:
        kind = type(value)
        if kind in _PLAIN:
            return self._plain(value)
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return b"within itself"
        self._open.add(key)
        try:
            made = self._compute(value)
        finally:
            self._open.discard(key)
        self._done[key] = made
        self._alive.append(value)
        return made

    def _plain(self, value: Any) -> bytes:
        if isinstance(value, str):
            return _node("str", _text(value), self._content(value) if self.files else b"")
        return _node(type(value).__name__, value if isinstance(value, bytes) else repr(value).encode())

    def _compute(self, value: Any) -> bytes:
        for kinds, make in self._MAKERS:
            if isinstance(value, kinds):
                return make(self, value)
        return self._object(value)

    # ---- values ------------------------------------------------------------------------------------------------------

    def _skip(self, value: Any) -> bytes:
        return b"skipped"

    def _enum(self, value: enum.Enum) -> bytes:
        return _node("enum", self.of(type(value).__qualname__), self.of(value.name))

    def _named(self, value: Any) -> bytes:
        return _node(type(value).__name__, _text(repr(value)))

    def _path(self, value: PurePath) -> bytes:
        return _node("path", self.of(str(value)))

    def _tensor(self, value: torch.Tensor) -> bytes:
        if value.is_meta:
            return _node("meta", repr((value.dtype, tuple(value.shape))).encode())
        if value.is_quantized:
            return _node("quantized", self.of(value.int_repr()), self.of(value.dequantize()))
        if value.layout != torch.strided:
            plain = value.detach().to_sparse_coo().coalesce()
            return _node("sparse", repr(tuple(value.shape)).encode(), self.of(plain.indices()), self.of(plain.values()))
        try:
            return _node("tensor", digest_of_tensors([value]).encode())
        except (RuntimeError, TypeError, ValueError):  # a subclass that wraps others
            return self._reduced(value)

    def _array(self, value: np.ndarray[Any, Any]) -> bytes:
        if value.dtype.hasobject or (self.files and value.dtype.kind in "SU"):
            return _node("array", repr(value.shape).encode(), self.of(value.tolist()))
        return _node("array", digest_of_tensors([value]).encode())

    def _sequence(self, value: Any) -> bytes:
        if self.files and len(value) > _FEW:
            self._read_ahead(value)
        tag = "list" if isinstance(value, list) else type(value).__name__
        if len(value) > _FEW and all(type(v) in (int, bool, float, type(None)) for v in value):
            return _node(tag, repr(list(value)).encode(), self._extra(value))
        return _node(tag, *map(self.of, value), self._extra(value))

    def _set(self, value: Any) -> bytes:
        return _node("set", *sorted(map(self.of, value)))

    def _mapping(self, value: Mapping[Any, Any]) -> bytes:
        pairs = sorted(_node("pair", self.of(k), self.of(v)) for k, v in value.items())
        factory = getattr(value, "default_factory", None)
        return _node("mapping", *pairs, self.of(factory), self._extra(value))

    def _extra(self, value: Any) -> bytes:
        """What a subclass of a container adds to it."""
        if type(value).__module__ in ("builtins", "collections"):
            return b""
        own = getattr(value, "__dict__", {})
        return _node("extra", self.of(type(value)), self.of(dict(own)) if own else b"")

    # ---- code --------------------------------------------------------------------------------------------------------

    def _module(self, value: types.ModuleType) -> bytes:
        return _node("module", _text(value.__name__), _text(module_version(value.__name__) or ""))

    def _function(self, value: types.FunctionType) -> bytes:
        name = installed_name(value)
        if name is not None and code_is_installed(value.__code__.co_filename):
            return _node("installed", _text(name))
        cells = [self._cell(cell) for cell in value.__closure__ or ()]
        known = self._globals(value.__code__, value.__globals__)
        own = {k: v for k, v in vars(value).items() if k != "__wrapped__"}
        return _node(
            "function", self._code(value.__code__), self.of(value.__defaults__), self.of(value.__kwdefaults__),
            *cells, *known, self.of(own) if own else b"",
        )  # fmt: skip

    def _cell(self, cell: Any) -> bytes:
        try:
            return self.of(cell.cell_contents)
        except ValueError:
            return b"empty"

    def _code(self, code: types.CodeType) -> bytes:
        constants = [self._code(c) if isinstance(c, types.CodeType) else self.of(c) for c in code.co_consts]
        names = (code.co_names, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], code.co_freevars)
        table = getattr(code, "co_exceptiontable", b"")
        return _node("code", code.co_code, table, repr((names, code.co_flags)).encode(), *constants)

    def _globals(self, code: types.CodeType, known: Mapping[str, Any]) -> list[bytes]:
        """What the code refers to by name; of a module of the user's own, the attributes that it may take."""
        names, attributes = _names(code)
        found = []
        for name in sorted(names & known.keys()):
            value = known[name]
            parts = [_text(name), self.of(value)]
            if isinstance(value, types.ModuleType) and module_version(value.__name__) is None:
                taken = sorted(attributes & vars(value).keys())
                parts += [_node(one, self.of(vars(value)[one])) for one in taken]
            found.append(_node("global", *parts))
        return found

    def _method(self, value: types.MethodType) -> bytes:
        return _node("method", self.of(value.__func__), self.of(value.__self__))

    def _builtin(self, value: Any) -> bytes:
        owner = getattr(value, "__self__", None)
        bound = b"" if owner is None or isinstance(owner, types.ModuleType) else self.of(owner)
        version = module_version(str(getattr(value, "__module__", None) or "")) or ""
        return _node("builtin", _text(version), _text(getattr(value, "__qualname__", value.__name__)), bound)

    def _partial(self, value: functools.partial[Any]) -> bytes:
        return _node("partial", self.of(value.func), self.of(value.args), self.of(value.keywords))

    def _wrapper(self, value: Any) -> bytes:
        return _node("wrapper", self.of(value.__func__))

    def _property(self, value: property) -> bytes:
        return _node("property", self.of(value.fget), self.of(value.fset), self.of(value.fdel))

    def _cached(self, value: Any) -> bytes:
        return _node("cached", self.of(getattr(value, "func", None) or value.__wrapped__))

    def _class(self, value: type) -> bytes:
        return _node("class", *(self._one_class(each) for each in value.__mro__ if each is not object))

    def _one_class(self, value: type) -> bytes:
        name = installed_name(value)
        if name is not None:
            patched = [
                _node(key, self.of(one))
                for key, one in sorted(vars(value).items())
                if isinstance(one, types.FunctionType) and _is_users(one)
            ]
            return _node("installed", _text(name), *patched)
        parts = [
            _node(key, self.of(one))
            for key, one in sorted(vars(value).items())
            if key not in _BOILERPLATE and not isinstance(one, types.MemberDescriptorType | types.GetSetDescriptorType)
        ]
        return _node("own class", _text(value.__qualname__), *parts)

    # ---- objects -----------------------------------------------------------------------------------------------------

    def _network(self, value: nn.Module) -> bytes:
        if isinstance(value, torch.jit.ScriptModule):
            state = [(name, tensor) for name, tensor in value.state_dict().items()]
            return _node("script", _text(str(getattr(value, "inlined_graph", ""))), self.of(state))
        attributes = {k: v for k, v in vars(value).items() if k not in _MODULE_ONLY and not _is_cache(value, k)}
        return _node("network", self.of(type(value)), self._attributes(attributes))

    def _attributes(self, attributes: Mapping[str, Any]) -> bytes:
        return _node("attributes", *(_node(str(k), self.of(attributes[k])) for k in sorted(attributes, key=str)))

    def _object(self, value: Any) -> bytes:
        kind = type(value)
        package = kind.__module__.partition(".")[0]
        if package in ("pandas", "pyarrow", "datasets"):
            known = self._table(value)
            if known is not None:
                return known
        if hasattr(value, "__array_interface__"):  # a picture
            return _node("array-like", self.of(kind), self.of(np.asarray(value)))
        slots = {
            name: getattr(value, name)
            for each in kind.__mro__
            for name in _slots(each)
            if name not in ("__dict__", "__weakref__") and hasattr(value, name)
        }
        own = getattr(value, "__dict__", None)
        if (own is None and not slots) or _has_more(value):
            return self._reduced(value)
        attributes = {**(own or {}), **slots}
        return _node(
            "object",
            self.of(kind),
            self._attributes({k: v for k, v in attributes.items() if not _is_cache(value, k)}),
        )

    def _table(self, value: Any) -> bytes | None:
        """Tables of pandas, pyarrow and Hugging Face, of which only the content counts."""
        kind = type(value).__name__
        if kind in ("DataFrame", "Series", "Index", "RangeIndex") and hasattr(value, "to_numpy"):
            if kind != "DataFrame":
                return _node(kind, _text(str(value.dtype)), self.of(value.to_numpy()))
            columns = [_node(str(c), self.of(value[c])) for c in value.columns]
            return _node(kind, self.of(value.index), *columns)
        if hasattr(value, "combine_chunks") and hasattr(value, "columns"):
            columns = [self.of(column) for column in value.columns]
            return _node("table", self.of([str(n) for n in value.column_names]), *columns)
        if hasattr(value, "chunks"):
            return _node("chunks", *map(self.of, value.chunks))
        if hasattr(value, "buffers") and hasattr(value, "offset"):
            buffers = [b"" if b is None else memoryview(b) for b in value.buffers()]
            digests = [hashlib.blake2b(b, digest_size=16).digest() for b in buffers]
            return _node("chunk", repr((str(value.type), value.offset, len(value))).encode(), *digests)
        if hasattr(value, "_format_kwargs") and hasattr(value, "_data"):
            view = ("_format_type", "_format_kwargs", "_format_columns", "_output_all_columns")
            tables = [getattr(getattr(value, name, None), "table", None) for name in ("_data", "_indices")]
            return _node("rows", *map(self.of, tables), *(self.of(getattr(value, name)) for name in view))
        return None

    def _reduced(self, value: Any) -> bytes:
        """An object of an extension, as what it would be pickled as."""
        file = _file_of(value)
        if file is not None:
            return _node("file", _text(str(getattr(value, "name", ""))), self._hashed(file))
        try:
            made = value.__reduce_ex__(4)
        except Exception:  # whatever an extension raises
            made = None
        if isinstance(made, str):
            return _node("global", self.of(type(value)), _text(made))
        if not isinstance(made, tuple):
            kind = type(value)
            self.unreadable.add(f"{kind.__module__}.{kind.__qualname__}")
            return _node("unreadable", _text(kind.__qualname__))
        rest = [None if part is None else list(part) for part in made[3:5]]
        return _node("reduced", *(self.of(part) for part in (*made[:3], *rest)))

    # ---- files -------------------------------------------------------------------------------------------------------

    def _content(self, text: str) -> bytes:
        """Digest of the file that a text names; nothing where it names none."""
        if not 0 < len(text) < 4096 or "\0" in text or ("/" not in text and "." not in text and os.sep not in text):
            return b""
        if text not in self._contents:
            self._contents[text] = self._hashed(text) if os.path.isfile(text) else b""
        return self._contents[text]

    @staticmethod
    def _hashed(file: str) -> bytes:
        try:
            return digest_of_file(file).encode()
        except OSError:
            return b"unreadable"  # met, named and skipped where it is used

    def _read_ahead(self, values: Iterable[Any]) -> None:
        """Digest the files that a long list names, several at once."""
        texts = {
            one
            for value in values
            for one in (value if isinstance(value, tuple | list) else (value,))
            if isinstance(one, str)
        }
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            list(pool.map(self._content, texts))

    _MAKERS: tuple[tuple[Any, Any], ...] = (
        (_SKIPPED, _skip),
        (enum.Enum, _enum),
        ((torch.dtype, torch.layout, torch.memory_format, torch.finfo, torch.iinfo), _named),
        ((np.dtype, np.generic, range, slice, torch._ops.OpOverload, torch._ops.OpOverloadPacket), _named),
        (PurePath, _path),
        (torch.Tensor, _tensor),
        (np.ndarray, _array),
        ((str, bytes, int, float, complex), lambda self, v: _node("sub", self.of(type(v)), self._plain_of(v))),
        ((list, tuple, collections.deque), _sequence),
        ((set, frozenset), _set),
        ((dict, types.MappingProxyType, collections.abc.Mapping), _mapping),
        (types.ModuleType, _module),
        (types.FunctionType, _function),
        (types.MethodType, _method),
        (types.CodeType, _code),
        ((functools.cached_property, functools._lru_cache_wrapper), _cached),
        (functools.partial, _partial),
        ((staticmethod, classmethod), _wrapper),
        (property, _property),
        (type, _class),
        ((types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType), _builtin),
        ((types.MethodWrapperType, types.ClassMethodDescriptorType), _builtin),
        ((types.MemberDescriptorType, types.GetSetDescriptorType), _builtin),
        (nn.Module, _network),
    )

    def _plain_of(self, value: Any) -> bytes:
        bases: tuple[Any, ...] = (str, bytes, int, float, complex)
        base = next(kind for kind in bases if isinstance(value, kind))
        return self._plain(base(value))


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Names that code looks up outside itself, and attributes that it takes."""
    names: set[str] = set()
    attributes: set[str] = set()
    for one in dis.get_instructions(code):
        if one.opname in _GLOBAL:
            names.add(str(one.argval))
        elif one.opname in _ATTRIBUTE:
            attributes.add(str(one.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            below = _names(constant)
            names |= below[0]
            attributes |= below[1]
    return frozenset(names), frozenset(attributes)


def _is_users(function: types.FunctionType) -> bool:
    """Whether a function was put into an installed class by code that is not installed."""
    file = function.__code__.co_filename
    return not file.startswith("<") and not code_is_installed(file) and module_version(function.__module__) is None


def _is_cache(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), name, None), functools.cached_property)


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    names = (found,) if isinstance(found, str) else tuple(found)
    return tuple(
        f"_{kind.__name__.lstrip('_')}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names
    )


def _has_more(value: Any) -> bool:
    """Whether an object holds what its attributes do not show: Python refuses to pickle such by default."""
    try:
        object.__reduce_ex__(value, 4)
    except TypeError:
        return True
    except Exception:  # whatever a pickling method of its own raises
        return False
    return False


def _file_of(value: Any) -> str | None:
    """The file that an open file stands for."""
    if isinstance(value, io.IOBase):
        name = getattr(value, "name", None)
    else:
        name = getattr(value, "filename", None) or getattr(getattr(value, "file", None), "filename", None)
    return str(name) if isinstance(name, str | Path) and os.path.isfile(name) else None
