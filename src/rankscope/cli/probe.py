"""``rankscope probe``: what components and remedies do to dimension and rank."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError, nearest
from rankscope._base.files import make_folder
from rankscope.cli.components import chosen_components
from rankscope.cli.results import as_json_text, write_result

if TYPE_CHECKING:
    from rankscope.probes import ProbeResults, RemedyResult

__all__ = ["parse_shape", "run_probe"]


def run_probe(
    component: str | None,
    *,
    scale: str,
    input_shape: str | None,
    seed: int,
    evaluation: bool,
    remedies: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure, write the files, print tables or JSON. ``component`` None: all, but with ``remedies`` none."""
    from rankscope.probes import SCALES, probe_all, probe_remedies

    if scale not in SCALES:
        raise UsageError(f"unknown scale {scale!r}; {nearest(scale, SCALES)}")
    shape = None if input_shape is None else parse_shape(input_shape)
    results: ProbeResults | None = None
    found: RemedyResult | None = None
    # what a component's own code prints must not mix with the result
    with contextlib.redirect_stdout(sys.stderr):
        if component is not None or not remedies:
            chosen = chosen_components(component or "all", seed=seed, evaluation=evaluation)
            make_folder(out)
            results = probe_all(chosen, scale=scale, input_shape=shape, seed=seed, **options)  # type: ignore[arg-type]
            write_result(out, "probe", results.to_dict(), {"probe": results.table()}, results.plot())
        if remedies:
            make_folder(out)
            seeds = (seed, seed + 1, seed + 2)
            found = probe_remedies(scale=scale, seeds=seeds, tolerance=options["tolerance"])  # type: ignore[arg-type]
            write_result(out, "remedies", found.to_dict(), {"remedies": found.table()}, found.side_by_side())
    if as_json:
        print(as_json_text(_record(results, found)))
        return
    print("\n\n".join(str(part) for part in (results, found) if part is not None))
    names = [name for name, part in (("probe", results), ("remedies", found)) if part is not None]
    print(f"written: {', '.join(f'{n}.{kind}' for n in names for kind in ('json', 'csv', 'png', 'svg'))} in {out}")


def _record(results: ProbeResults | None, found: RemedyResult | None) -> dict[str, Any]:
    if results is not None and found is not None:
        parts = {"components": results.to_dict(), "remedies": found.to_dict()}
        return {"schema_version": 1, "kind": "probe_and_remedies", **parts}
    if results is not None:
        return results.to_dict()
    assert found is not None
    return found.to_dict()


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes of one sample from text.

    >>> parse_shape("128x8x8"), parse_shape("512")
    ((128, 8, 8), (512,))
    """
    parts = re.split(r"\s*[x×,]\s*", text.strip())
    if not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--input-shape {text!r} is none; write the sizes of one sample, as 128x8x8")
    return tuple(int(part) for part in parts)
