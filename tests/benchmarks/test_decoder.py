"""The benchmark of a decoder runs, and its certificate is the same with and without copies of all weights."""

from __future__ import annotations

import json
from pathlib import Path

import decoder
import pytest
import torch

import rankscope as rs
from rankscope.linear import substituted

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
