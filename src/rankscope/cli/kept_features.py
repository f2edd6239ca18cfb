"""``rankscope features RUN``: feature dimension of what is kept already, without a model: a run, or an array file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rankscope._base.errors import DataError, UsageError
from rankscope._base.facts import as_facts
from rankscope._base.lock import FolderLock
from rankscope.cli.array_files import ARRAY_FILES, read_arrays
from rankscope.cli.results import print_result, write_result
from rankscope.cli.run_data import check_labelled, read_run
from rankscope.features import feature_rank
from rankscope.report.feature_section import feature_page

__all__ = ["measure_kept"]


def measure_kept(
    run: Path,
    *,
    unused: Sequence[str],
    labels: Path | None,
    head: bool,
    reduce: Any,
    channels: Any,
    out: Path | None,
    as_json: bool,
) -> None:
    """Read the moments of a collected run (reduced when they were collected), or the array ``features`` of a file.

    With ``head`` the features that go into the head are measured by class too.

    Raises
    ------
    UsageError
        Options that are a model's (``unused`` names those given); ``reduce`` or ``channels`` for a run, whose rows are
        made already; what is neither run nor file.
    DataError
        A run that keeps no moments, a file without features.
    """
    notes: list[str] = []
    kept = run.suffix in ARRAY_FILES and not run.is_dir()
    if not kept and not run.is_dir():
        raise UsageError(
            f"{str(run)!r} is no folder that rankscope collect wrote; for a model add --data (a folder with one "
            "subfolder a class, digits, or a .npy)"
        )
    late = list(unused)
    if not kept:
        made = (("reduce", reduce is not None), ("channels", channels != "auto"), ("labels", labels is not None))
        late += [name for name, given in made if given]
    if late:
        raise UsageError(
            f"--{late[0].replace('_', '-')} does not apply to {str(run)!r}, whose features are computed already; leave "
            "it out, or give a model and --data"
        )
    if kept:
        folder, about = Path("runs") / run.stem, {"model": None, "weights": None, "data": str(run)}
        more: dict[str, Any] = {}
        features: torch.Tensor | None = None
        if head or labels is not None:
            read = read_run(run, array="features", labels=labels)
            check_labelled(read, run)
            if head and read.head is None:
                raise DataError(f"{run.name} holds no head; name its arrays weight and bias, or leave out --head")
            more = {"labels": read.labels, "head": read.head if head else None}
            features = read.features
        features = _array(run) if features is None else features
        profile = feature_rank(features, reduce=reduce or "flatten", channels=channels, **more)
    else:
        found = read_run(run, array="features", labels=None)
        if head:
            check_labelled(found, run)
        if not found.moments and not head:
            raise DataError(f"{run} keeps no moments; collect into another folder with --cut-points blocks, or names")
        folder, about = run, {key: found.about[key] for key in ("model", "weights", "data")}
        profile = feature_rank(found, head=True if head else None)
        notes = list(found.notes)
    folder = out if out is not None else folder
    record = {**profile.to_dict(), **about, "notes": [*profile.notes, *notes]}
    with FolderLock(folder):
        page = feature_page(profile, model=about["model"], data=about["data"], facts=as_facts(notes))
        write_result(folder, "features", record, {"features": profile.table()}, profile.plot(), page=page)
    said = f"{about['model'] or run}; features: {profile[0].reduce}\n{profile}"
    print_result(said, record, folder, "features", "features.html", as_json=as_json, said=as_facts(notes))


def _array(path: Path) -> torch.Tensor:
    arrays = read_arrays(path)
    found = arrays.get("", arrays.get("features"))
    if found is None:
        raise DataError(f"{path.name} holds {', '.join(sorted(arrays)) or 'nothing'}; name its array features")
    return found
