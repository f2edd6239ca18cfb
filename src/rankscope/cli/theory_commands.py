"""Commands of the theory: random chains, predictions, exponents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.shared import (
    ClassesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    WeightsKeyOption,
    app,
)

__all__ = ["theory_chain_command", "theory_exponents_command", "theory_predict_command"]

theory_app = typer.Typer(help="What depth must do to rank: random chains, predictions, a network's exponents.")
app.add_typer(theory_app, name="theory")


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
    law: Annotated[
        str,
        typer.Option(help="auto (by depth, without a step), fuss-catalan (shallow), lyapunov (deep) or lyapunov-mean."),
    ] = "auto",
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
    weights_key: WeightsKeyOption = None,
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
        weights_key=weights_key,
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
