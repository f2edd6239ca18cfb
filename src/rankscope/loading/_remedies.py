"""What an error about weights offers, in the terms of whoever called."""

from __future__ import annotations

from rankscope._base.errors import parameter

__all__ = ["FROM_FILE", "RANDOM"]

RANDOM = parameter("weights", "random")
FROM_FILE = parameter("weights", "FILE")
