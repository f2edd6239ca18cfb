"""``rankscope full``: the rank of the full Jacobian, exactly or from Lanczos probes."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import Annotated

import typer

from rankscope.cli.memory import saves_memory
from rankscope.cli.options import (
    ClassesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    NetworkOutOption,
    NetworkWeightsOption,
    SeedOption,
    ToleranceOption,
    WeightsKeyOption,
)
from rankscope.cli.parsing import default_folder, parse_cut_points

__all__ = ["full_command"]


@saves_memory("a smaller --memory-budget", "fewer --probes")
def full_command(
    model: ModelArgument,
    weights: NetworkWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    images: Annotated[
        str | None,
        typer.Option(help="photos, digits, noise, a folder, or a file, as in rankscope profile.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many images, drawn at random from the seed.")] = None,
    cut_points: Annotated[
        str, typer.Option(help="Layers to measure: blocks, paper, all, or names and globs separated by commas.")
    ] = "blocks",
    method: Annotated[
        str, typer.Option(help="exact (all singular values), lanczos, or auto (exact where the memory budget allows).")
    ] = "auto",
    probes: Annotated[int, typer.Option(help="Number of random probes of the Lanczos method.")] = 8,
    steps: Annotated[str, typer.Option(help="Lanczos steps, or auto: until the bracket is narrow enough.")] = "auto",
    bracket: Annotated[
        float, typer.Option(help="Width of the quadrature bounds, as a share of all, at which --steps auto stops.")
    ] = 0.05,
    tolerance: ToleranceOption = "paper",
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory to work in, such as 2GB. Default: 4 GiB, or half of the free memory if that is less.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    out: NetworkOutOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure the rank of the full Jacobian: every input, no patch. Bounds come with each rank."""
    names = parse_cut_points(cut_points)

    from rankscope._base.checks import budget_of, choice_of, device_of
    from rankscope._base.errors import UsageError
    from rankscope._base.files import make_folder
    from rankscope.cli.network import Network
    from rankscope.cli.results import as_json_text, print_written, write_result
    from rankscope.jacobian import full_rank
    from rankscope.spectra import as_tolerance
    from rankscope.spectra.matrix_free import Lanczos

    where = device_of(device)
    if memory_budget is not None:
        budget_of(memory_budget, where)
    threshold = as_tolerance(tolerance)
    choice_of(method, "method", ["auto", "exact", "lanczos"])
    if steps != "auto" and not steps.isdecimal():
        raise UsageError(f"--steps is {steps!r}; give a whole number of at least 1, or auto")
    settings = Lanczos(probes, "auto" if steps == "auto" else int(steps), bracket, seed)
    way = settings if method == "lanczos" else method
    if method != "lanczos" and replace(settings, seed=0) != Lanczos():
        raise UsageError(f"--probes, --steps and --bracket belong to --method lanczos; --method is {method}")
    network = Network(model, weights, weights_key, seed, num_classes, images, limit)
    folder = make_folder(out if out is not None else default_folder(model))
    # what a model's own code prints must not mix with the result
    with contextlib.redirect_stdout(sys.stderr):
        loaded, inputs, measured, facts = network.load()
        found = full_rank(
            loaded.model.to(where),
            inputs,
            cut_points=names,
            method=way,
            tolerance=threshold,
            memory_budget=memory_budget,
            device=where,
        )
        found = replace(
            found,
            model=loaded.name,
            images=found.images if measured is None else tuple(measured.names[: len(found.images)]),
            facts=(*facts, *found.facts),
        )
        write_result(folder, "full", found.to_dict(), {"full": found.table()}, found.plot())
    if as_json:
        print(as_json_text(found.to_dict()))
        return
    print(found)
    print_written(folder, "full")
