"""Puts figures and tables into the page: what is between two marks is made of the CSVs alone."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from beside.drops import drops
from beside.figures import depth_figure, drops_figure
from beside.sentences import measured_sentence, steps_sentence, verdict_sentences
from beside.tables import (
    depth_table,
    failures_table,
    lemma_sentence,
    lemma_table,
    networks_table,
    random_table,
    ranks_table,
)
from rankscope._base.style import figure_style

__all__ = ["filled", "made_of", "write_page"]

PAGE = "full-rank.md"


def made_of(results: Path) -> dict[str, str]:
    """The generated parts of the page, from ranks.csv and networks.csv in a folder."""
    ranks, networks = pd.read_csv(results / "ranks.csv"), pd.read_csv(results / "networks.csv")
    pairs = drops(ranks)
    return {
        "verdict": verdict_sentences(ranks, pairs),
        "measured": measured_sentence(networks),
        "networks": networks_table(networks),
        "ranks": ranks_table(ranks),
        "lemma": lemma_table(pairs),
        "lemma-all": lemma_sentence(pairs),
        "failures": failures_table(pairs),
        "depth": depth_table(pairs),
        "steps": steps_sentence(ranks, pairs),
        "random": random_table(ranks),
    }


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with each part between its two marks.

    >>> filled("<!-- begin a -->old<!-- end a -->", {"a": "new"}).split()[3:6]
    ['-->', 'new', '<!--']
    """

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in parts:
            raise SystemExit(f"error: the page marks a part {name!r}; there are {', '.join(parts)}")
        return f"<!-- begin {name} -->\n\n{parts[name]}\n\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (?P<name>[\w-]+) -->.*?<!-- end (?P=name) -->", fill, page, flags=re.DOTALL)


def write_page(results: Path, docs: Path) -> None:
    """Fill the page in ``docs`` and draw its figures."""
    page = docs / PAGE
    page.write_text(filled(page.read_text(encoding="utf-8"), made_of(results)), encoding="utf-8")
    ranks = pd.read_csv(results / "ranks.csv")
    (docs / "images").mkdir(exist_ok=True)
    with figure_style():
        _save(depth_figure(ranks), docs / "images/full-rank-depth.png")
        _save(drops_figure(drops(ranks)), docs / "images/full-rank-drops.png")


def _save(figure: Figure, file: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=200)
    # a palette of 128 colours: half the bytes, and no difference to be seen
    Image.open(drawn).convert("RGB").quantize(128).save(file, optimize=True)
