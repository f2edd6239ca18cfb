"""``rankscope theory chain``: random deep chains measured beside the theory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from rankscope._base.errors import UsageError
from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import ConfigOption, DebugOption, JsonOption, ToleranceOption
from rankscope.cli.parsing import parse_tolerance

__all__ = ["theory_chain_command"]


@saves_memory("a smaller --width", "fewer --samples")
def theory_chain_command(
    width: Annotated[int, typer.Option(help="Number of units in a layer.")] = 1000,
    depth: Annotated[int, typer.Option(help="Number of layers.")] = 50,
    init: Annotated[
        str, typer.Option(help="Initialisation: normal(STD), kaiming_normal or xavier_normal.")
    ] = "normal(0.02)",
    seeds: Annotated[str, typer.Option(metavar="LIST", help="Seeds separated by commas. Each gives one chain.")] = "0",
    tolerance: ToleranceOption = "paper",
    activation: Annotated[str | None, typer.Option(help="relu, gelu or tanh. Default: none.")] = None,
    residual: Annotated[
        str | None,
        typer.Option(metavar="SCALE", help="Scale of the branch in h + SCALE·block(h). Default: no skip connection."),
    ] = None,
    normalisation: Annotated[str | None, typer.Option(help="layernorm or batchnorm. Default: none.")] = None,
    float32_stop: Annotated[
        bool,
        typer.Option(
            "--float32-stop", help="Stop when all entries of J are below the epsilon of float32, as the paper does."
        ),
    ] = False,
    samples: Annotated[int, typer.Option(help="Number of inputs for the feature dimension.")] = 5000,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("runs/chain"),
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure Jacobian rank and feature dimension of random deep chains beside theory (the paper's Fig. 1 d-f)."""
    each, scale = _seeds(seeds), _residual(residual)

    from rankscope.cli.results import print_result, write_result
    from rankscope.theory import deep_chain

    threshold = parse_tolerance(tolerance)
    with FolderLock(out):
        profile = deep_chain(
            width=width,
            depth=depth,
            init=init,
            seeds=each,
            tolerance=threshold,
            activation=activation,  # type: ignore[arg-type]
            residual=scale,
            normalisation=normalisation,  # type: ignore[arg-type]
            float32_stop=float32_stop,
            samples=samples,
            progress=True,
        )
        write_result(out, "chain", profile.to_dict(), {"chain": profile.table()}, profile.plot())
    print_result(profile, profile.to_dict(), out, "chain", as_json=as_json)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is not a list of whole numbers; write 0 or 0,1,2") from None


def _residual(text: str | None) -> float | bool:
    if text is None:
        return False
    try:
        scale = float(text)
    except ValueError:
        raise UsageError(f"--residual {text!r} is not a number; give the branch's scale, such as 1 or 0.14") from None
    if not math.isfinite(scale) or scale == 0:
        raise UsageError(f"--residual is {text!r}; give the branch's scale, a finite number that is not 0")
    return scale
