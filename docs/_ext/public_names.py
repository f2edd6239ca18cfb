"""The API reference: packages listed whole, single names by hand, and a failed build when a public name is missing."""

from __future__ import annotations

import importlib
import re
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARKER = "<!-- every public package -->"
# a bar opens a substitution in reStructuredText; in our docstrings it is a modulus or a norm
_BAR = re.compile(r"(``.*?``)|\|")
_RULE = re.compile(r"-{3,}")
_SEVERAL = re.compile(r"(\w+(?:, \w+)+)( : .*)?")


def public_names() -> list[str]:
    """Everything that ``rankscope`` and its public packages declare, by full name."""
    import rankscope

    names = [f"rankscope.{name}" for name in rankscope.__all__]
    for package in rankscope._PACKAGES:
        declared = importlib.import_module(f"rankscope.{package}").__all__
        names += [f"rankscope.{package}.{name}" for name in declared if name not in rankscope.__all__]
    return names


def packages() -> str:
    """Markdown of the public packages: their own docstring and every name they declare."""
    import rankscope

    made = []
    for name in (f"rankscope.{package}" for package in rankscope._PACKAGES):
        module = importlib.import_module(name)
        # constants carry no docstring, and are left out by a module's listing
        data = [f".. autodata:: {name}.{one}" for one in module.__all__ if not callable(getattr(module, one))]
        # what `rankscope` itself offers stands on its page
        own = ", ".join(sorted(set(module.__all__) & set(rankscope.__all__)))
        listed = f".. automodule:: {name}\n   :members:" + (f"\n   :exclude-members: {own}" if own else "")
        body = "\n\n".join([listed, *data])
        made.append(f"## {name}\n\n```{{eval-rst}}\n{body}\n```\n")
    return "\n".join(made)


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    if MARKER in source[0]:
        source[0] = source[0].replace(MARKER, packages())


def _prepare(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """What our docstrings mean, in the words that napoleon and reStructuredText read."""
    said = type(obj).__doc__  # of a type with __slots__ this is a descriptor
    own = said.strip().splitlines() if isinstance(said, str) else []
    if what == "data" and lines and own and lines[0].strip() == own[0].strip():
        lines.clear()  # what a dict or a tuple is tells nothing of this constant
    lines[:] = [_BAR.sub(lambda m: m[1] or r"\|", line) for line in _one_name_a_field(lines)]
    if what in ("attribute", "property"):
        lines.insert(0, "")  # or a colon in the first line would set a type apart


def _one_name_a_field(lines: list[str]) -> list[str]:
    """An entry of the Attributes section that stands for several names, once for each of them."""
    made: list[str] = []
    inside = False
    for number, line in enumerate(lines):
        if _RULE.fullmatch(line) and number:
            inside = lines[number - 1] == "Attributes"
        several = _SEVERAL.fullmatch(line) if inside else None
        if several is None:
            made.append(line)
            continue
        body = list(takewhile(lambda text: text.startswith(" "), lines[number + 1 :]))
        *others, last = several[1].split(", ")
        for other in others:
            made += [f"{other}{several[2] or ''}", *body]
        made.append(f"{last}{several[2] or ''}")
    return made


def _without_factories(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, result: str) -> Any:
    """Records that only the library builds are shown without their constructor where it cannot be written down."""
    return ("", None) if what == "class" and "<factory>" in (signature or "") else None


def _complete(app: Sphinx, env: Any) -> None:
    from sphinx.errors import ExtensionError

    described = env.get_domain("py").objects
    missing = [name for name in public_names() if name not in described]
    if missing:
        raise ExtensionError(
            f"public, but not in the API reference: {', '.join(missing)}; add them to docs/reference/index.md"
        )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _fill)
    # the page depends on code that Sphinx does not watch
    app.connect("env-get-outdated", lambda *_: ["reference/packages"])
    # before napoleon, which reads the sections
    app.connect("autodoc-process-docstring", _prepare, priority=400)
    app.connect("autodoc-process-signature", _without_factories)
    app.connect("env-check-consistency", _complete)
    return {"parallel_read_safe": True}
