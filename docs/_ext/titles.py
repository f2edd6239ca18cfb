"""The benchmark tables get titles, which the scripts that print them leave out, and a place in the navigation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_WHAT = {
    "deficit": "Independence deficit",
    "features": "Feature space",
    "jacobian": "The Jacobian sweep",
    "probe": "The component probe",
}
_WHERE = {"cpu": "on processor cores", "cuda": "on a GPU"}


def title(name: str) -> str:
    """
    >>> title("jacobian-cuda"), title("something")
    ('The Jacobian sweep on a GPU', 'something')
    """
    what, _, where = name.rpartition("-")
    return f"{_WHAT.get(what, what)} {_WHERE[where]}" if where in _WHERE else name


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    folder, _, name = docname.rpartition("/")
    if folder != "benchmarks":
        return
    if name == "README":
        tables = sorted(p.stem for p in (Path(app.srcdir) / folder).glob("*.md") if p.stem != "README")
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(tables) + "\n```\n"
    elif not source[0].startswith("# "):
        source[0] = f"# {title(name)}\n\n{source[0]}"


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _fill)
    # the page lists files that Sphinx does not know to belong to it
    app.connect("env-get-outdated", lambda *_: ["benchmarks/README"])
    return {"parallel_read_safe": True}
