"""``rankscope demo``: what ships with the package, measured offline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rankscope._base.progress import progress_for
from rankscope.cli.options import DebugOption

__all__ = ["demo_command"]


def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")] = Path("rankscope-demo"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the path of the report.")] = False,
    debug: DebugOption = False,
) -> None:
    """Measure the networks and data that rankscope contains, offline on the CPU, and write one HTML report."""
    report = progress_for(False if quiet else None, "demo")
    report(0, None, "starting")
    try:
        from rankscope.demo.run import run_demo

        demo = run_demo(out, progress=report)
    finally:
        report.close()
    if not quiet:
        print(demo.text())
        print(f"{demo.seconds:.0f} seconds, {demo.device}", file=sys.stderr)
    print(f"report: {demo.report}")
