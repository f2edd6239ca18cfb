"""All commands and their options. Each hands over to a function that does the work."""

# ruff: noqa: I001
from __future__ import annotations

from typing import Annotated

import typer

# imported for what they add to the application, in the order of the help
from rankscope.cli import network_commands, feature_commands, paper_commands, theory_commands  # noqa: F401
from rankscope.cli.shared import app

__all__ = ["app"]


def _version(asked: bool) -> None:
    if asked:
        from rankscope import __version__

        typer.echo(f"rankscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
