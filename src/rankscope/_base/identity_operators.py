"""Digests of operators that a user registers with torch: what they compute is reached from no code that calls them."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

from rankscope._base.digests import Walk, node, text
from rankscope._base.installed import module_version

__all__ = ["OperatorDigests"]

_PARTS = (
    "_init_fn", "_backend_fns", "_abstract_fn", "_setup_context_fn", "_backward_fn", "_vmap_fn", "_torch_dispatch_fns",
    "_autocast_dtype",
)  # fmt: skip


class OperatorDigests(Walk):
    """What ``torch.library.custom_op`` and the functions registered with it are made of."""

    def _operators(self, attributes: Collection[str]) -> list[bytes]:
        """The user's operators that code may take from ``torch.ops``."""
        if "ops" not in attributes:
            return []
        found = [(name, one) for name, one in _definitions().items() if name.partition("::")[2] in attributes]
        return [node(name, self._operator(one)) for name, one in sorted(found, key=lambda pair: pair[0])]

    def _operator(self, definition: Any) -> bytes:
        made_by = module_version(str(getattr(definition._init_fn, "__module__", "") or ""))
        if made_by is not None:
            return node("installed operator", text(made_by), text(definition._qualname))
        parts = (self.of(getattr(definition, name, None)) for name in _PARTS)
        return node("operator", text(definition._qualname), *parts)

    def _overload(self, value: Any) -> bytes:
        """An operator, or one of its overloads, held as a value."""
        name = str(value).replace(".", "::", 1).partition(".")[0]
        definition = _definitions().get(name)
        return node(type(value).__name__, text(repr(value)), b"" if definition is None else self._operator(definition))


def _definitions() -> dict[str, Any]:
    """By qualified name; none where nothing was defined."""
    return dict(getattr(sys.modules.get("torch._library.custom_ops"), "OPDEFS", {}))
