"""What a model or a data set is, as a digest: every value it holds and the code that works on them.

Two objects have the same digest when they compute the same from the same input: all bytes of tensors and arrays, plain
attributes, and the code of classes and functions with what that refers to. An installed package's code is its version.
An address, a device, random state, a lock, a cache or the training flag does not enter. A digest is built from
the digests of the parts, so that it does not depend on which of them are one object.
"""

from __future__ import annotations

import collections
import enum
import functools
import logging
import os
import random
import threading
import types
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from rankscope._base.digests import node, text
from rankscope._base.files import digest_of_tensors
from rankscope._base.identity_code import CodeDigests
from rankscope._base.identity_files import FileDigests
from rankscope._base.identity_objects import ObjectDigests

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
    """Identity of all values together; with ``files`` a text or path that names a file stands for its content too,
    and so does a name that exists below a folder which another text or path names.

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
    if below := walk.below() if files else b"":
        digest = node("with files", digest, below)
    if additions := walk.additions():
        digest = node("with additions", digest, additions)
    return Identity(digest.hex(), tuple(sorted(walk.unreadable)))


_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
_FEW = 64
_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)
_NO_CONTENT = ("_dynamo", "_is_hf_initialized", "_typed_storage")  # what torch and transformers note on a tensor
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
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
    weakref.WeakSet,
    logging.Logger,
    type(os.environ),
)


_OF_A_SHELL = ("_", "PWD", "OLDPWD", "SHLVL")  # these change from one command to the next


def _variable(name: str) -> bytes:
    """The value of the environment variable of that name, which code that holds the name may read."""
    value = None if name in _OF_A_SHELL else os.environ.get(name)
    return b"" if value is None else node("variable", text(value))


class _Walk(CodeDigests, ObjectDigests, FileDigests):
    """Digests by object; one that is met within itself is only marked."""

    def __init__(self, files: bool) -> None:
        super().__init__()
        self.files = files
        self._done: dict[int, bytes] = {}
        self._alive: list[Any] = []  # what was digested keeps its address
        self._open: set[int] = set()

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
            self._names_in_code.add(value)
            return node("str", text(value), self._content(value) if self.files else b"", _variable(value))
        return node(type(value).__name__, value if isinstance(value, bytes) else repr(value).encode())

    def _compute(self, value: Any) -> bytes:
        for kinds, make in self._MAKERS:
            if isinstance(value, kinds):
                return make(self, value)
        return self._object(value)

    def _skip(self, value: Any) -> bytes:
        return b"skipped"

    def _enum(self, value: enum.Enum) -> bytes:
        # the value apart: within its class, which a member refers to, a member is only marked
        return node("enum", self.of(value.name), self.of(value.value), self.of(type(value)))

    def _named(self, value: Any) -> bytes:
        return node(type(value).__name__, text(repr(value)))

    def _path(self, value: PurePath) -> bytes:
        return node("path", self.of(str(value)))

    def _tensor(self, value: torch.Tensor) -> bytes:
        if value.is_meta:
            return node("meta", repr((value.dtype, tuple(value.shape))).encode())
        if value.is_quantized:
            return node("quantized", self.of(value.int_repr()), self.of(value.dequantize()))
        if value.layout != torch.strided:
            plain = value.detach().to_sparse_coo().coalesce()
            return node("sparse", repr(tuple(value.shape)).encode(), self.of(plain.indices()), self.of(plain.values()))
        try:
            return node("tensor", digest_of_tensors([value]).encode(), self._beside(value, _TENSORS))
        except (RuntimeError, TypeError, ValueError):  # a subclass that wraps others
            return self._reduced(value)

    def _array(self, value: np.ndarray[Any, Any]) -> bytes:
        if value.dtype.hasobject or (self.files and value.dtype.kind in "SU"):
            return node("array", repr(value.shape).encode(), self.of(value.tolist()))
        if value.dtype.kind == "U":
            self._names_in_code.update(value.ravel().tolist())
        return node("array", digest_of_tensors([value]).encode(), self._beside(value, (np.ndarray, np.memmap)))

    def _beside(self, value: Any, plain: tuple[type, ...]) -> bytes:
        """What a subclass of tensors or arrays computes by itself, and attributes that were given to one."""
        own = {k: v for k, v in getattr(value, "__dict__", {}).items() if not k.startswith(_NO_CONTENT)}
        kind = type(value)
        if kind in plain:
            return node("attributes", self.of(own)) if own and kind is not np.memmap else b""
        return node("extra", self.of(kind), self.of(own))

    def _sequence(self, value: Any) -> bytes:
        if self.files and len(value) > _FEW:
            self._read_ahead(value)
        tag = "list" if isinstance(value, list) else type(value).__name__
        if len(value) > _FEW and all(type(v) in (int, bool, float, type(None)) for v in value):
            return node(tag, repr(list(value)).encode(), self._extra(value))
        return node(tag, *map(self.of, value), self._extra(value))

    def _set(self, value: Any) -> bytes:
        return node("set", *sorted(map(self.of, value)))

    def _mapping(self, value: Mapping[Any, Any]) -> bytes:
        # in their order, in which code may run through them
        pairs = [node("pair", self.of(k), self.of(v)) for k, v in value.items()]
        factory = getattr(value, "default_factory", None)
        return node("mapping", *pairs, self.of(factory), self._extra(value))

    def _extra(self, value: Any) -> bytes:
        """What a subclass of a container adds to it."""
        if type(value).__module__ in ("builtins", "collections"):
            return b""
        own = getattr(value, "__dict__", {})
        return node("extra", self.of(type(value)), self.of(dict(own)) if own else b"")

    _MAKERS: tuple[tuple[Any, Any], ...] = (
        (_SKIPPED, _skip),
        (weakref.ReferenceType, lambda self, v: node("weak", self.of(v()))),
        (enum.Enum, _enum),
        ((torch.dtype, torch.layout, torch.memory_format, torch.finfo, torch.iinfo), _named),
        ((np.dtype, np.generic, range, slice), _named),
        ((torch._ops.OpOverload, torch._ops.OpOverloadPacket), CodeDigests._overload),
        (torch._library.custom_ops.CustomOpDef, CodeDigests._operator),
        (PurePath, _path),
        (torch.Tensor, _tensor),
        (np.ndarray, _array),
        ((str, bytes, int, float, complex), lambda self, v: node("sub", self.of(type(v)), self._plain_of(v))),
        ((list, tuple, collections.deque), _sequence),
        ((set, frozenset), _set),
        ((dict, types.MappingProxyType, collections.abc.Mapping), _mapping),
        (types.ModuleType, CodeDigests._module),
        (types.FunctionType, CodeDigests._function),
        (types.MethodType, CodeDigests._method),
        (types.CodeType, CodeDigests._code),
        ((functools.cached_property, functools._lru_cache_wrapper), CodeDigests._cached),
        (functools.partial, CodeDigests._partial),
        ((staticmethod, classmethod), CodeDigests._wrapper),
        (property, CodeDigests._property),
        (type, CodeDigests._class),
        ((types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType), CodeDigests._builtin),
        ((types.MethodWrapperType, types.ClassMethodDescriptorType), CodeDigests._builtin),
        ((types.MemberDescriptorType, types.GetSetDescriptorType), CodeDigests._builtin),
        (nn.Module, ObjectDigests._network),
    )

    def _plain_of(self, value: Any) -> bytes:
        bases: tuple[Any, ...] = (str, bytes, int, float, complex)
        base = next(kind for kind in bases if isinstance(value, kind))
        return self._plain(base(value))
