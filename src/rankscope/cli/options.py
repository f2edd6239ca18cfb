"""The arguments and options that several commands share, each with its one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "MODEL_HELP",
    "BatchOption",
    "ChannelAxisOption",
    "ClassesOption",
    "ConfigOption",
    "DataLabelsOption",
    "DataLimitOption",
    "DataOption",
    "DataWeightsOption",
    "DebugOption",
    "DeviceOption",
    "ImageLimitOption",
    "ImagesOption",
    "JsonOption",
    "LabelsOption",
    "LayersOption",
    "ModelArgument",
    "NetworkOutOption",
    "NetworkWeightsOption",
    "ResultOption",
    "RunArgument",
    "SeedOption",
    "TextOption",
    "ToleranceOption",
    "WeightsKeyOption",
    "one_of",
]


def one_of(*words: str) -> Any:
    """What a shell completes to, for values with a few well-known words beside names and files."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


# of every command
JsonOption = Annotated[bool, typer.Option("--json", help="Print only JSON to standard output.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML or YAML file of options by their names (seed = 1). Options of the command line take precedence.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device", autocompletion=one_of("auto", "cpu", "cuda"), help="Device to run on: auto, cpu, cuda or cuda:N."
    ),
]
TextOption = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="TEXT|FILE",
        help="For hf: models with a tokenizer: a sentence, or a file with one text per line. May be repeated.",
        show_default=False,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of random weights, noise, sketches and drawn images.")]
ToleranceOption = Annotated[
    str,
    typer.Option(
        "--tolerance",
        autocompletion=one_of("paper", "reference", "torch"),
        help="Threshold of the rank: paper, reference, torch, or a number (a constant rtol).",
    ),
]

# the model
MODEL_HELP = (
    "timm:NAME, torchvision:NAME, hf:NAME, path/to/file.py:factory, digits (a small trained network that ships with "
    "rankscope), or efficientnet-lite0 (trained on ImageNet)."
)
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", autocompletion=one_of("digits", "efficientnet-lite0"), help=MODEL_HELP, show_default=False
    ),
]
NetworkWeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        autocompletion=one_of("pretrained", "random"),
        help="pretrained, random, or a .safetensors or .pt FILE.",
    ),
]
DataWeightsOption = Annotated[
    str,
    typer.Option(
        "--weights", autocompletion=one_of("pretrained", "random"), help="pretrained, random, or a FILE of weights."
    ),
]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="NAME",
        help="Name of the part of the weights FILE to load, such as teacher or state_dict_ema.",
        show_default=False,
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option("--num-classes", help="Number of classes of the last layer, for random weights or a FILE of weights."),
]
ImagesOption = Annotated[
    str | None,
    typer.Option(
        "--images",
        autocompletion=one_of("photos", "digits", "noise"),
        help="photos (the two photographs of scikit-learn), digits, noise, a folder, or a file. Default: photos, or 32 "
        "digits for a network of 8×8 digits. digits are those held out from training; also digits:train, digits:all.",
        show_default=False,
    ),
]
ImageLimitOption = Annotated[
    int | None, typer.Option("--limit", help="At most this many images, drawn at random from the seed.")
]
LayersOption = Annotated[
    str,
    typer.Option(
        "--cut-points",
        autocompletion=one_of("blocks", "paper", "reference", "all"),
        help="Layers: blocks, paper, reference, all, or names and globs separated by commas.",
    ),
]
NetworkOutOption = Annotated[
    Path | None, typer.Option("--out", metavar="RUN", help="Folder for the results. Default: runs/MODEL.")
]

# data sets
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        autocompletion=one_of("digits"),
        metavar="DIR|digits|FILE",
        help="A folder with one subfolder for each class, digits, or arrays: a .npy (see --labels), .npz or "
        ".safetensors.",
        show_default=False,
    ),
]
LabelsOption = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="File of labels for a .npy, one for each sample.")
]
DataLabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE|COLUMN",
        help="File of labels for a .npy, one for each sample, or the class column of a data set that save_to_disk "
        "wrote.",
    ),
]
DataLimitOption = Annotated[
    int | None, typer.Option("--limit", help="At most this many samples, drawn at random from the seed.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", help="Number of samples in one forward pass.")]
ChannelAxisOption = Annotated[
    str,
    typer.Option(
        "--channels",
        help="Axis of the channels in feature maps: first, last, or auto (by shape; last for tokens and H×H×C).",
    ),
]

# collected runs
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder that rankscope collect wrote, or a .npy, .npz or .safetensors FILE of features or logits.",
        show_default=False,
    ),
]
ResultOption = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder for the results. Default: RUN itself, or runs/FILE.")
]
