"""Which names the source of an installed class gives it, apart from those that others add to it at run time."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator

__all__ = ["was_added"]

_DYNAMIC = {"globals", "locals", "vars", "setattr", "exec"}  # with these a source may give any name
_Names = frozenset[str]


def was_added(owner: type, name: str) -> bool:
    """Whether neither a class nor one that it inherits from has a name by its own source; unsure is no.

    Nothing of the class's own package asks for such a name, and Python itself asks for none but ``__names__``.

    >>> was_added(functools.partialmethod, "_make_unbound_method"), was_added(functools.partialmethod, "helper")
    (False, True)
    """
    if name.startswith("__") and name.endswith("__"):
        return False
    return not any(_gives(each, name) for each in owner.__mro__ if each is not object)


def _gives(owner: type, name: str) -> bool:
    source = _source(owner.__module__)
    body = None if source is None else source.get(owner.__qualname__)
    return source is None or body is None or name in body or name in source[""]


@functools.lru_cache(maxsize=1024)
def _source(module: str) -> dict[str, _Names] | None:
    """Names that each class body of a module binds, and under ``""`` those that the module gives to attributes."""
    loader = getattr(getattr(sys.modules.get(module), "__spec__", None), "loader", None)
    try:
        whole = loader.get_code(module)  # type: ignore[union-attr]
    except Exception:  # no loader, one that has no code, or whatever a loader of a package's own raises
        return None
    if not isinstance(whole, types.CodeType) or _DYNAMIC & set(whole.co_names):
        return None
    found = {"": _bound(whole, "STORE_ATTR")}
    for code in _bodies(whole):
        if _DYNAMIC & set(code.co_names):
            return None
        also = found.get(code.co_qualname, frozenset())
        found[code.co_qualname] = also | _bound(code, "STORE_NAME")
    return found


def _bodies(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code of every class within, which starts by naming its module."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if "__qualname__" in constant.co_names:
                yield constant
            yield from _bodies(constant)


def _bound(code: types.CodeType, how: str) -> _Names:
    return frozenset(str(step.argval) for step in dis.get_instructions(code) if step.opname == how)
