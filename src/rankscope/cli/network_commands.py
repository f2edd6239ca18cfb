"""Commands on one network: its layers, its profile, and the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankscope.cli.shared import (
    ClassesOption,
    DebugOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    WeightsKeyOption,
    app,
)

__all__ = ["demo_command", "layers_command", "profile_command"]


@app.command("layers")
def layers_command(
    model: ModelArgument,
    weights: Annotated[
        str, typer.Option(help="pretrained, random or a FILE; the table does not depend on it.")
    ] = "random",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List every layer that can be a cut point, and whether all information passes through it."""
    from rankscope.cli.layers import print_layers

    print_layers(model, weights=weights, weights_key=weights_key, seed=seed, num_classes=num_classes, as_json=as_json)


@app.command("profile")
def profile_command(
    model: ModelArgument,
    weights: Annotated[str, typer.Option(help="pretrained, random, or a .safetensors or .pt FILE.")] = "pretrained",
    weights_key: WeightsKeyOption = None,
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
        typer.Option(
            help="all, auto, sketch:K, or position:N (all coordinates of token N). auto: all up to 1,024 "
            "inputs, else the central 16×16 patch."
        ),
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
        weights_key=weights_key,
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
