"""``rankscope compare``: several saved runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import DebugOption, JsonOption

if TYPE_CHECKING:
    import pandas as pd

    from rankscope.features import FeatureProfile
    from rankscope.jacobian import JacobianProfile

__all__ = ["compare_command"]


@saves_memory("fewer runs")
def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Folders or profile.json files of rankscope profile, files of FeatureProfile.save, or histories "
            "(.jsonl) of RankMonitor.",
            show_default=False,
        ),
    ],
    metric: Annotated[
        str | None, typer.Option(help="A column of a feature profile or a metric of the histories.", show_default=False)
    ] = None,
    same_images: Annotated[
        bool | None,
        typer.Option(
            "--same-images/--other-images",
            help="Whether Jacobian profiles saw the same images. Default: whether the images have the same names.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.json, .csv, .png and .svg.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Compare saved runs: one table and one figure, with what differs in how they were measured named first."""
    from rankscope.cli.results import print_result, write_result
    from rankscope.report import compare

    found = compare(
        {str(path): _run(path) for path in runs} if len(set(runs)) == len(runs) else [_run(path) for path in runs],
        metric=metric,
        same_images=same_images,
        seed=seed,
    )
    record = found.to_dict()
    if out is not None:
        with FolderLock(out):
            write_result(out, "comparison", record, {"comparison": found.table()}, found.plot())
    print_result(found, record, out, "comparison", as_json=as_json)


def _run(path: Path) -> JacobianProfile | FeatureProfile | pd.DataFrame:
    from rankscope._base.errors import OutputError
    from rankscope.features import FeatureProfile
    from rankscope.jacobian import JacobianProfile
    from rankscope.monitor.history import History

    if not path.exists():
        raise OutputError(f"{str(path)!r} does not exist; give a folder or file that a run has written")
    if path.suffix == ".jsonl":
        return History(path, write=False).table()
    if path.is_dir() or path.name == "profile.json":
        return JacobianProfile.load(path)
    return FeatureProfile.load(path)
