"""``rankscope clsdim``: how many principal components keep the accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankscope._base.errors import DataError, UsageError
from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    ConfigOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    LabelsOption,
    ResultOption,
    RunArgument,
)

__all__ = ["clsdim_command"]


@saves_memory("--device cpu", "a run that was collected with --limit")
def clsdim_command(
    run: RunArgument,
    labels: LabelsOption = None,
    head_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with weight and bias of the final layer, for an array file of features."
        ),
    ] = None,
    head: Annotated[str | None, typer.Option(hidden=True)] = None,
    keep: Annotated[float, typer.Option(help="Share of the full accuracy that has to be kept.")] = 0.95,
    projection: Annotated[
        str, typer.Option(help="How features are projected: uncentred (as published) or centred.")
    ] = "uncentred",
    accuracy: Annotated[
        str, typer.Option(help="overall, or balanced (the mean of the accuracies of the classes).")
    ] = "overall",
    least: Annotated[
        int, typer.Option(help="Smallest number of components to try: 1, or 0 as in the paper's code.")
    ] = 1,
    allow_absent: Annotated[bool, typer.Option("--allow-absent", help="Accept classes that have no sample.")] = False,
    device: DeviceOption = "auto",
    out: ResultOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Find how many principal components of the final features keep the accuracy of a collected run."""
    if head is not None:  # a switch of rankscope features; here it was a file
        raise UsageError(f"--head is now --head-file; write --head-file {head}")
    from rankscope._base.checks import device_of
    from rankscope.cli.results import print_result, write_result
    from rankscope.cli.run_data import check_labelled, read_run
    from rankscope.features import classification_dimension
    from rankscope.report.feature_section import classification_page

    where = device_of(device)
    found = read_run(run, array="features", labels=labels, head=head_file)
    check_labelled(found, run)
    assert found.features is not None  # what it was asked for
    if found.head is None:
        raise DataError(f"{run.name} holds no head; add --head-file FILE, a .safetensors or .npz with weight and bias")
    folder = out if out is not None else found.folder
    with FolderLock(folder):
        result = classification_dimension(
            found.features,
            found.labels,
            found.head,
            logits=found.logits,
            keep=keep,
            projection=projection,  # type: ignore[arg-type]
            accuracy=accuracy,  # type: ignore[arg-type]
            least=least,
            allow_absent=allow_absent,
            device=where,
            progress=True,
        )
        record = {**result.to_dict(), **found.about}
        tables = {"clsdim": result.table(), "clsdim-curve": result.curve_table()}
        data = found.about.get("data")
        page = classification_page(result, model=found.about.get("model"), data=None if data is None else str(data))
        write_result(folder, "clsdim", record, tables, result.plot(), page=page)
    print_result(result, record, folder, "clsdim", "clsdim-curve.csv", "clsdim.html", as_json=as_json)
