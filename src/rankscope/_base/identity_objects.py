"""Digests of objects: networks, tables, and whatever has attributes or can be pickled."""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rankscope._base.digests import Walk, node, text
from rankscope._base.identity_files import FileDigests

__all__ = ["HOOKS", "ObjectDigests"]

HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)  # may change what it computes
_MODULE_ONLY = {  # of every nn.Module: bookkeeping and flags, and hooks, whose numbers differ between two runs
    *vars(nn.Module()),
    "_is_hf_initialized",
    "_old_forward",
} - {"_parameters", "_buffers", "_modules"}


class ObjectDigests(Walk):
    """Objects by their attributes; ``unreadable`` are the types of those whose content could not be read."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[str] = set()

    def _network(self, value: nn.Module) -> bytes:
        hooks = [self.of(list(vars(value).get(name, {}).values())) for name in HOOKS if vars(value).get(name)]
        if isinstance(value, torch.jit.ScriptModule):
            state = [(name, tensor) for name, tensor in value.state_dict().items()]
            return node("script", text(str(getattr(value, "inlined_graph", ""))), self.of(state), *hooks)
        attributes = {k: v for k, v in vars(value).items() if k not in _MODULE_ONLY and not _is_cache(value, k)}
        return node("network", self.of(type(value)), self._attributes(attributes), *hooks)

    def _attributes(self, attributes: Mapping[str, Any]) -> bytes:
        return node("attributes", *(node(str(k), self.of(attributes[k])) for k in sorted(attributes, key=str)))

    def _object(self, value: Any) -> bytes:
        kind = type(value)
        package = kind.__module__.partition(".")[0]
        if package in ("pandas", "pyarrow", "datasets"):
            known = self._table(value)
            if known is not None:
                return known
        if hasattr(value, "__array_interface__"):  # a picture
            colours = getattr(value, "getpalette", lambda: None)()
            meaning = (getattr(value, "mode", None), colours, getattr(value, "info", None))
            return node("array-like", self.of(kind), self.of(np.asarray(value)), self.of(meaning))
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
        return node(
            "object",
            self.of(kind),
            self._attributes({k: v for k, v in attributes.items() if not _is_cache(value, k)}),
        )

    def _table(self, value: Any) -> bytes | None:
        """Tables of pandas, pyarrow and Hugging Face, of which only the content counts."""
        kind = type(value).__name__
        if kind in ("DataFrame", "Series", "Index", "RangeIndex") and hasattr(value, "to_numpy"):
            if kind != "DataFrame":
                return node(kind, text(str(value.dtype)), self.of(value.to_numpy()))
            columns = [node(str(c), self.of(value[c])) for c in value.columns]
            return node(kind, self.of(value.index), *columns)
        if hasattr(value, "combine_chunks") and hasattr(value, "columns"):
            columns = [self.of(column) for column in value.columns]
            return node("table", self.of([str(n) for n in value.column_names]), *columns)
        if hasattr(value, "chunks"):
            return node("chunks", *map(self.of, value.chunks))
        if hasattr(value, "buffers") and hasattr(value, "offset"):
            buffers = [b"" if b is None else memoryview(b) for b in value.buffers()]
            digests = [hashlib.blake2b(b, digest_size=16).digest() for b in buffers]
            return node("chunk", repr((str(value.type), value.offset, len(value))).encode(), *digests)
        if hasattr(value, "_format_kwargs") and hasattr(value, "_data"):
            view = ("_format_type", "_format_kwargs", "_format_columns", "_output_all_columns")
            tables = [getattr(getattr(value, name, None), "table", None) for name in ("_data", "_indices")]
            return node("rows", *map(self.of, tables), *(self.of(getattr(value, name)) for name in view))
        return None

    def _reduced(self, value: Any) -> bytes:
        """An object of an extension, as what it would be pickled as."""
        file = _file_of(value)
        if file is not None:
            return node("file", text(str(getattr(value, "name", ""))), FileDigests.hashed(file))
        try:
            made = value.__reduce_ex__(4)
        except Exception:  # whatever an extension raises
            made = None
        if isinstance(made, str):
            return node("global", self.of(type(value)), text(made))
        if not isinstance(made, tuple):
            kind = type(value)
            self.unreadable.add(f"{kind.__module__}.{kind.__qualname__}")
            return node("unreadable", text(kind.__qualname__))
        rest = [None if part is None else list(part) for part in made[3:5]]
        return node("reduced", *(self.of(part) for part in (*made[:3], *rest)))


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
