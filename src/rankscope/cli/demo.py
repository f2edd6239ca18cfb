"""``rankscope demo``: progress and findings on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from rankscope._base.progress import progress_for

__all__ = ["run"]


def run(out: Path, *, quiet: bool) -> None:
    """Run the demo, print its findings, and last where the report lies."""
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
