"""The command reference, read off the commands themselves whenever the documentation is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MARKER = "<!-- every command and its options -->"


def reference() -> str:
    """Markdown of every command: a heading, what it does, how it is called, its arguments and options."""
    import typer

    from rankscope.cli.app import app

    root = typer.main.get_command(app)
    return "\n".join(line for path, command in _walk(root, ("rankscope",)) for line in _section(path, command))


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Commands in the order of ``--help``, those of a group after the group."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _walk(child, (*path, name))


def _section(path: tuple[str, ...], command: Any) -> Iterator[str]:
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    yield f"## {' '.join(path)}\n"
    yield f"{_text(command.help)}\n"
    children = getattr(command, "commands", None)
    call = [*path, *(_metavar(p) for p in arguments)]
    call += [f"{p.opts[0]} {_metavar(p)}" for p in options if p.required]
    if any(not p.required for p in options):
        call.append("[OPTIONS]")
    if children:
        call.append("COMMAND")
    yield f"```text\n{' '.join(call)}\n```\n"
    if children:
        yield "Commands: " + ", ".join(f"`{' '.join((*path, name))}`" for name in children) + ".\n"
    if shown:
        yield "| argument or option | what it does | default |\n|---|---|---|"
        yield from (_row(p) for p in (*arguments, *options))
        yield ""


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        value = "" if parameter.is_flag else f" {_metavar(parameter)}"
        forms = [f"`{form}{value}`" for form in parameter.opts]
        name = ", ".join(forms + [f"`{form}`" for form in parameter.secondary_opts])
    # in a table a bar ends the cell, even between backticks
    cells = (name, _text(parameter.help), _default(parameter))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or (parameter.is_flag and not parameter.secondary_opts):
        return ""
    if parameter.is_flag:
        return f"`{(parameter.opts if value else parameter.secondary_opts)[0]}`"
    return f"`{value}`"


def _metavar(parameter: Any) -> str:
    """The word for the value: the command's own, else the option's name in capitals."""
    return str(parameter.metavar or parameter.name.removeprefix("as_").upper().replace("_", "-"))


def _text(text: str | None) -> str:
    return " ".join((text or "").replace("*", "\\*").split())


def _fill(app: Sphinx, docname: str, source: list[str]) -> None:
    if MARKER in source[0]:
        source[0] = source[0].replace(MARKER, reference())


def _outdated(app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The page depends on code that Sphinx does not watch: read it every time."""
    return ["commands"]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _fill)
    app.connect("env-get-outdated", _outdated)
    return {"parallel_read_safe": True}
