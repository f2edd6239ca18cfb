"""``rankscope layers`` with globs and true cuts."""

from __future__ import annotations

import json

from typer.testing import CliRunner

import rankscope as rs
from rankscope.cli.app import app


def test_layers_takes_globs_and_true_cuts() -> None:
    """Against the whole table, filtered by hand."""
    whole = json.loads(CliRunner().invoke(app, ["layers", "torchvision:resnet18", "--json"]).output)["layers"]
    wanted = [row for row in whole if row["name"].startswith(("layer1.0.", "layer2."))]
    command = ["layers", "torchvision:resnet18", "layer1.0.*", "layer2.*", "--json"]
    assert json.loads(CliRunner().invoke(app, command).output)["layers"] == wanted
    cuts = [row for row in wanted if row["true_cut"]]
    assert 0 < len(cuts) < len(wanted)
    assert json.loads(CliRunner().invoke(app, [*command, "--true-cuts"]).output)["layers"] == cuts
    missed = CliRunner().invoke(app, ["layers", "torchvision:resnet18", "layr1.*"])
    assert isinstance(missed.exception, rs.CutPointError)
    assert "no layer matches 'layr1.*'" in str(missed.exception)
