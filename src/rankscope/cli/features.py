"""``rankscope features``: feature dimension of every layer, over a data set or of what is kept already."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rankscope._base.errors import UsageError
from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    MODEL_HELP,
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
    LayersOption,
    SeedOption,
    TextOption,
    WeightsKeyOption,
)
from rankscope.cli.parsing import default_folder, parse_cut_points

__all__ = ["features_command"]

# options that mean something for a model alone
_OF_A_MODEL = (
    "weights",
    "weights_key",
    "seed",
    "num_classes",
    "cut_points",
    "batch_size",
    "memory_budget",
    "limit",
    "device",
)


@saves_memory("a smaller --batch-size", "a smaller --memory-budget", "fewer --cut-points", "--reduce pool")
def features_command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help=f"{MODEL_HELP} Without --data: a folder that rankscope collect wrote, or a .npy, .npz or "
            ".safetensors FILE of features.",
            show_default=False,
        ),
    ],
    data: DataOption = None,
    text: TextOption = None,
    labels: DataLabelsOption = None,
    weights: DataWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    cut_points: LayersOption = "blocks",
    reduce: Annotated[
        str | None,
        typer.Option(help="How feature maps become rows: flatten (default), pool or positions.", show_default=False),
    ] = None,
    channels: ChannelAxisOption = "auto",
    batch_size: BatchOption = 64,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory for the covariances, such as 2GB. Wider layers are sketched. Default: 4GB.",
        ),
    ] = None,
    limit: DataLimitOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results. Default: RUN itself, or runs/MODEL.")
    ] = None,
    head: Annotated[
        bool,
        typer.Option(
            "--head",
            help="Measure neural collapse (NC1 to NC4) and class ranks of the head's input. A RUN holds the head. A "
            "FILE needs the arrays labels (or --labels), weight and bias.",
        ),
    ] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how many dimensions the features of every layer have, over a data set or in a collected run."""
    if data is None and not text:
        from rankscope.cli.kept_features import measure_kept

        given = [n for n in _OF_A_MODEL if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
        measure_kept(
            Path(model),
            unused=given,
            labels=labels,
            head=head,
            reduce=reduce,
            channels=channels,
            out=out,
            as_json=as_json,
        )
        return
    if head:
        raise UsageError(
            "--head needs the head's input and labels; run rankscope collect first, then rankscope features RUN --head"
        )
    wanted = parse_cut_points(cut_points)

    import torch

    from rankscope._base.checks import budget_of
    from rankscope.cli.chosen_model import ChosenModel
    from rankscope.cli.readable import readable_calls
    from rankscope.cli.results import print_result, write_result
    from rankscope.cli.source import Source, progress
    from rankscope.features.feature_rank import measured_features
    from rankscope.features.reduction import check_reduce
    from rankscope.features.sources import Skipped, as_dataset, skipped_lines
    from rankscope.report.feature_section import feature_page
    from rankscope.views.sentences import sentence

    chosen: Any = reduce or "flatten"
    check_reduce(chosen, channels)
    if memory_budget is not None:
        budget_of(memory_budget, torch.device("cpu"))
    folder = out if out is not None else default_folder(model)
    named = ChosenModel(model, weights, weights_key, seed, num_classes)
    source = Source(named, data, labels, limit, device, batch_size, tuple(text or ()))
    # what a model's own code prints must not mix with the result
    with FolderLock(folder), contextlib.redirect_stdout(sys.stderr), progress("features") as report:
        loaded, read, facts = source.load(labelled=False)
        dataset, options = as_dataset(loaded.model, read.dataset)
        skipped: list[Skipped] = []

        profile = measured_features(
            loaded.model,
            readable_calls(loaded.model, dataset, options, batch_size=batch_size, skipped=skipped, report=report),
            cut_points=wanted,
            reduce=chosen,
            channels=channels,  # type: ignore[arg-type]
            samples=lambda: len(dataset),
            memory_budget=memory_budget,
        )
        record = {
            **profile.to_dict(),
            "model": loaded.name,
            "weights": loaded.weights,
            "data": "texts" if data is None else data,
            "skipped": [vars(one) for one in skipped],
            "notes": [*profile.notes, *map(sentence, facts)],
        }
        page = feature_page(profile, model=loaded.name, data=record["data"], facts=facts)
        write_result(folder, "features", record, {"features": profile.table()}, profile.plot(), page=page)
    heading = f"{loaded.name}, {loaded.weights}; features: {chosen}"
    lines = skipped_lines(skipped)
    print_result(
        f"{heading}\n{profile}", record, folder, "features", "features.html", as_json=as_json, said=facts, lines=lines
    )
