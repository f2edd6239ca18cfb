"""Digests of code: functions and classes with what they refer to; an installed package's code is its version."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Mapping
from typing import Any

from rankscope._base.digests import Walk, node, text
from rankscope._base.installed import code_is_installed, installed_name, module_version

__all__ = ["CodeDigests"]

_BOILERPLATE = {
    "__abstractmethods__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__match_args__",
    "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__slotnames__", "__static_attributes__",
    "__weakref__", "_abc_impl", "_autograd_function_id", "_backward_cls", "_compiled_autograd_key",
}  # fmt: skip
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR"}


class CodeDigests(Walk):
    """Modules, functions, methods, classes."""

    def _module(self, value: types.ModuleType) -> bytes:
        return node("module", text(value.__name__), text(module_version(value.__name__) or ""))

    def _function(self, value: types.FunctionType) -> bytes:
        name = installed_name(value)
        if name is not None and code_is_installed(value.__code__.co_filename):
            return node("installed", text(name))
        cells = [self._cell(cell) for cell in value.__closure__ or ()]
        known = self._globals(value.__code__, value.__globals__)
        own = {k: v for k, v in vars(value).items() if k != "__wrapped__"}
        return node(
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
        return node("code", code.co_code, table, repr((names, code.co_flags)).encode(), *constants)

    def _globals(self, code: types.CodeType, known: Mapping[str, Any]) -> list[bytes]:
        """What the code refers to by name; of a module of the user's own, the attributes that it may take."""
        names, attributes = _names(code)
        found = []
        for name in sorted(names & known.keys()):
            value = known[name]
            parts = [text(name), self.of(value)]
            if isinstance(value, types.ModuleType) and module_version(value.__name__) is None:
                taken = sorted(attributes & vars(value).keys())
                parts += [node(one, self.of(vars(value)[one])) for one in taken]
            found.append(node("global", *parts))
        return found

    def _method(self, value: types.MethodType) -> bytes:
        return node("method", self.of(value.__func__), self.of(value.__self__))

    def _builtin(self, value: Any) -> bytes:
        owner = getattr(value, "__self__", None)
        bound = b"" if owner is None or isinstance(owner, types.ModuleType) else self.of(owner)
        version = module_version(str(getattr(value, "__module__", None) or "")) or ""
        return node("builtin", text(version), text(getattr(value, "__qualname__", value.__name__)), bound)

    def _partial(self, value: functools.partial[Any]) -> bytes:
        return node("partial", self.of(value.func), self.of(value.args), self.of(value.keywords))

    def _wrapper(self, value: Any) -> bytes:
        return node("wrapper", self.of(value.__func__))

    def _property(self, value: property) -> bytes:
        return node("property", self.of(value.fget), self.of(value.fset), self.of(value.fdel))

    def _cached(self, value: Any) -> bytes:
        return node("cached", self.of(getattr(value, "func", None) or value.__wrapped__))

    def _class(self, value: type) -> bytes:
        return node("class", *(self._one_class(each) for each in value.__mro__ if each is not object))

    def _one_class(self, value: type) -> bytes:
        name = installed_name(value)
        if name is not None:
            patched = [
                node(key, self.of(one))
                for key, one in sorted(vars(value).items())
                if isinstance(one, types.FunctionType) and _is_users(one)
            ]
            return node("installed", text(name), *patched)
        parts = [
            node(key, self.of(one))
            for key, one in sorted(vars(value).items())
            if key not in _BOILERPLATE and not isinstance(one, types.MemberDescriptorType | types.GetSetDescriptorType)
        ]
        return node("own class", text(value.__qualname__), *parts)


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
