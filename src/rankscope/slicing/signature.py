"""Which arguments a model's ``forward`` takes: nothing that it takes may be dropped."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Signature", "is_hugging_face", "signature_of"]


@dataclass(frozen=True)
class Signature:
    """Names by position, how many of them have no default, names that are keywords alone, and ``*args``, ``**kwargs``.

    ``defaults`` holds the default of every argument that has one; ``by_place`` the first names, which are no keywords.
    """

    positional: tuple[str, ...] = ()
    required: int = 0
    keywords: frozenset[str] = frozenset()
    any_positional: bool = True
    any_keyword: bool = True
    defaults: tuple[tuple[str, Any], ...] = ()
    by_place: tuple[str, ...] = ()

    @property
    def needed(self) -> tuple[str, ...]:
        """The arguments without a default."""
        given = {name for name, _ in self.defaults}
        return (*self.positional[: self.required], *sorted(self.keywords - given))

    def names(self, name: str) -> bool:
        """Whether an argument has this name."""
        return name in self.positional or name in self.keywords

    def takes(self, name: str) -> bool:
        """Whether the argument can be passed under this name."""
        return self.any_keyword or self.names(name)

    def listed(self) -> str:
        """The arguments as an error names them."""
        return ", ".join([*self.positional, *sorted(self.keywords)]) or "no named argument"


def signature_of(model: nn.Module) -> Signature:
    """What ``model.forward`` takes; where Python cannot tell, anything.

    >>> signature_of(nn.Linear(2, 2)).positional
    ('input',)
    """
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return Signature()
    kinds = inspect.Parameter
    named = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    return Signature(
        positional=tuple(p.name for p in named),
        required=sum(p.default is kinds.empty for p in named),
        keywords=frozenset(p.name for p in parameters if p.kind is kinds.KEYWORD_ONLY),
        any_positional=any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
        any_keyword=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        defaults=tuple((p.name, p.default) for p in parameters if p.default is not kinds.empty),
        by_place=tuple(p.name for p in named if p.kind is kinds.POSITIONAL_ONLY),
    )


def is_hugging_face(model: nn.Module) -> bool:
    """Whether the model follows the conventions of Hugging Face's ``PreTrainedModel``."""
    return hasattr(model, "config") and hasattr(model, "get_input_embeddings")
