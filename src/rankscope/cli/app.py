"""The commands and their options. Each hands over to a function that does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    name="rankscope",
    help="How much independent information survives in a neural network, layer by layer, and how sure that number is.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
theory_app = typer.Typer(help="What depth must do to rank: random chains, predictions, a network's exponents.")
app.add_typer(theory_app, name="theory")

_MODEL_HELP = "timm:NAME, torchvision:NAME, hf:NAME, path/to/file.py:factory, or digits (the network of the demo)."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP, show_default=False)]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides random weights, noise, sketches and drawn images.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON alone to standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ClassesOption = Annotated[
    int | None, typer.Option("--num-classes", help="Size of the last layer, for random weights or a file's.")
]


def _version(asked: bool) -> None:
    if asked:
        from rankscope import __version__

        typer.echo(f"rankscope {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command("layers")
def layers_command(
    model: ModelArgument,
    weights: Annotated[
        str, typer.Option(help="pretrained, random or a FILE; the table does not depend on it.")
    ] = "random",
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List every layer that can be a cut point, and whether all information passes through it."""
    from rankscope.cli.layers import print_layers

    print_layers(model, weights=weights, seed=seed, num_classes=num_classes, as_json=as_json)


@app.command("profile")
def profile_command(
    model: ModelArgument,
    weights: Annotated[str, typer.Option(help="pretrained, random, or a .safetensors or .pt FILE.")] = "pretrained",
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="photos (scikit-learn's two), digits, noise, a folder, or a file. "
            "Default: photos; for a network of 8×8 digits, 32 of them.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many images, drawn at random from the seed.")] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Columns of one patch: 16, or HEIGHTxWIDTH. Partial rank.")
    ] = None,
    patch_offset: Annotated[
        str | None, typer.Option(metavar="ROW,COL", help="First pixel of the patch; default: at the centre.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="LIST", help="Channels of the patch, as 0 or 0,2; default: all of them.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="all, auto or sketch:K. auto: all up to 1,024 inputs, else the central 16×16 patch."),
    ] = None,
    background: Annotated[str, typer.Option(help="Outside the patch: image, or zero.")] = "image",
    tolerance: Annotated[str, typer.Option(help="paper, reference, torch, or a number: a constant rtol.")] = "paper",
    cut_points: Annotated[
        str, typer.Option(help="blocks, paper, all, or names and globs separated by commas.")
    ] = "blocks",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; default: the model's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    chunk_size: Annotated[str, typer.Option(help="Tangents pushed at once: auto, or a number.")] = "auto",
    memory_budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Workspace, such as 2GB; default: 4 GiB or half of what is free.")
    ] = None,
    certify: Annotated[bool, typer.Option(help="Bound the error of every rank with float64 probes.")] = True,
    theory: Annotated[
        bool, typer.Option("--theory", help="Lay the prediction for random layers of the same widths over it.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder for the results; default: runs/MODEL.")
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table, no progress.")] = False,
    debug: DebugOption = False,
) -> None:
    """Measure the Jacobian rank of every sub-network, print a table and write a report."""
    from rankscope.cli.options import Request
    from rankscope.cli.profile import run

    request = Request.parse(
        model=model,
        weights=weights,
        seed=seed,
        num_classes=num_classes,
        images=images,
        limit=limit,
        patch=patch,
        patch_offset=patch_offset,
        channels=channels,
        columns=columns,
        background=background,
        tolerance=tolerance,
        cut_points=cut_points,
        dtype=dtype,
        device=device,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
        certify=certify,
        out=out,
    )
    run(request, as_json=as_json, quiet=quiet, theory=theory)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the report.")] = Path("rankscope-demo"),
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress, no findings: only where the report lies.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Measure what ships with rankscope, offline and on the CPU, and write one HTML report."""
    from rankscope.cli.demo import run

    run(out, quiet=quiet)


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
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
ChannelAxisOption = Annotated[
    str,
    typer.Option(
        "--channels", help="Axis of the channels in feature maps: first, last, or auto (last for tokens alone)."
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

    source = Source(model, data, labels, weights, seed, num_classes, limit, device, batch_size)
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
            help=f"{_MODEL_HELP} Without --data: a folder that rankscope collect wrote, or a .npy, .npz or "
            ".safetensors FILE of features.",
            show_default=False,
        ),
    ],
    data: KeptDataOption = None,
    labels: LabelsOption = None,
    weights: DataWeightsOption = "pretrained",
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

        names = ("labels", "weights", "seed", "num_classes", "cut_points", "batch_size", "limit", "device")
        given = [n for n in names if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
        run_kept_features(Path(model), unused=given, reduce=reduce, channels=channels, out=out, as_json=as_json)
        return
    from rankscope.cli.feature_space import Source, run_features

    source = Source(model, data, labels, weights, seed, num_classes, limit, device, batch_size)
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
    convention: Annotated[str, typer.Option(help="paper, or centred.")] = "paper",
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
        convention=convention,
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
    convention: Annotated[str, typer.Option(help="all samples, or reference: the class's own.")] = "all",
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
        convention=convention,
        classes=classes,
        keep=keep,
        out=out,
        device=device,
        as_json=as_json,
    )


@app.command("probe")
def probe_command(
    component: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMPONENT|all]",
            help="all, standard names separated by commas (relu, layernorm, …), or your own as package.module:Class or "
            "package.module:factory. Default: all; with --remedies: none.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[str, typer.Option(help="small, or full: the paper's size, for a GPU.")] = "small",
    input_shape: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Sizes of one sample instead of the scale's, as 128x8x8.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples behind the feature dimension.")] = None,
    points: Annotated[int, typer.Option(help="Samples at which the Jacobian is taken.")] = 1,
    tolerance: Annotated[str, typer.Option(help="paper, reference, torch, or a number: a constant rtol.")] = "paper",
    front: Annotated[str, typer.Option(help="The random layer before it: gaussian or orthogonal.")] = "gaussian",
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    evaluation: Annotated[bool, typer.Option("--eval", help="Put your own component into evaluation mode.")] = False,
    remedies: Annotated[
        bool, typer.Option("--remedies", help="Compare remedies on one deep chain (skip, normalisation, width, …).")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("runs/probe"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure what single components do to feature dimension and Jacobian rank (Fig. 3)."""
    from rankscope.cli.probe import run_probe

    run_probe(
        component,
        scale=scale,
        input_shape=input_shape,
        batch=batch,
        jacobian_points=points,
        tolerance=tolerance,
        front=front,
        dtype=dtype,
        evaluation=evaluation,
        remedies=remedies,
        seed=seed,
        device=device,
        out=out,
        as_json=as_json,
    )


