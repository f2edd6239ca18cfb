"""The benchmark of a decoder runs, and its certificate is the same with and without copies of all weights."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import decoder
import pytest
import torch

import rankscope as rs
from rankscope.linear import substituted
from rankscope.linear.on_demand import OnDemand

SMALL = ["--parameters", "tiny", "--device", "cpu", "--tokens", "6", "--directions", "8", "--memory-budget", "2MB"]


def test_it_runs_and_every_cell_is_certified(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    out = tmp_path / "runs" / "decoder.json"
    rows = decoder.main([*SMALL, "--columns", "both", "--out", str(out)])
    assert json.loads(out.read_text()) == rows
    assert [row["name"] for row in rows] == ["sketch", "position"]
    assert [row["columns"] for row in rows] == [8, 96]
    for row in rows:
        assert row["cells"] == row["certified"] == 5  # three blocks, the last norm and the logits
        assert row["converted on demand"]
        assert row["function rank"][0] == row["columns"]  # a residual block of random weights loses nothing
        assert row["seconds"] > 0
        assert row["peak GB"] > 0


@pytest.mark.parametrize("columns", [rs.Positions([3]), rs.Sketch(16)])
def test_it_costs_the_largest_layer_in_float64_and_no_second_model(
    columns: rs.Positions | rs.Sketch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted weights that are alive, counted at each conversion and when one is gone."""
    pytest.importorskip("transformers")
    alive, most, conversions = 0, 0, 0
    plain = OnDemand.converted

    def counted(self: OnDemand) -> torch.Tensor:
        nonlocal alive, most, conversions
        made = plain(self)
        size = made.untyped_storage().nbytes()
        alive, conversions = alive + size, conversions + 1
        most = max(most, alive)

        def gone() -> None:
            nonlocal alive
            alive -= size

        weakref.finalize(made, gone)
        return made

    monkeypatch.setattr(OnDemand, "converted", counted)
    model = decoder.decoder("tiny", 6, torch.device("cpu"))
    ids = {"input_ids": torch.arange(6)[None]}
    found = rs.jacobian_rank(model, ids, columns=columns, cut_points="blocks", memory_budget="2MB", progress=False)
    assert [layer.name for layer in found.layers][:3] == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert all(layer.spectra[0].rank("paper").certified for layer in found.layers)
    sizes = [weight.numel() * 8 for weight in model.parameters()]
    assert conversions > 50
    assert most == max(sizes) < sum(sizes) / 10
    assert alive == 0


def test_the_certificate_of_a_decoder_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    model = decoder.decoder("tiny", 6, torch.device("cpu"))
    ids = {"input_ids": torch.arange(6)[None]}

    def spectra() -> list[object]:
        profile = rs.jacobian_rank(model, ids, columns=rs.Positions(-1), cut_points="blocks", memory_budget="2MB")
        return [layer.spectra for layer in profile.layers]

    late = spectra()
    monkeypatch.setattr(substituted, "_waits", lambda _: False)
    assert late == spectra()
