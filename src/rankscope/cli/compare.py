"""``rankscope compare``: several saved runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import ConfigOption, DebugOption, JsonOption

__all__ = ["compare_command"]


@saves_memory("fewer runs")
def compare_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Folders that rankscope profile, features, collect or watch wrote, or in which a trainer keeps "
            "rank_history.jsonl; or one of their files, a file of FeatureProfile.save, or a history (.jsonl) of "
            "RankMonitor.",
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
            help="Whether Jacobian profiles saw the same images. Default: yes if the images have the same names.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for comparison.json, .csv, .png, .svg and .html.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Compare saved runs in one table and one figure, and report first how their settings differ."""
    from rankscope.cli.results import print_result, write_result
    from rankscope.cli.saved_runs import saved_run
    from rankscope.report import compare
    from rankscope.report.comparison_page import comparison_page

    found = compare(
        {str(path): saved_run(path) for path in runs} if len(set(runs)) == len(runs) else [*map(saved_run, runs)],
        metric=metric,
        same_images=same_images,
        seed=seed,
    )
    record = found.to_dict()
    if out is not None:
        with FolderLock(out):
            write_result(
                out, "comparison", record, {"comparison": found.table()}, found.plot(), page=comparison_page(found)
            )
    print_result(found, record, out, "comparison", "comparison.html", as_json=as_json)
