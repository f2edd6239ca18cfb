"""One measurement on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rankscope.report.figures import Figure
from rankscope.report.sentences import Finding
from rankscope.report.table import Table

__all__ = ["Section"]


@dataclass(frozen=True)
class Section:
    """One measurement: the first figure, what was found in sentences, further figures, the numbers, their origin."""

    title: str
    findings: Sequence[Finding] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    lead: str = ""
