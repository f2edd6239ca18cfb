"""An operator's call as its rule for codes (``origins``) sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Called", "Rule"]


@dataclass(frozen=True, eq=False)
class Called:
    """An operator's call: its arguments by name, what it returned, and the codes of any of its tensors."""

    func: Any
    given: dict[str, Any]
    made: list[Tensor]
    codes: Callable[[Tensor], Tensor]

    def of(self, *names: str) -> Tensor:
        """The codes of the first of these arguments that was given."""
        return self.codes(next(self.given[name] for name in names if self.given.get(name) is not None))

    def every(self) -> list[Tensor]:
        return [self.codes(value) for value in self.given.values() if isinstance(value, Tensor)]

    def dims(self, *names: str) -> list[int] | None:
        """Dimensions that were named; ``None`` for all."""
        found = next((self.given[name] for name in names if self.given.get(name) is not None), None)
        return None if found is None or found == [] else [found] if isinstance(found, int) else list(found)


Rule: TypeAlias = Callable[[Called], Tensor | Sequence[Tensor]]
