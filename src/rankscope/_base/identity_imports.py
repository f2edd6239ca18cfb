"""Digests of the user's modules that a function imports when it runs: their source, found but not run.

Whether such a module is loaded already must not matter, so its code is compiled and compared, and so is the code of the
modules of the user that it imports in turn.
"""

from __future__ import annotations

import dis
import functools
import importlib.machinery
import os
import pkgutil
import sys
import types
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from rankscope._base.digests import Walk, node, text
from rankscope._base.installed import code_is_installed

__all__ = ["ImportDigests", "imports_of"]


@functools.lru_cache(maxsize=4096)
def imports_of(code: types.CodeType) -> tuple[tuple[str, int, tuple[str, ...]], ...]:
    """Module, level of a relative import, and names that are taken from it, for every import in a piece of code."""
    found = []
    constants: list[object] = []
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME" and len(constants) >= 2:
            level, names = constants[-2:]
            taken = names if isinstance(names, tuple) else ()
            found.append((str(one.argval), level if isinstance(level, int) else 0, taken))
        if one.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants.append(one.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found += imports_of(constant)
    return tuple(found)


class ImportDigests(Walk):
    """Each module's source once."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[str, bytes] = {}

    def _code(self, code: types.CodeType) -> bytes:
        raise NotImplementedError

    def _imported(self, code: types.CodeType, package: str) -> list[bytes]:
        """Digests of what the code imports by itself; ``package`` is what its relative imports start from."""
        found = []
        for name, level, taken in imports_of(code):
            above = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            whole = ".".join([*above, *([name] if name else [])])
            parts = whole.split(".")
            # "import a.b" runs a and b, and so may "from a import b"
            names = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
            found += [self._source(one) for one in (*names, *(f"{whole}.{each}" for each in taken if each != "*"))]
        return found

    def _source(self, name: str) -> bytes:
        if name not in self._sources:
            self._sources[name] = b"within itself"
            self._sources[name] = self._found(name)
        return self._sources[name]

    def _found(self, name: str) -> bytes:
        spec = _spec(name)
        if spec is None:
            return b"none"
        file = spec.origin
        if file is None or spec.origin in ("built-in", "frozen") or code_is_installed(file):
            return node("installed", text(name), text(_version(name.partition(".")[0])))
        try:
            content = _content(spec, file)
            if not file.endswith(".py"):
                return node("file", text(name), content)
            code = compile(content, file, "exec", dont_inherit=True)
        except (OSError, SyntaxError, ValueError):
            return node("unreadable", text(name))
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        return node("source", text(name), self._code(code), *self._imported(code, package))


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module comes from, without importing the packages above it."""
    spec: importlib.machinery.ModuleSpec | None = None
    path = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        whole = ".".join(parts[:count])
        try:
            if count == 1 and importlib.machinery.BuiltinImporter.find_spec(whole) is not None:
                return importlib.machinery.ModuleSpec(whole, None, origin="built-in")
            spec = _found_in(whole, sys.path if path is None else path)
            if spec is None and count == 1:
                spec = _found_otherwise(whole)
        except (ImportError, ValueError, TypeError):
            return None
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            return None
    return spec


def _found_in(name: str, path: Iterable[str]) -> importlib.machinery.ModuleSpec | None:
    """What Python's own search of a path finds, which for a namespace needs the packages above it to be loaded."""
    portions: list[str] = []
    for entry in path:
        finder = pkgutil.get_importer(entry or os.getcwd())
        found = None if finder is None else finder.find_spec(name)
        if found is not None and found.loader is not None:
            return found
        portions += [] if found is None else found.submodule_search_locations or []
    if not portions:
        return None
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = portions
    return spec


def _found_otherwise(name: str) -> importlib.machinery.ModuleSpec | None:
    """What the finders find that an editable installation adds to those of Python."""
    for finder in sys.meta_path:
        if not str(getattr(finder, "__module__", "") or "").startswith("_frozen_importlib"):
            spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
            if spec is not None:
                return spec
    return None


def _content(spec: importlib.machinery.ModuleSpec, file: str) -> bytes:
    """The bytes of a module's file, which may be in an archive."""
    get_data = getattr(spec.loader, "get_data", None)
    return Path(file).read_bytes() if get_data is None else bytes(get_data(file))


def _version(top: str) -> str:
    try:
        return metadata.version(top)
    except (metadata.PackageNotFoundError, ValueError):
        return ""
