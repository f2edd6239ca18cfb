"""``rankscope demo``: a list of sections, each measured in turn, on one page.

A further measurement is one more function in ``SECTIONS``: it takes a ``Context`` and returns a ``Measured``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from rankscope._base.checks import count_of
from rankscope._base.command import said
from rankscope._base.files import write_whole
from rankscope._base.json_files import write_json
from rankscope._base.lock import FolderLock
from rankscope._base.progress import Progress
from rankscope._base.provenance import device_name, versions
from rankscope.demo.context import Context, Measured
from rankscope.demo.digits_section import digits_section
from rankscope.demo.feature_space_section import classification_section, deficit_section_of_digits, feature_section
from rankscope.demo.photographs_section import photographs_section
from rankscope.demo.theory_section import theory_section
from rankscope.report import Page, Section

__all__ = ["SCHEMA_VERSION", "SECTIONS", "Demo", "run_demo"]

SCHEMA_VERSION = 1
Part: TypeAlias = Callable[[Context], Measured]
SECTIONS: Mapping[str, Part] = {
    "photographs": photographs_section,
    "digits": digits_section,
    "features": feature_section,
    "classification": classification_section,
    "deficit": deficit_section_of_digits,
    "theory": theory_section,
}


@dataclass(frozen=True)
class Demo:
    """What the demo found, and where it is."""

    report: Path
    parts: Mapping[str, Measured]
    seconds: float
    device: str

    def text(self) -> str:
        """The findings for a terminal."""
        return "\n".join(_text(section) for section in _once(part.section for part in self.parts.values()))


def _text(section: Section) -> str:
    return "\n".join([section.title, *(f"  - {f.text}" for f in section.findings)])


def run_demo(
    out: str | Path,
    *,
    sections: Sequence[str] | None = None,
    progress: Progress | None = None,
    measured: Callable[[str], Any] | None = None,
    digits: int = 32,
    patch: int = 16,
    photographs_model: str = "efficientnet-lite0",
) -> Demo:
    """Measure every section and write ``report.html``, ``demo.json`` and the profiles into ``out``.

    ``digits`` (images), ``patch`` (side in pixels) and ``photographs_model`` make it smaller or larger. Their defaults
    take about a minute on two CPU cores; ``patch=8`` takes half as long. ``photographs_model`` is one of the networks
    whose ImageNet weights are in a package. Without that package the untrained network is measured alone, and the page
    names what installs it. ``measured`` is called with the findings of each section when it is measured; together they
    are the text of the result.

    Raises
    ------
    UsageError
        When ``patch`` is no size, or larger than the photographs; nothing was measured then.
    OutputError
        When ``out`` cannot be written; nothing was measured then.
    """
    started = time.perf_counter()
    patch = count_of(patch, "patch")
    folder = Path(out)
    with FolderLock(folder, lend=True):
        context = Context(digits=digits, patch=patch, photographs_model=photographs_model, progress=progress)
        parts: dict[str, Measured] = {}
        seconds: dict[str, float] = {}
        for name in sections or SECTIONS:
            begun = time.perf_counter()
            parts[name] = SECTIONS[name](context)
            seconds[name] = time.perf_counter() - begun
            if measured is not None:
                measured(_text(_once(part.section for part in parts.values())[-1]))
        for part in parts.values():
            for name, profile in part.profiles.items():
                profile.save(folder / name)
        record = {
            "schema_version": SCHEMA_VERSION,
            "kind": "demo",
            "versions": versions(),
            "device": device_name("cpu"),
            "seconds": time.perf_counter() - started,
            "sections": [
                {
                    "name": name,
                    "title": part.section.title,
                    "seconds": seconds[name],
                    "findings": [{"kind": f.kind, "text": f.text} for f in part.section.findings],
                    "profiles": {k: f"{k}/profile.json" for k in part.profiles},
                    "values": dict(part.values),
                }
                for name, part in parts.items()
            ],
            **said(),
        }
        write_json(folder / "demo.json", record)
        page = Page(
            "rankscope demo",
            _once(part.section for part in parts.values()),
            lead=(
                "This page shows how much of the input's independent information survives to each layer. All numbers "
                "were measured on this machine; demo.json, beside this page, holds them."
            ),
            footer=f"rankscope {versions().get('rankscope', '')}, {time.perf_counter() - started:.0f} s on "
            f"{device_name('cpu')}.",
        )
        report = folder / "report.html"
        write_whole(report, page.html())
    return Demo(report.resolve(), parts, time.perf_counter() - started, device_name("cpu"))


def _once(sections: Iterable[Section]) -> list[Section]:
    """The sections, each way of reading a number said where it is first needed."""
    said: set[str] = set()
    made = []
    for section in sections:
        kept = [f for f in section.findings if f.kind != "meaning" or f.text not in said]
        said |= {f.text for f in kept}
        made.append(replace(section, findings=kept))
    return made
