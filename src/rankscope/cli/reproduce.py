"""``rankscope reproduce``: the paper's figures and tables by name."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from rankscope._base.errors import PartlyDoneError
from rankscope._base.progress import Lines, progress_for
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
    report = progress_for(None, "reproduce") if sys.stderr.isatty() else Lines()
    report(0, None, "loading")
    failure: PartlyDoneError | None = None
    try:
        # what a model's own code prints must not mix with the result
        with contextlib.redirect_stdout(sys.stderr):
            if name == "all":
                found = reproduce_all(**asked, progress=report)
            else:
                found = {name: reproduce(name, **asked, progress=report)}
    except PartlyDoneError as error:
        found, failure = error.finished, error
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: finished measurements are kept in {folder / 'parts'}; the same command goes on after them"
        ) from None
    finally:
        report.close()
    _show(found, folder, name == "all", as_json)
    if failure is not None:
        raise failure


def _show(found: dict[str, Any], folder: Path, several: bool, as_json: bool) -> None:
    if as_json:
        records = [one.to_dict() for one in found.values()]
        print(json.dumps(records if several else records[0], indent=1, allow_nan=False, ensure_ascii=False))
        return
    for one in found.values():
        print(one)
        where = folder / one.name if several else folder
        print(f"written: {one.name}.pdf, .png, .csv, .json, comparison.csv, comparison.md in {where}")


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]
