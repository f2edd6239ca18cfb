"""Formulas as MathML, which browsers draw by themselves: no script and no font is fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def mathml(tex: str, *, block: bool = False) -> str:
    """MathML of a formula in LaTeX; one that cannot be read is an error that names it."""
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml
    from sphinx.errors import ExtensionError

    try:
        return str(tex2mathml(tex, as_block=block))
    except MathError as error:
        raise ExtensionError(f"the formula {tex!r} cannot be read: {error}") from None


def _inline(writer: Any, node: Any) -> None:
    from docutils import nodes

    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(writer: Any, node: Any) -> None:
    from docutils import nodes

    style = "overflow-y: hidden; padding-block: 0.3em"  # the theme scrolls wide formulas, and then high ones too
    writer.body.append(f'<div class="math" style="{style}">{mathml(node.astext(), block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True}
