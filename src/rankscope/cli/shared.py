"""The application, and the arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "MODEL_HELP",
    "ClassesOption",
    "DebugOption",
    "DeviceOption",
    "JsonOption",
    "ModelArgument",
    "SeedOption",
    "WeightsKeyOption",
    "app",
]

app = typer.Typer(
    name="rankscope",
    help="How much independent information survives in a neural network, layer by layer, and how sure that number is.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL_HELP = "timm:NAME, torchvision:NAME, hf:NAME, path/to/file.py:factory, or digits (the network of the demo)."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
SeedOption = Annotated[int, typer.Option("--seed", help="Decides random weights, noise, sketches and drawn images.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON alone to standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ClassesOption = Annotated[
    int | None, typer.Option("--num-classes", help="Size of the last layer, for random weights or a file's.")
]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="NAME",
        help="Part of the weights FILE to load, as teacher or state_dict_ema.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
