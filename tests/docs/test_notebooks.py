"""The notebooks run as they are, and their pages show what they give."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from docs_extensions import DOCS, extension

notebooks = extension("notebooks")
PAGES = sorted((DOCS / "notebooks").glob("*.ipynb"))


def _texts(cell: dict[str, Any]) -> list[str]:
    """Rows of tables of ranks, without what may depend on the processor: bounds and flags, and other tables."""
    said = ["".join(out.get("data", {}).get("text/plain", out.get("text", ""))) for out in cell.get("outputs", ())]
    rows = [re.match(r"\S+\s+[\d,]+(\s+[\d.]+){3}(?=\s+\[)", line) for text in said for line in text.splitlines()]
    return [row.group() for row in rows if row]


def _kinds(cell: dict[str, Any]) -> list[set[str]]:
    return [{*out.get("data", {"stream": 0})} for out in cell.get("outputs", ())]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_notebook_gives_what_it_shows(path: Path) -> None:
    kept = notebooks.read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = notebooks.run(kept, path.name)
    rows = 0
    for before, after in zip(kept["cells"], made["cells"], strict=True):
        assert _kinds(after) == _kinds(before)
        assert _texts(after) == _texts(before)
        rows += len(_texts(after))
    assert rows >= 7
    assert any({"image/png"} <= kind for cell in made["cells"] for kind in _kinds(cell))


def test_they_are_pages_of_the_documentation() -> None:
    assert len(PAGES) == 2
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for path in PAGES:
        assert f"\nnotebooks/{path.stem}\n" in index


def test_a_notebook_as_a_page() -> None:
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["print('<b>')\n", "x = 2\n", "x + 1"]},
        {"cell_type": "code", "source": ["x;"]},
    ]
    made = notebooks.run({"cells": cells}, "a.ipynb")
    assert made["cells"][1]["outputs"][0]["text"] == ["<b>\n"]
    assert made["cells"][2]["outputs"] == []
    page = notebooks.markdown(made, "a.ipynb")
    assert page.startswith("# Title\ntext\n\nThis page is a notebook: {download}`a.ipynb`.\n\n```python\nprint('<b>')")
    assert "```text\n<b>\n```\n\n```text\n3\n```" in page


def test_a_value_with_a_picture() -> None:
    class Drawn:
        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            return b"\x89PNG", {"width": 30, "height": 20}

    data, size = notebooks.displayed(Drawn())
    output = {"output_type": "execute_result", "data": data, "metadata": size}
    assert '<img src="data:image/png;base64,iVBORw==" width="30"' in notebooks._shown(output)