@app.command("reproduce")
def reproduce_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="fig1a … fig1f, fig2, fig3, fig4, table1 (the networks), table2 (classification dimensions), or all.",
            show_default=False,
        ),
    ],
    convention: Annotated[
        str, typer.Option("--as", help="paper (what the text says) or reference (what the authors' code does).")
    ] = "paper",
    imagenet: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Validation folder, one subfolder a class. fig1d-f and fig3 need none."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Local weights, a file a network (resnet18.pth …); default: pretrained."),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="More models, by commas: timm:NAME, torchvision:NAME, hf:NAME, file.py:f."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Of the paper's networks only these (ResNet-18,ViT-T), or none."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="Images of fig1a-c, drawn at random from the seed; default 16.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="For all else at most so many images of the folder, spread over its classes.")
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    scale: Annotated[str, typer.Option(help="full, or small: sizes for tests, not the paper's.")] = "full",
    workers: Annotated[int, typer.Option(help="Processes that read the images.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files; default: runs/reproduce/NAME.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure a figure or table of the paper again and compare it with what the paper prints."""
    from rankscope.cli.reproduce import run

    run(
        name,
        out=out,
        networks=networks,
        only=only,
        as_json=as_json,
        convention=convention,
        imagenet=imagenet,
        weights=weights,
        images=images,
        limit=limit,
        device=device,
        seed=seed,
        scale=scale,
        workers=workers,
    )


@theory_app.command("chain")
def theory_chain_command(
    width: Annotated[int, typer.Option(help="Units per layer.")] = 1000,
    depth: Annotated[int, typer.Option(help="Number of layers.")] = 50,
    init: Annotated[str, typer.Option(help="normal(STD), kaiming_normal or xavier_normal.")] = "normal(0.02)",
    seeds: Annotated[str, typer.Option(metavar="LIST", help="One chain for each, separated by commas.")] = "0",
    tolerance: Annotated[str, typer.Option(help="paper, reference, torch, or a number: a constant rtol.")] = "paper",
    activation: Annotated[str | None, typer.Option(help="relu, gelu or tanh; default: none.")] = None,
    residual: Annotated[
        str | None, typer.Option(metavar="SCALE", help="h + SCALE·block(h); default: no skip connection.")
    ] = None,
    normalisation: Annotated[str | None, typer.Option(help="layernorm or batchnorm; default: none.")] = None,
    float32_stop: Annotated[
        bool, typer.Option("--float32-stop", help="Stop where all of J is below float32's epsilon, as the paper does.")
    ] = False,
    samples: Annotated[int, typer.Option(help="Inputs behind the dimension of the features.")] = 5000,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("runs/chain"),
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the Jacobian rank and the feature dimension of random deep chains beside the theory (Fig. 1 d-f)."""
    from rankscope.cli.theory import run_chain

    run_chain(
        width=width,
        depth=depth,
        init=init,
        seeds=seeds,
        tolerance=tolerance,
        activation=activation,
        residual=residual,
        normalisation=normalisation,
        float32_stop=float32_stop,
        samples=samples,
        out=out,
        as_json=as_json,
    )


@theory_app.command("predict")
def theory_predict_command(
    width: Annotated[int, typer.Option(help="Units per layer.", show_default=False)],
    depth: Annotated[int, typer.Option(help="Number of layers.", show_default=False)],
    tolerance: Annotated[str, typer.Option(help="paper, reference, torch, or a number: a constant rtol.")] = "paper",
    law: Annotated[str, typer.Option(help="auto, fuss-catalan or lyapunov.")] = "auto",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict the numerical rank of a product of random square layers, in closed form."""
    from rankscope.cli.theory import predict

    predict(width, depth, tolerance=tolerance, law=law, as_json=as_json)


@theory_app.command("exponents")
def theory_exponents_command(
    model: ModelArgument,
    weights: Annotated[str, typer.Option(help="pretrained, random, or a .safetensors or .pt FILE.")] = "pretrained",
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    images: Annotated[
        str | None,
        typer.Option(help="photos, digits, noise, a folder, or a file; as rankscope profile.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many images, drawn at random from the seed.")] = None,
    cut_points: Annotated[
        str, typer.Option(help="Where blocks may end: blocks, or names and globs separated by commas.")
    ] = "blocks",
    top: Annotated[int, typer.Option(help="How many leading exponents.")] = 64,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Folder for the results; default: runs/MODEL.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the Lyapunov exponents of a network's own chain of equal-width blocks (transformers, mixers)."""
    from rankscope.cli.options import Request
    from rankscope.cli.theory import run_exponents

    request = Request.parse(
        model=model,
        weights=weights,
        seed=seed,
        num_classes=num_classes,
        images=images,
        limit=limit,
        patch=None,
        patch_offset=None,
        channels=None,
        columns=None,
        background="image",
        tolerance="paper",
        cut_points=cut_points,
        dtype=dtype,
        device=device,
        chunk_size="auto",
        memory_budget=None,
        certify=False,
        out=out,
    )
    run_exponents(request, top=top, as_json=as_json)
