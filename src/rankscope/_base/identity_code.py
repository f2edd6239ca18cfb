"""Digests of code: functions and classes with what they refer to; an installed package's code is its version."""

from __future__ import annotations

import ctypes
import datetime
import dis
import functools
import sys
import types
from collections.abc import Collection, Mapping
from typing import Any

from rankscope._base.class_bodies import was_added
from rankscope._base.digests import node, text
from rankscope._base.identity_imports import ImportDigests
from rankscope._base.identity_operators import OperatorDigests
from rankscope._base.installed import code_is_installed, installed_name, module_version

__all__ = ["CodeDigests"]

_BOILERPLATE = {
    "__abstractmethods__", "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__",
    "__dataclass_fields__", "__dataclass_params__", "__dict__", "__doc__", "__firstlineno__", "__match_args__",
    "__module__", "__orig_bases__", "__parameters__", "__qualname__", "__slotnames__", "__static_attributes__",
    "__weakref__", "_abc_impl", "_autograd_function_id", "_backward_cls", "_compiled_autograd_key",
}  # fmt: skip
_CAPSULE = type(datetime.datetime_CAPI)
_name_of_capsule = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR"}
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
# what Python calls for errors, warnings and prompts: notebooks, debuggers and process groups put theirs there
_OF_A_SESSION = {
    "sys": {"breakpointhook", "displayhook", "excepthook", "unraisablehook", "__interactivehook__"},
    "threading": {"excepthook"},
    "inspect": {"getfile"},  # torch.package
    "os": {"putenv", "unsetenv"},  # torch's lock around them
    "warnings": {"formatwarning", "showwarning", "_showwarnmsg", "_showwarnmsg_impl"},
}
_BY_NAME = {"getattr", "vars", "eval", "exec", "globals"}  # what these take has its name in no instruction


