"""``rankscope layers``: what can be measured in a model."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated

import typer

from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    ClassesOption,
    ConfigOption,
    DebugOption,
    JsonOption,
    ModelArgument,
    SeedOption,
    WeightsKeyOption,
)

__all__ = ["layers_command"]


@saves_memory("--weights random", "a smaller model of the same family")
def layers_command(
    model: ModelArgument,
    globs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[GLOB]...", help="Only layers with such names, for instance 'layer1.*'."),
    ] = None,
    true_cuts: Annotated[
        bool, typer.Option("--true-cuts", help="Only layers that all information passes through.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="pretrained, random, or a FILE of weights. The table does not depend on them.")
    ] = "random",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """List every layer that can be a cut point and show whether all information passes through it."""
    import torch

    from rankscope.cli.chosen_model import ChosenModel
    from rankscope.cli.results import as_json_text
    from rankscope.slicing import layers

    # a user's file, or a package, may print while it builds the model; standard output belongs to the result
    with contextlib.redirect_stdout(sys.stderr):
        loaded = ChosenModel(model, weights, weights_key, seed, num_classes).load()
        size = loaded.input_size
        example = None if size is None else torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
        table = layers(loaded.model, example).only(*globs or (), true_cuts=true_cuts)
    if as_json:
        print(as_json_text({**table.to_dict(), "model": loaded.name, "default": list(table.default)}))
    else:
        print(f"{loaded.name}, one forward pass on noise")
        print(table)
