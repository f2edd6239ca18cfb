"""How a command ends when its user stops it."""

from __future__ import annotations

from rankscope._base.errors import RankscopeError

__all__ = ["InterruptedRunError"]


class InterruptedRunError(RankscopeError):
    """The user stopped the work; the message says what was kept."""

    exit_code = 130
