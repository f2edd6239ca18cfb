"""What the pages of the documentation tell a reader to type: commands, and blocks of Python with what they print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Snippet", "Typed", "pages", "snippets", "typed"]

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PROGRAMS = ("rankscope", "python", "torchrun", "make", "pip")
_LAUNCHER = re.compile(r"torchrun --nproc-per-node=\S+ -m |python -m (?=rankscope)")


@dataclass(frozen=True)
class Typed:
    """One command line as the page has it; ``mentioned``: within a sentence, where it may be the name alone."""

    page: Path
    text: str
    mentioned: bool

    @property
    def line(self) -> str:
        """Without its comment."""
        return self.text.partition(" #")[0].strip()

    @property
    def words(self) -> list[str]:
        """As a shell makes them, without what starts the program."""
        return shlex.split(_LAUNCHER.sub("", self.line))

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


@dataclass(frozen=True)
class Snippet:
    """A block of Python, and the text that follows it as its output."""

    code: str
    printed: str


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page of the documentation."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def typed(page: Path) -> list[Typed]:
    """The page's commands in its order, those of a block first."""
    text = page.read_text(encoding="utf-8")
    lines = [line for language, block in _BLOCK.findall(text) if language != "python" for line in _lines(block)]
    spans = re.findall(r"`([^`|]+)`", _BLOCK.sub("", text))
    found = [Typed(page, line, mentioned=False) for line in lines]
    return found + [Typed(page, " ".join(span.split()), mentioned=True) for span in spans if _is_command(span)]


def _lines(block: str) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        line = line.removeprefix("$ ")
        if _is_command(line):
            yield line


def _is_command(text: str) -> bool:
    words = text.split()
    return len(words) > 1 and words[0] in _PROGRAMS


def snippets(page: Path) -> list[Snippet]:
    """The page's blocks of Python in its order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(text):
        if block[1] == "python":
            after = re.match(r"\n\n```text\n(.*?)^```", text[block.end() :], re.MULTILINE | re.DOTALL)
            found.append(Snippet(block[2], after[1] if after else ""))
    return found
