"""``rankscope deficit``: classes that others determine, with a page to search them."""

from __future__ import annotations

from typing import Annotated

import typer

from rankscope._base.errors import UsageError
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
from rankscope.cli.parsing import whole_number

__all__ = ["deficit_command"]

_KEEP = 0.9  # as independence_deficit's own


@saves_memory("fewer --classes", "--device cpu")
def deficit_command(
    run: RunArgument,
    labels: LabelsOption = None,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Penalty on the weights, in units of the squared logits. Default: the largest that keeps the "
            "accuracy; "
            "20 with --samples-used reference.",
            show_default=False,
        ),
    ] = None,
    samples_used: Annotated[str, typer.Option(help="all, or reference (only the samples of the class).")] = "all",
    accuracy: Annotated[
        str, typer.Option(help="overall, or balanced (the mean of the accuracies of the classes).")
    ] = "overall",
    classes: Annotated[
        str | None,
        typer.Option(
            help="Classes to measure: numbers, ranges such as 10-20, or names, separated by commas. Default: all."
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(help="Share of the accuracy of a class that has to be kept, without --eta. Default: 0.9."),
    ] = None,
    device: DeviceOption = "auto",
    out: ResultOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Find the classes of a collected run whose logits other classes determine, and write a page to search them."""
    from rankscope._base.checks import device_of
    from rankscope.cli.results import print_result, write_result
    from rankscope.cli.run_data import check_labelled, read_run
    from rankscope.deficit import independence_deficit
    from rankscope.report.deficit_page import deficit_page, most_dependent

    if eta is not None and keep is not None:
        raise UsageError(
            f"--keep {keep:g} chooses the penalty by the accuracy, so it has no meaning with --eta {eta:g}; "
            "leave one of them out"
        )
    where = device_of(device)
    found = read_run(run, array="logits", labels=labels)
    check_labelled(found, run)
    assert found.logits is not None  # what it was asked for
    folder = out if out is not None else found.folder
    with FolderLock(folder):
        about = found.about
        names = about["class_names"]
        if names is not None and len(names) != found.logits.shape[1]:
            names = None
        table = independence_deficit(
            found.logits,
            found.labels,
            eta=eta,
            samples_used=samples_used,
            accuracy=accuracy,  # type: ignore[arg-type]
            classes=None if classes is None else _classes(classes, names, found.logits.shape[1]),
            class_names=names,
            keep=_KEEP if keep is None else keep,
            feature_dimension=None if found.features is None else found.features.shape[1],
            device=where,
            progress=True,
        )
        record = {**table.to_dict(), **about}
        shown = most_dependent(table)
        page = deficit_page(table, model=about["model"], source=str(about["data"]))
        axes = table.plot(shown.index)
        write_result(folder, "deficit", record, {"deficit": table.table()}, axes, index=True, page=page)
    if print_result(table, record, folder, "deficit", "deficit.html", as_json=as_json):
        print(f"figure: class {shown.name}; search all classes in {folder / 'deficit.html'}")


def _classes(text: str, names: list[str] | None, count: int) -> list[int]:
    """Class indices from numbers, ranges (10-20) and names.

    >>> _classes("0,2-3,cat", ["dog", "cat", "cow", "hen"], 4)
    [0, 2, 3, 1]
    """
    chosen: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, _, last = (whole_number(end) for end in part.partition("-"))
        if names is not None and part in names:
            chosen.append(names.index(part))
        elif (index := whole_number(part)) is not None:
            chosen.append(index)
        elif first is not None and last is not None and first <= last < count:
            chosen += range(first, last + 1)
        else:
            raise UsageError(f"--classes: {part!r} is no class; give numbers from 0 to {count - 1}, ranges or names")
    if not chosen:
        raise UsageError(f"--classes {text!r} names no class; give numbers, ranges as 10-20, or names")
    return list(dict.fromkeys(chosen))
