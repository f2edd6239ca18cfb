"""The application: every command under its name, in the order of the help."""

from __future__ import annotations

from typing import Annotated

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

__all__ = ["app"]


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
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.callback()(_root)
app.command("layers")(layers.layers_command)
app.command("profile")(profile.profile_command)
app.command("demo")(demo.demo_command)
app.command("collect")(collect.collect_command)
app.command("features")(features.features_command)
app.command("clsdim")(clsdim.clsdim_command)
app.command("deficit")(deficit.deficit_command)
app.command("probe")(probe.probe_command)
app.command("watch")(watch.watch_command)
app.command("compare")(compare.compare_command)
app.command("reproduce")(reproduce.reproduce_command)

_theory = typer.Typer(help="Predict how depth lowers rank: random chains, closed forms, a network's exponents.")
app.add_typer(_theory, name="theory")
_theory.command("chain")(theory_chain.theory_chain_command)
_theory.command("predict")(theory_predict.theory_predict_command)
_theory.command("exponents")(theory_exponents.theory_exponents_command)
