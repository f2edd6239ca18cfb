"""Commands of the paper's experiments: components, and its figures and tables by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.shared import DebugOption, DeviceOption, JsonOption, SeedOption, app

__all__ = ["probe_command", "reproduce_command"]


@app.command("probe")
def probe_command(
    component: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMPONENT|all]",
            help="all, names of the standard set separated by commas (conv3x3, fc, relu, gelu, silu, maxpool, avgpool, "
            "batchnorm_train, batchnorm_eval, instancenorm, layernorm, groupnorm, rmsnorm, attention, dropout, "
            "upsample, downsample), or your own as package.module:Class or package.module:factory. Default: all; "
            "with --remedies: none.",
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
