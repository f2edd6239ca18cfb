"""``rankscope theory exponents``: Lyapunov exponents of a network's own chain."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import Annotated

import typer

from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    ClassesOption,
    ConfigOption,
    DebugOption,
    DeviceOption,
    ImageLimitOption,
    ImagesOption,
    JsonOption,
    ModelArgument,
    NetworkOutOption,
    NetworkWeightsOption,
    SeedOption,
    WeightsKeyOption,
)
from rankscope.cli.parsing import default_folder, parse_cut_points

__all__ = ["theory_exponents_command"]


@saves_memory("a smaller --top", "a smaller --limit", "--dtype float32")
def theory_exponents_command(
    model: ModelArgument,
    weights: NetworkWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    images: ImagesOption = None,
    limit: ImageLimitOption = None,
    cut_points: Annotated[
        str, typer.Option(help="Where blocks may end: blocks, or names and globs separated by commas.")
    ] = "blocks",
    top: Annotated[int, typer.Option(help="Number of leading exponents.")] = 64,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    device: DeviceOption = "auto",
    out: NetworkOutOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure the Lyapunov exponents of a network's own chain of equal-width blocks (transformers, mixers)."""
    ends = parse_cut_points(cut_points)

    from rankscope._base.checks import count_of, device_of, dtype_of
    from rankscope._base.facts import as_facts
    from rankscope.cli.chosen_model import ChosenModel
    from rankscope.cli.network import Network
    from rankscope.cli.results import print_result, write_result
    from rankscope.jacobian import chain_exponents

    where = device_of(device)
    dtype_of(dtype)
    count_of(top, "top")
    network = Network(ChosenModel(model, weights, weights_key, seed, num_classes), images, limit)
    folder = out if out is not None else default_folder(model)
    # what a model's own code prints must not mix with the result
    with FolderLock(folder), contextlib.redirect_stdout(sys.stderr):
        loaded, inputs, measured, facts = network.load()
        found = chain_exponents(
            loaded.model.to(where),
            inputs,
            cut_points=ends,
            top=top,
            dtype=dtype,
            seed=seed,
            name=loaded.name,
            progress=True,
        )
        found = replace(
            found,
            images=found.images if measured is None else tuple(measured.names[: len(found.images)]),
            facts=(*as_facts([f"The weights are {loaded.weights}.", *facts]), *found.facts),
        )
        tables = {"exponents": found.table(), "exponents-by-image": found.frame()}
        write_result(folder, "exponents", found.to_dict(), tables, found.plot())
    print_result(found, found.to_dict(), folder, "exponents", "exponents-by-image.csv", as_json=as_json)
