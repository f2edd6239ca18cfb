"""``rankscope collect``: one pass over a data set, kept for clsdim, deficit and features."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankscope._base.lock import FolderLock
from rankscope.cli.interrupted import saying_what_is_kept
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    BatchOption,
    ChannelAxisOption,
    ClassesOption,
    ConfigOption,
    DataLabelsOption,
    DataLimitOption,
    DataOption,
    DataWeightsOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    TextOption,
    WeightsKeyOption,
)
from rankscope.cli.parsing import parse_cut_points

if TYPE_CHECKING:
    from rankscope.features import Collection

__all__ = ["collect_command"]

_MOST_WORKERS = 1024


@saves_memory("a smaller --batch-size", "fewer --cut-points")
def collect_command(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the collected run.", show_default=False)],
    data: DataOption = None,
    text: TextOption = None,
    labels: DataLabelsOption = None,
    weights: DataWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    cut_points: Annotated[
        str | None,
        typer.Option(
            help="Layers to keep moments of: blocks, paper, or names and globs separated by commas. Default: the "
            "blocks "
            "that are narrow enough.",
            show_default=False,
        ),
    ] = None,
    channels: ChannelAxisOption = "auto",
    batch_size: BatchOption = 64,
    limit: DataLimitOption = None,
    num_workers: Annotated[int, typer.Option("--workers", help="Number of processes that read the data.")] = 0,
    shard_size: Annotated[
        int | None,
        typer.Option(
            help="Number of samples in a shard. A run that is stopped loses at most one shard. Default: 10,000, or a "
            "tenth of the data (at least 256) if that is less.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Pass a data set through a model once and keep what clsdim, deficit and features need.

    Under torchrun --nproc-per-node=N -m rankscope collect, N processes share the data, each on a GPU of its own.
    """
    wanted = None if cut_points is None else parse_cut_points(cut_points)

    from rankscope._base.checks import count_of
    from rankscope._base.processes import team
    from rankscope.cli.chosen_model import ChosenModel
    from rankscope.cli.class_names import class_cautions
    from rankscope.cli.results import as_json_text, print_facts, print_written, write_result
    from rankscope.cli.source import Source, progress
    from rankscope.features import collect, feature_rank
    from rankscope.features.shards import ShardStore
    from rankscope.report.feature_section import feature_page
    from rankscope.views.sentences import note, sentence

    count_of(num_workers, "num_workers", least=0, most=_MOST_WORKERS)
    if shard_size is not None:
        count_of(shard_size, "shard_size")
    named = ChosenModel(model, weights, weights_key, seed, num_classes)
    source = Source(named, data, labels, limit, device, batch_size, tuple(text or ()))
    # what a model's own code prints must not mix with the result; the lock also covers the files that follow the shards
    lock = FolderLock(out, lend=True) if team().writes else contextlib.nullcontext()
    with lock, contextlib.redirect_stdout(sys.stderr), progress("collect") as report:
        loaded, read, facts = source.load()
        with saying_what_is_kept(lambda: _kept(out, len(read.dataset))):
            found = collect(
                loaded.model,
                read.dataset,
                cut_points=wanted,
                channels=channels,  # type: ignore[arg-type]
                out=out,
                batch_size=batch_size,
                num_workers=num_workers,
                shard_size=_shard_size(len(read.dataset)) if shard_size is None else shard_size,
                progress=report,
            )
        if not team().writes:
            return
        labelled = bool((found.labels >= 0).any())
        names = read.class_names, loaded.class_names
        cautions = class_cautions(found.labels, found.logits, *names) if labelled else ()
        about = {
            **found.to_dict(),
            "run": ShardStore.key_in(out),
            "model": loaded.name,
            "weights": loaded.weights,
            "data": "texts" if data is None else data,
            "seed": seed,
            "limit": limit,
            "class_names": None if read.class_names is None else list(read.class_names),
            "accuracy": float((found.logits.argmax(1) == found.labels).double().mean()) if labelled else None,
            "notes": [*map(sentence, (*cautions, *facts))],
        }
        write_result(out, "collection", about, {"samples": _samples(found)}, None)
        profile = feature_rank(found, reduce="pool") if found.moments and len(found) > 1 else None
        if profile is not None:
            page = feature_page(profile, model=loaded.name, data=about["data"], facts=facts)
            write_result(out, "features", profile.to_dict(), {"features": profile.table()}, profile.plot(), page=page)
    if as_json:
        print(as_json_text(about))
        return
    for caution in cautions:
        print(note(caution))
    print(f"{loaded.name}, {loaded.weights}")
    print(found)
    print(f"accuracy {about['accuracy']:.2%}" if labelled else "no labels, so no accuracy")
    print_facts((*cautions, *facts))
    if profile is not None:
        print(profile)
    print_written(
        out, "collection.json", "samples.csv", *(["features", "features.html"] if profile is not None else [])
    )


def _shard_size(samples: int) -> int:
    """About a tenth of the data, from 256 to 10,000 samples: so much at most is lost when a run is stopped."""
    return min(10_000, max(256, -(-samples // 10)))


def _kept(out: Path, total: int) -> str:
    """What a stopped collection has on disk, counted there."""
    from rankscope.features.shards import ShardStore

    after = ShardStore(out, {}).progress()[0]
    if not after:
        return (
            f"no shard was whole, so 0 of {total:,} samples are kept; the same command starts again "
            "(--shard-size N writes after every N samples)"
        )
    return f"{after:,} of {total:,} samples are kept in {out}; the same command continues after them"


def _samples(found: Collection) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "index": found.indices.numpy(),
            "label": found.labels.numpy(),
            "predicted": found.logits.argmax(1).numpy(),
        }
    )
