"""``rankscope reproduce``: the paper's figures and tables by name."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rankscope._base.progress import progress_for
from rankscope.cli.interrupted import InterruptedRunError

__all__ = ["run"]


def run(name: str, *, out: Path | None, networks: str | None, only: str | None, as_json: bool, **options: Any) -> None:
    """Measure, write, and print the comparison with the paper."""
    from rankscope.reproduce import reproduce, reproduce_all

    folder = out if out is not None else Path("runs/reproduce") / name
    asked: dict[str, Any] = {
        **options,
        "out": folder,
        "networks": _listed(networks),
        "only": None if only is None else [n for n in _listed(only) if n != "none"],
    }
    report = progress_for(None, "reproduce")
    report(0, None, "loading")
    try:
        # what a model's own code prints must not mix with the result
        with contextlib.redirect_stdout(sys.stderr):
            if name == "all":
                found = reproduce_all(**asked, progress=report)
            else:
                found = {name: reproduce(name, **asked, progress=report)}
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: finished measurements are kept in {folder / 'parts'}; the same command goes on after them"
        ) from None
    finally:
        report.close()
    if as_json:
        records = [one.to_dict() for one in found.values()]
        print(json.dumps(records[0] if name != "all" else records, indent=1, allow_nan=False, ensure_ascii=False))
        return
    for one in found.values():
        print(one)
        where = folder / one.name if name == "all" else folder
        print(f"written: {one.name}.pdf, .png, .csv, .json, comparison.csv, comparison.md in {where}")


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