class CodeDigests(ImportDigests, OperatorDigests):
    """Modules, functions, methods, classes."""

    def __init__(self) -> None:
        super().__init__()
        self._patches: dict[str, bytes] = {}
        self._additions: dict[str, set[bytes]] = {}  # by name, one for each class that has it
        self._names_in_code: set[str] = set()  # that the user's code takes, and every text, which it may take as a name
        self._within: set[int] = set()  # modules of the user's own whose attributes are being read

    def _module(self, value: types.ModuleType) -> bytes:
        """A module as a value, from which anything may be taken."""
        version = module_version(value.__name__)
        if version is not None:
            return node("module", text(value.__name__), text(version))
        return self._taken(value, vars(value).keys())

    def _taken(self, value: types.ModuleType, attributes: Collection[str]) -> bytes:
        """A module of the user's own as far as code takes these attributes of it, or of a module within it."""
        key = id(value)
        if key in self._within:
            return b"within itself"
        self._within.add(key)
        try:
            parts = []
            for name in sorted(attributes & vars(value).keys()):
                if name.startswith("__") and name.endswith("__"):
                    continue
                one = vars(value)[name]
                parts.append(node(name, self._taken(one, attributes) if _is_own(one) else self._member(one)))
            return node("own module", text(value.__name__), *parts)
        finally:
            self._within.discard(key)

    def _member(self, value: Any) -> bytes:
        """What a module or class has under a name. A pointer there is to compiled code; elsewhere it may be to data."""
        if type(value) is _CAPSULE:
            return node("compiled code", _name_of_capsule(value) or b"")
        return self.of(value)

    def _patched(self, value: types.ModuleType, attributes: Collection[str] | None = None) -> list[bytes]:
        """What took the place of an installed module's functions: the user's, and those of another name."""
        there = vars(value)
        names = set(there if attributes is None else attributes & there.keys()) - _OF_A_SESSION.get(
            value.__name__, set()
        )
        return [node(name, self._put(there[name])) for name in sorted(names) if _is_put(name, there[name])]

    def _put(self, value: Any) -> bytes:
        """An installed function by its name alone, for what it refers to is what its package made of it."""
        if isinstance(value, _FUNCTIONS) and not _is_users(value):
            return node("alias", text(f"{getattr(value, '__module__', '')}.{value.__qualname__}"))
        return self.of(value)

    def _patched_around(self, name: str) -> bytes:
        """The same for the module that defines an installed class, and the modules that this one works with."""
        if name not in self._patches:
            self._patches[name] = b"within itself"
            module = sys.modules.get(name)
            known = [] if module is None else [one for one in vars(module).values() if _is_installed(one)]
            around = {one.__name__: one for one in (*known, *([] if module is None else [module]))}
            found = [node(key, *each) for key in sorted(around) if (each := self._patched(around[key]))]
            self._patches[name] = node("patched", *found) if found else b""
        return self._patches[name]

    def _function(self, value: types.FunctionType) -> bytes:
        name = installed_name(value)
        if name is not None and code_is_installed(value.__code__.co_filename):
            return node("installed", text(name))
        cells = [self._cell(cell) for cell in value.__closure__ or ()]
        known = self._globals(value.__code__, value.__globals__)
        known += self._imported(value.__code__, _package(value.__globals__))
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

    def additions(self) -> bytes:
        """Of what packages added to classes of others, as transformers does to ``nn.Module``, what code here takes."""
        found = [
            node(name, *sorted(self._additions[name])) for name in sorted(self._additions.keys() & self._names_in_code)
        ]
        return node("additions", *found) if found else b""

    def _code(self, code: types.CodeType) -> bytes:
        self._names_in_code.update(code.co_names)
        constants = [self._code(c) if isinstance(c, types.CodeType) else self.of(c) for c in code.co_consts]
        names = (code.co_names, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], code.co_freevars)
        table = getattr(code, "co_exceptiontable", b"")
        return node("code", code.co_code, table, repr((names, code.co_flags)).encode(), *constants)

    def _globals(self, code: types.CodeType, known: Mapping[str, Any]) -> list[bytes]:
        """What the code refers to by name; of a module of the user's own, the attributes that it may take."""
        names, attributes = _names(code)
        if _BY_NAME & names or "__dict__" in attributes:
            dynamic = {"eval", "exec", "globals"} & names
            names = names | {name for name in known if not name.startswith("__")} if dynamic else names
            attributes = attributes | {
                taken for value in known.values() if _is_own(value) for taken in vars(value)
            }  # fmt: skip
        found = self._operators(attributes)
        for name in sorted(names & known.keys()):
            value = known[name]
            if _is_own(value):
                found.append(node("global", text(name), self._taken(value, attributes)))
                continue
            patched = self._patched(value, attributes) if isinstance(value, types.ModuleType) else []
            found.append(node("global", text(name), self._member(value), *patched))
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
            return node("installed", text(name), *self._put_into(value), self._patched_around(value.__module__))
        parts = [
            node(key, self._member(one))
            for key, one in sorted(vars(value).items())
            if key not in _BOILERPLATE and not isinstance(one, types.MemberDescriptorType | types.GetSetDescriptorType)
        ]
        return node("own class", text(value.__qualname__), *parts)

    def _put_into(self, value: type) -> list[bytes]:
        """What took the place of an installed class's methods; what an installed package added is kept apart."""
        patched = []
        for name, one in sorted(vars(value).items()):
            if not _is_put(name, one, value):
                continue
            if isinstance(one, _FUNCTIONS) and not _is_users(one) and was_added(value, name):
                whole = f"{value.__module__}.{value.__qualname__}"
                self._additions.setdefault(name, set()).add(node(whole, self._put(one)))
            else:
                patched.append(node(name, self._put(one)))
        return patched


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


def _package(known: Mapping[str, Any]) -> str:
    """The package that relative imports of a file start from."""
    found = known.get("__package__")
    if isinstance(found, str):
        return found
    name = str(known.get("__name__", ""))
    return name if "__path__" in known else name.rpartition(".")[0]


def _is_own(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and module_version(value.__name__) is None


def _is_installed(value: Any) -> bool:
    return isinstance(value, types.ModuleType) and module_version(value.__name__) is not None


def _is_put(name: str, value: Any, owner: type | None = None) -> bool:
    """Whether what an installed module or class has under a name is the user's, or a function of another name."""
    kind = type(value)  # asked by type: some objects of torch warn when they are asked for their class
    if issubclass(kind, _FUNCTIONS):
        whole = name if owner is None else f"{owner.__qualname__}.{name}"
        # not __name__: functools.total_ordering renames functions of functools itself, wherever a class uses it
        other = (value.__qualname__.rpartition(".")[2] if owner is None else value.__qualname__) != whole
        # torch.compile puts functions of its own into nn.Module, which compute nothing
        return _is_users(value) or (other and not str(value.__module__).startswith("torch._dynamo."))
    if issubclass(kind, functools.partial):
        return _is_put(getattr(value.func, "__name__", ""), value.func)
    if issubclass(kind, type | types.ModuleType):
        return False
    return module_version(kind.__module__) is None and callable(value)


def _is_users(function: Any) -> bool:
    """Whether a function was put into an installed class by code that is not installed."""
    if not isinstance(function, types.FunctionType):
        return False
    file = function.__code__.co_filename
    return not file.startswith("<") and not code_is_installed(file) and module_version(function.__module__) is None
