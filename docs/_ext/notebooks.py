"""Notebooks as pages: run cell by cell without a kernel, kept with their outputs, written as Markdown on build.

``python docs/_ext/notebooks.py docs/notebooks/*.ipynb`` runs them and keeps the outputs; ``make notebooks`` does it.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = "notebooks/"


def read(path: Path) -> dict[str, Any]:
    """The notebook's JSON."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def run(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """The notebook with the outputs that its cells have when they run one after the other in one namespace."""
    space: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        count += 1
        outputs = _outputs("".join(cell["source"]), space, f"{name}, cell {count}", count)
        cells.append({**cell, "execution_count": count, "outputs": outputs})
    return {**notebook, "cells": cells}


def _outputs(source: str, space: dict[str, Any], where: str, count: int) -> list[dict[str, Any]]:
    tree = ast.parse(source, where)
    last = tree.body[-1] if tree.body else None
    shown = isinstance(last, ast.Expr) and not source.rstrip().endswith(";")
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(tree.body[:-1] if shown else tree.body, []), where, "exec"), space)
        if shown and isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), space)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        data, size = displayed(value)
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "data": data, "metadata": size}
        )  # fmt: skip
    return outputs


def displayed(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a notebook shows of a value, and the size of its picture."""
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if hasattr(value, "_repr_html_"):
        data = {"text/html": _lines(value._repr_html_()), "text/plain": _lines(str(value))}
    picture = value._repr_png_() if hasattr(value, "_repr_png_") else None
    if picture is None:
        return data, {}
    return {"image/png": base64.b64encode(picture[0]).decode(), "text/plain": ["figure"]}, {"image/png": picture[1]}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def markdown(notebook: dict[str, Any], file: str) -> str:
    """The page: text as it is, code, and what it gave."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if len(parts) == 1:
                parts.append(f"This page is a notebook: {{download}}`{file}`.")
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        width = output["metadata"]["image/png"]["width"]
        picture = f'<img src="data:image/png;base64,{data["image/png"]}" width="{width}" alt="The figure of this cell">'
        return f"```{{raw}} html\n{picture}\n```"
    if "text/html" in data and not "".join(data["text/html"]).startswith("<pre"):
        return f"```{{raw}} html\n{''.join(data['text/html'])}\n```"
    text = "".join(data.get("text/plain", output.get("text", [])))
    return f"```text\n{text.rstrip()}\n```"


def _page(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname.startswith(FOLDER) and source[0].lstrip().startswith("{"):
        source[0] = markdown(json.loads(source[0]), f"{docname.removeprefix(FOLDER)}.ipynb")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        made = run(read(given), given.name)
        given.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
