"""Commands on a data set: collect, features, clsdim and deficit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.shared import (
    MODEL_HELP,
    ClassesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    WeightsKeyOption,
    app,
)

__all__ = ["clsdim_command", "collect_command", "deficit_command", "features_command"]


DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DIR|digits|FILE",
        help="A folder with one subfolder a class, digits, or arrays: a .npy (see --labels), .npz or .safetensors.",
        show_default=False,
    ),
]
KeptDataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR|digits|FILE",
        help="For a model: a folder with one subfolder a class, digits, or arrays (.npy, .npz, .safetensors).",
        show_default=False,
    ),
]
LabelsOption = Annotated[Path | None, typer.Option("--labels", metavar="FILE", help="Labels of a .npy, one a sample.")]
DataWeightsOption = Annotated[str, typer.Option("--weights", help="pretrained, random, or a FILE.")]
DataLimitOption = Annotated[
    int | None, typer.Option("--limit", help="At most this many samples, drawn at random from the seed.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Samples in one forward pass.")]
ChannelAxisOption = Annotated[
    str,
    typer.Option(
        "--channels",
        help="Axis of the channels in feature maps: first, last, or auto (by shape; last for tokens and H×H×C).",
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder that rankscope collect wrote, or a .npy, .npz or .safetensors FILE of features or logits.",
        show_default=False,
    ),
]
AccuracyOption = Annotated[str, typer.Option(help="overall, or balanced: the mean of the accuracies of the classes.")]
ResultOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder for the results; default: RUN itself, or runs/FILE.")
]


@app.command("collect")
def collect_command(
    model: ModelArgument,
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the shards.", show_default=False)],
    labels: LabelsOption = None,
    weights: DataWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    cut_points: Annotated[
        str | None,
        typer.Option(
            help="blocks, paper, or names and globs separated by commas. Default: the blocks that are narrow enough.",
            show_default=False,
        ),
    ] = None,
    channels: ChannelAxisOption = "auto",
    batch_size: BatchOption = 64,
    limit: DataLimitOption = None,
    workers: Annotated[int, typer.Option(help="Processes that read the data.", min=0)] = 0,
    shard_size: Annotated[
        int | None,
        typer.Option(
            help="Samples a shard: so many at most are lost when the run is stopped. Default: 10,000, or a tenth of "
            "the data (at least 256) where that is less.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Stream a data set through a model once and keep what clsdim, deficit and features need."""
    from rankscope.cli.feature_space import Source, run_collect

    source = Source(model, data, labels, weights, weights_key, seed, num_classes, limit, device, batch_size)
    run_collect(
        source,
        cut_points=cut_points,
        channels=channels,
        out=out,
        num_workers=workers,
        shard_size=shard_size,
        as_json=as_json,
    )


@app.command("features")
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
    data: KeptDataOption = None,
    labels: LabelsOption = None,
    weights: DataWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    cut_points: Annotated[str, typer.Option(help="blocks, paper, all, or names and globs.")] = "blocks",
    reduce: Annotated[
        str | None,
        typer.Option(help="Feature maps to rows: flatten (default), pool or positions.", show_default=False),
    ] = None,
    channels: ChannelAxisOption = "auto",
    batch_size: BatchOption = 64,
    limit: DataLimitOption = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results; default: RUN itself, or runs/MODEL.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure how many dimensions the features of every layer have, over a data set or in a collected run."""
    if data is None:
        from rankscope.cli.kept_features import run_kept_features

        names = (
            "labels",
            "weights",
            "weights_key",
            "seed",
            "num_classes",
            "cut_points",
            "batch_size",
            "limit",
            "device",
        )
        given = [n for n in names if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
        run_kept_features(Path(model), unused=given, reduce=reduce, channels=channels, out=out, as_json=as_json)
        return
    from rankscope.cli.feature_space import Source, run_features

    source = Source(model, data, labels, weights, weights_key, seed, num_classes, limit, device, batch_size)
    chosen = reduce or "flatten"
    run_features(source, cut_points=cut_points, reduce=chosen, channels=channels, out=out, as_json=as_json)


@app.command("clsdim")
def clsdim_command(
    run: RunArgument,
    labels: LabelsOption = None,
    head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="weight and bias of the final layer, beside features.")
    ] = None,
    retain: Annotated[float, typer.Option(help="Share of the full accuracy to keep.")] = 0.95,
    projection: Annotated[str, typer.Option(help="uncentred (as published), or centred.")] = "uncentred",
    accuracy: AccuracyOption = "overall",
    allow_absent: Annotated[bool, typer.Option("--allow-absent", help="Accept classes without a sample.")] = False,
    device: DeviceOption = "auto",
    out: ResultOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find how many principal components of the final features keep the accuracy of a collected run."""
    from rankscope.cli.feature_space import run_clsdim

    run_clsdim(
        run,
        labels=labels,
        head=head,
        retain=retain,
        projection=projection,
        accuracy=accuracy,
        allow_absent=allow_absent,
        out=out,
        device=device,
        as_json=as_json,
    )


@app.command("deficit")
def deficit_command(
    run: RunArgument,
    labels: LabelsOption = None,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Penalty, on the scale of the squared logits. Default: the largest that keeps the accuracy (all), "
            "20 (reference).",
            show_default=False,
        ),
    ] = None,
    samples_used: Annotated[str, typer.Option(help="all samples, or reference: the class's own.")] = "all",
    accuracy: Annotated[str, typer.Option(help="overall, or balanced: every class counts alike.")] = "overall",
    classes: Annotated[
        str | None, typer.Option(help="Numbers, ranges as 10-20, or names, by commas; default: every class.")
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of a class's accuracy to keep without --eta.")] = 0.9,
    device: DeviceOption = "auto",
    out: ResultOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Find the classes of a collected run whose logits others determine, and write a page to search them."""
    from rankscope.cli.feature_space import run_deficit

    run_deficit(
        run,
        labels=labels,
        eta=eta,
        samples_used=samples_used,
        accuracy=accuracy,
        classes=classes,
        keep=keep,
        out=out,
        device=device,
        as_json=as_json,
    )
