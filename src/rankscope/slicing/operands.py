"""What an operator writes into and what it reads, by its schema."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["read_from", "written_into"]


def written_into(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among its arguments that it writes into.

    >>> import torch
    >>> x = torch.zeros(2)
    >>> written_into(torch.ops.aten.add_.Tensor, (x, torch.ones(2)), {})[0] is x
    True
    """
    marked = _marked(func)  # in the order of the schema, which is that of what the operator returns
    given = {name: value for value, name in _named(func, args, kwargs)} if marked else {}
    return [t for t in tree_leaves([given.get(name) for name in marked]) if isinstance(t, Tensor)]


def read_from(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that it does not write into.

    >>> import torch
    >>> [v.item() for v in read_from(torch.ops.aten.add_.Tensor, (torch.zeros(()), torch.ones(())), {})]
    [1.0]
    """
    marked = _marked(func)
    return [v for v, name in _named(func, args, kwargs) if name not in marked] if marked else [*args, *kwargs.values()]


def _marked(func: Any) -> list[str]:
    """The names of arguments that are written into; an operator that takes functions has no schema."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    return [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def _named(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, str]]:
    names = (argument.name for argument in func._schema.arguments)
    return [*zip(args, names, strict=False), *((value, name) for name, value in kwargs.items())]
