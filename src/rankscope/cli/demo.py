"""``rankscope demo``: what ships with the package, measured offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rankscope._base.progress import progress_for
from rankscope.cli.options import ConfigOption, DebugOption

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")] = Path("rankscope-demo"),
    patch: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            help="Side of the central patch of the photographs. 16 is the paper's; 8 takes half as long.",
        ),
    ] = 16,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the path of the report.")] = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Run every analysis on networks and data that come with rankscope, offline on the CPU, and write one page."""
    report = progress_for(not quiet, "demo")
    report(0, None, "starting")
    try:
        from rankscope.demo.run import run_demo

        # each section is printed when it is measured: a reader of a log has something to read meanwhile
        demo = run_demo(
            out, patch=patch, progress=report, measured=None if quiet else lambda text: print(text, flush=True)
        )
    finally:
        report.close()
    if not quiet:
        print(f"{demo.seconds:.0f} seconds, {demo.device}", file=sys.stderr)
    print(f"report: {demo.report}")
