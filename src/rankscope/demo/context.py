"""What a section of the demo is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankscope._base.progress import Progress
from rankscope.jacobian import JacobianProfile
from rankscope.report import Section

__all__ = ["Context", "Measured"]


@dataclass(frozen=True)
class Context:
    """Sizes of the demo, the network for the photographs, and where to report progress."""

    digits: int
    patch: int
    photographs_model: str
    progress: Progress | None = None

    def watch(self, label: str) -> Progress | bool:
        """Progress of one measurement, under its own name."""
        report = self.progress
        if report is None:
            return False
        return lambda done, total, text: report(done, total, f"{label}: {text}")


@dataclass(frozen=True)
class Measured:
    """A section of the page, the profiles behind it (name → profile, saved beside the page), and plain values."""

    section: Section
    profiles: Mapping[str, JacobianProfile] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
