"""What the caller wants kept with a profile, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankscope._base.encoding import exact, read
from rankscope._base.errors import UsageError
from rankscope._base.facts import Fact, as_facts

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """``provenance=`` of a measurement: what fills fields of the profile, and what is kept beside them."""

    model: str = ""
    weights: str = "as given"
    facts: tuple[Fact, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, provenance: Mapping[str, Any] | None) -> Given:
        """Raises ``UsageError`` for what cannot be kept: names that are no text, values that have no form in JSON.

        >>> Given.read({"model": "mine", "commit": "abc"}).kept
        {'commit': 'abc'}
        """
        if provenance is None:
            return cls()
        if not isinstance(provenance, Mapping):
            raise UsageError(f"provenance is {provenance!r}; give a mapping from names to plain values")
        rest = dict(provenance)
        bad = next((name for name in rest if not isinstance(name, str)), None)
        if bad is not None:
            raise UsageError(f"provenance has the name {bad!r}; give names as text")
        own = {name: _text(rest.pop(name), name) for name in ("model", "weights") if name in rest}
        notes = rest.pop("notes", ())
        notes = [notes] if isinstance(notes, str | Fact) else notes
        if not isinstance(notes, list | tuple) or not all(isinstance(n, str | Fact) for n in notes):
            raise UsageError(f"provenance['notes'] is {notes!r}; give a list of texts or facts")
        skipped = rest.pop("skipped", {})
        if not isinstance(skipped, Mapping):
            raise UsageError(f"provenance['skipped'] is {skipped!r}; give a mapping from names to reasons")
        for name, value in rest.items():
            try:
                rest[name] = read(Any, exact(value))  # as it comes back from a file, so that the profile equals itself
            except TypeError as error:
                raise UsageError(f"provenance[{name!r}] cannot be kept: {error}") from None
        return cls(**own, facts=as_facts(notes), skipped={str(k): str(v) for k, v in skipped.items()}, kept=rest)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"provenance[{name!r}] is {value!r}; give a text")
    return value
