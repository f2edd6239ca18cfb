"""``rankscope reproduce``: the paper's figures and tables by name."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rankscope._base.command import said
from rankscope._base.errors import PartlyDoneError
from rankscope._base.progress import progress_for
from rankscope.cli.interrupted import InterruptedRunError
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import ConfigOption, DebugOption, DeviceOption, JsonOption, SeedOption, one_of
from rankscope.cli.parsing import listed

__all__ = ["reproduce_command"]


@saves_memory("--scale small", "a smaller --limit")
def reproduce_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=one_of(*(f"fig1{k}" for k in "abcdef"), "fig2", "fig3", "fig4", "table1", "table2", "all"),
            help="fig1a … fig1f, fig2, fig3, fig4, table1 (the networks), table2 (classification dimensions), or all.",
            show_default=False,
        ),
    ],
    as_printed: Annotated[
        str, typer.Option("--as", help="paper (what the text says) or reference (what the authors' code does).")
    ] = "paper",
    imagenet: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Validation folder with one subfolder for each class. fig1d-f and fig3 need none."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of weights, one file for each network (resnet18.pth …). Default: pretrained."
        ),
    ] = None,
    networks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="More models, separated by commas: timm:NAME, torchvision:NAME, hf:NAME, file.py:f."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="The paper's networks to measure, such as ResNet-18,ViT-T, or none. Default: all."
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            help="Number of images for fig1a-c, drawn at random from the seed. Default: 16, and 10 as reference.",
            show_default=False,
        ),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Place of the 16x16 patch of fig1a-c: centre, top-left, top-right, bottom-left, bottom-right, or "
            "ROW,COL of its first pixel. Default: centre.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="For other figures and tables: at most this many images, spread evenly over the classes."),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    scale: Annotated[str, typer.Option(help="full, or small (sizes for tests, not those of the paper).")] = "full",
    num_workers: Annotated[int, typer.Option("--workers", help="Number of processes that read the images.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files. Default: runs/reproduce/NAME.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure a figure or table of the paper again and compare it with the printed values."""
    from rankscope._base.files import write_whole
    from rankscope.reproduce import reproduce, reproduce_all
    from rankscope.reproduce.page import reproduction_page

    folder = out if out is not None else Path("runs/reproduce") / name
    asked: dict[str, Any] = {
        "as_printed": as_printed,
        "imagenet": imagenet,
        "weights": weights,
        "images": images,
        "patch": patch,
        "limit": limit,
        "device": device,
        "seed": seed,
        "scale": scale,
        "num_workers": num_workers,
        "out": folder,
        "networks": [] if networks is None else listed(networks, "--networks"),
        "only": None if only is None else [n for n in listed(only, "--only") if n != "none"],
    }
    report = progress_for(True, "reproduce")
    report(0, None, "loading")
    failure: PartlyDoneError | None = None
    try:
        # what a model's own code prints must not mix with the result
        with contextlib.redirect_stdout(sys.stderr):
            if name == "all":
                found = reproduce_all(**asked, progress=report)
            else:
                found = {name: reproduce(name, **asked, progress=report)}
    except PartlyDoneError as error:
        found, failure = error.finished, error
    except KeyboardInterrupt:
        raise InterruptedRunError(
            f"interrupted: finished measurements are kept in {folder / 'parts'}; the same command continues after them"
        ) from None
    finally:
        report.close()
    for one in found.values():
        where = folder / one.name if name == "all" else folder
        write_whole(where / "report.html", reproduction_page(one).html())
    _show(found, folder, name == "all", as_json)
    if failure is not None:
        raise failure


def _show(found: dict[str, Any], folder: Path, several: bool, as_json: bool) -> None:
    if as_json:
        records = [one.to_dict() | said() for one in found.values()]
        print(json.dumps(records if several else records[0], indent=1, allow_nan=False, ensure_ascii=False))
        return
    for one in found.values():
        print(one)
        where = folder / one.name if several else folder
        print(f"written: {one.name}.pdf, .png, .csv, .json, comparison.csv, comparison.md, report.html in {where}")
