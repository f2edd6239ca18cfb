"""``rankscope theory predict``: the theory alone, in closed form."""

from __future__ import annotations

from typing import Annotated

import typer

from rankscope.cli.memory import saves_memory
from rankscope.cli.options import ConfigOption, DebugOption, JsonOption, ToleranceOption
from rankscope.cli.parsing import parse_tolerance

__all__ = ["theory_predict_command"]


@saves_memory("a smaller --width", "a smaller --depth")
def theory_predict_command(
    width: Annotated[int, typer.Option(help="Number of units in a layer.", show_default=False)],
    depth: Annotated[int, typer.Option(help="Number of layers.", show_default=False)],
    tolerance: ToleranceOption = "paper",
    law: Annotated[
        str,
        typer.Option(
            help="auto (chosen smoothly by depth), tracy-widom (shallow), fuss-catalan (shallow, very wide), lyapunov "
            "(deep) or lyapunov-mean."
        ),
    ] = "auto",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Predict the numerical rank of a product of random square layers, in closed form."""
    from rankscope.cli.results import print_result
    from rankscope.theory import predicted_rank

    # an unknown law is refused there, with the known ones named
    found = predicted_rank(width, depth, parse_tolerance(tolerance), law=law)  # type: ignore[arg-type]
    print_result(found, found.to_dict(), None, as_json=as_json)
