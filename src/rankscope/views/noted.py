"""What a record with facts says of itself."""

from __future__ import annotations

from rankscope._base.facts import Fact
from rankscope.views.sentences import sentence

__all__ = ["Noted"]


class Noted:
    """Beside ``Record``, for a record that has ``facts``."""

    facts: tuple[Fact, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The facts as sentences, for people."""
        return tuple(map(sentence, self.facts))
