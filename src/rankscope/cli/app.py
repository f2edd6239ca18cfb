"""The application: every command under its name, in the order of the help."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import typer

from rankscope.cli import (
    clsdim,
    collect,
    compare,
    deficit,
    demo,
    features,
    layers,
    probe,
    profile,
    reproduce,
    theory_chain,
    theory_exponents,
    theory_predict,
    watch,
)
from rankscope.cli.command import Command

__all__ = ["app", "root"]


def _version(asked: bool) -> None:
    if asked:
        from rankscope import __version__

        typer.echo(f"rankscope {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app = typer.Typer(
    name="rankscope",
    help="Measure how much independent information survives in a neural network, layer by layer, with certified "
    "bounds.",
    pretty_exceptions_enable=False,
)
app.callback()(_root)
_theory = typer.Typer(help="Predict how depth lowers rank: random chains, closed forms, a network's exponents.")
for _group, _name, _function in (
    (app, "layers", layers.layers_command),
    (app, "profile", profile.profile_command),
    (app, "demo", demo.demo_command),
    (app, "collect", collect.collect_command),
    (app, "features", features.features_command),
    (app, "clsdim", clsdim.clsdim_command),
    (app, "deficit", deficit.deficit_command),
    (app, "probe", probe.probe_command),
    (app, "watch", watch.watch_command),
    (app, "compare", compare.compare_command),
    (app, "reproduce", reproduce.reproduce_command),
    (_theory, "chain", theory_chain.theory_chain_command),
    (_theory, "predict", theory_predict.theory_predict_command),
    (_theory, "exponents", theory_exponents.theory_exponents_command),
):
    _group.command(_name, cls=Command)(_function)
app.add_typer(_theory, name="theory")


@functools.cache
def root() -> Any:
    """The command that holds all others, made once: reading every signature takes a tenth of a second."""
    return typer.main.get_command(app)
