"""Report pages: escaped, self-contained, and each finding said."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.report import findings, profile_page


def profile() -> rs.JacobianProfile:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(3, 5)).eval()
    return rs.jacobian_rank(net, torch.randn(2, 6), progress=False)


def test_texts_are_escaped():
    page = profile_page(replace(profile(), model="<script>alert(1)</script>")).html()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;" in page


def test_findings_name_first_and_last_layer():
    text = " ".join(f.text for f in findings(profile()))
    assert "is 5 of 5 possible at 0" in text
    assert " and 3 of 5 possible at 2." in text


def test_cautions():
    base = profile()
    changed = replace(
        base,
        weights="random, seed 0",
        facts=(Fact(FactKind.RANDOM_WEIGHTS, {"seed": 0}, caution=True),),
        unmeasured={"head": "its output does not depend on the input"},
        skipped={"a.png": "truncated"},
        kinks=(0, 2),
        adjoint_error=0.5,
    )
    text = " ".join(f.text for f in findings(changed))
    assert "weights are random" in text
    assert "head was not measured" in text
    assert "a.png (truncated)" in text
    assert "2 units are within rounding error of a kink" in text
    assert "disagree by 50.0%" in text


def test_rise_is_flagged():
    base = profile()
    wide = rs.Spectrum.of(torch.eye(5)[:, :5])
    layers = (*base.layers[:2], replace(base.layers[2], columns=5, spectra=(wide, wide)))
    text = " ".join(f.text for f in findings(replace(base, layers=layers)))
    assert "Rank rises with depth at 2 (by 2)" in text
