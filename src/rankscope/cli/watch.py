"""``rankscope watch``: ranks and metrics of every layer at every checkpoint of a training run."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankscope._base.errors import OutputError, RankscopeError, UsageError
from rankscope.cli.columns import parse_columns
from rankscope.cli.interrupted import saying_what_is_kept
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    MODEL_HELP,
    BatchOption,
    ChannelAxisOption,
    ClassesOption,
    ConfigOption,
    DataLimitOption,
    DataOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    LayersOption,
    SeedOption,
    TextOption,
    ToleranceOption,
    WeightsKeyOption,
)
from rankscope.cli.parsing import listed, parse_cut_points, parse_tolerance

if TYPE_CHECKING:
    from rankscope.cli.watched_network import WatchedNetwork
    from rankscope.monitor import WatchedRun
    from rankscope.monitor.watcher import Watcher

__all__ = ["watch_command"]


@saves_memory("a smaller --batch-size", "a smaller --memory-budget", "fewer --cut-points")
def watch_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder into which a run saves checkpoints: .ckpt, .pt, .pth and .safetensors files, or folders "
            "checkpoint-N.",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help=MODEL_HELP, show_default=False)],
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    data: DataOption = None,
    text: TextOption = None,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="Measure Jacobian ranks too, on photos, digits, noise, a folder, or a file. Default without --data "
            "and --text: photos, or digits for a network of 8×8 digits.",
            show_default=False,
        ),
    ] = None,
    limit: DataLimitOption = None,
    metrics: Annotated[
        str,
        typer.Option(metavar="LIST", help="Columns of rankscope features to measure over the data."),
    ] = "effective_rank,pca_dimension,rankme",
    cut_points: LayersOption = "blocks",
    reduce: Annotated[str, typer.Option(help="How feature maps become rows: pool, flatten or positions.")] = "pool",
    channels: ChannelAxisOption = "auto",
    batch_size: BatchOption = 64,
    memory_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to work in, such as 2GB.", show_default=False)
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the Jacobian: all, auto, sketch:K or position:N.", show_default=False),
    ] = None,
    tolerance: ToleranceOption = "paper",
    files: Annotated[
        str, typer.Option(metavar="GLOBS", help="Names or globs of the checkpoints to measure, separated by commas.")
    ] = "*",
    follow: Annotated[bool, typer.Option("--follow", help="Continue to measure checkpoints as they appear.")] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="With --follow: time between two searches for checkpoints.")
    ] = 10.0,
    patience: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --follow: stop after this time without a new checkpoint. Default: never.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results. Default: runs/watch-DIR.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure every checkpoint of a training run: ranks and metrics by layer and step, as a table, figures and a page.

    The same command continues: checkpoints that were measured before are not measured again.
    """
    if patience is not None and not follow:
        raise UsageError(f"--patience {patience:g} belongs to --follow; add it, or leave --patience out")
    names, chosen = parse_cut_points(cut_points), parse_columns(columns, None, None, None, seed)

    from rankscope._base.checks import budget_of, count_of, device_of, number_of
    from rankscope._base.lock import FolderLock
    from rankscope.cli.chosen_model import ChosenModel
    from rankscope.cli.results import print_result
    from rankscope.cli.source import progress
    from rankscope.cli.watched_network import WatchedNetwork
    from rankscope.features.reduction import check_reduce
    from rankscope.features.sources import skipped_lines
    from rankscope.monitor.watcher import Watcher
    from rankscope.monitor.watching import check_metrics

    number_of(every, "every", least=0.1)
    if patience is not None:
        number_of(patience, "patience", least=0)
    check_reduce(reduce, channels)
    where = device_of(device)
    if memory_budget is not None:
        budget_of(memory_budget, where)
    asked: dict[str, Any] = {
        "metrics": check_metrics(listed(metrics, "--metrics")),
        "cut_points": names,
        "reduce": reduce,
        "channels": channels,
        "batch_size": count_of(batch_size, "batch_size"),
        "memory_budget": memory_budget,
        "columns": chosen,
        "tolerance": parse_tolerance(tolerance),
    }
    network = WatchedNetwork(
        ChosenModel(model, "random", weights_key, seed, num_classes),  # the weights are each checkpoint's
        data,
        tuple(text or ()),
        _images(images, model, data, text),
        limit,
        device,
        asked,
    )
    target = out if out is not None else Path("runs") / f"watch-{folder.resolve().name}"
    with FolderLock(target), contextlib.redirect_stdout(sys.stderr), progress("watch") as report:
        watcher = Watcher(
            folder,
            network.load,
            network.measure,
            network.about,
            files=listed(files, "--files"),
            kept=target / "checkpoints",
            report=report,
        )
        with saying_what_is_kept(lambda: _kept(target)):
            found = _followed(watcher, network, target, every if follow else None, patience)
    record = found.to_dict()
    print_result(
        found,
        record,
        target,
        "watch",
        "curves.png",
        "curves.svg",
        "report.html",
        as_json=as_json,
        lines=skipped_lines(network.skipped),
    )


def _followed(
    watcher: Watcher, network: WatchedNetwork, target: Path, every: float | None, patience: float | None
) -> WatchedRun:
    """Look once, or again and again; what was found is written whenever it has changed."""
    from rankscope.views.sentences import note

    found: WatchedRun | None = None
    said: set[str] = set()
    last, first = time.monotonic(), True
    while True:
        if watcher.look() or first:
            last, first = time.monotonic(), False
            try:
                found = _recorded(watcher, network)
                _write(found, network.model.name, target)
            except RankscopeError as error:
                if every is None or isinstance(error, UsageError | OutputError):
                    raise
                found = None  # nothing is whole yet
                _say([str(error)], said, every)
            else:
                _say([str(found).partition("\n")[0], *map(note, found.facts)], said, every)
        idle = patience is not None and time.monotonic() - last >= patience
        if every is None or idle:
            return found if found is not None else _recorded(watcher, network)
        time.sleep(every)


def _say(lines: list[str], said: set[str], every: float | None) -> None:
    """What is new, on standard error while a run is followed."""
    for line in lines:
        if every is not None and line not in said:
            print(line, file=sys.stderr, flush=True)
    said.update(lines)


def _recorded(watcher: Watcher, network: WatchedNetwork) -> WatchedRun:
    from dataclasses import replace

    from rankscope._base.provenance import versions

    found = watcher.record({"versions": versions(), "model": network.model.name, "data": network.data})
    return replace(found, facts=(*found.facts, *network.facts))


def _write(found: WatchedRun, model: str, target: Path) -> None:
    """``watch.json``, ``.csv``, ``.png`` and ``.svg``, ``curves.png`` and ``.svg``, and ``report.html``."""
    from rankscope._base.files import write_whole
    from rankscope.cli.results import write_figure, write_result
    from rankscope.monitor.watch_page import watched_page

    write_result(target, "watch", found.to_dict(), {"watch": found.table()}, found.plot())
    write_figure(target, "curves", found.curves)
    page = watched_page(found, title=f"Rank over training: {Path(found.folder).name}", weights_of=model)
    write_whole(target / "report.html", page.html())


def _images(images: str | None, model: str, data: str | None, text: list[str] | None) -> str | None:
    if images is not None or data is not None or text:
        return images
    return "digits" if model == "digits" else "photos"


def _kept(target: Path) -> str:
    from rankscope._base.text import counted

    done = len(list((target / "checkpoints").glob("*.json")))
    return f"{counted(done, 'checkpoint')} {'is' if done == 1 else 'are'} kept in {target}; the same command continues"
