"""Profiles that the first version saved: sentences where facts are today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind

EARLIER: list[tuple[dict[str, Any], str, Any]] = [
    ({"method": "vmap(jvp)"}, "method", Fact(FactKind.PUSHED, {"name": "vmap(jvp)"})),
    (
        {"method": "linearised network, within 5e-07 of vmap(jvp), plain kernels"},
        "method",
        Fact(FactKind.LINEARISED, {"name": "vmap(jvp), plain kernels", "difference": 5e-7}),
    ),
    ({"method": "read from finished images"}, "method", Fact(FactKind.KEPT_IMAGES)),
    (
        {"certificate": "6 float64 probes; each bound fails with probability 1e-6"},
        "certificate",
        Fact(FactKind.PROBES, {"probes": 6, "failure": 1e-6}),
    ),
    ({"certificate": "not asked for"}, "certificate", Fact(FactKind.NOT_CERTIFIED)),
    ({"certificate": "of old"}, "certificate", Fact(FactKind.EARLIER_NOTE, {"text": "of old"})),
    ({"notes": ["images: photos"]}, "facts", (Fact(FactKind.EARLIER_NOTE, {"text": "images: photos"}),)),
]


def as_the_first_version_wrote(folder: Path, **texts: Any) -> Path:
    """The folder, its JSON without what came later."""
    file = folder / "profile.json"
    data = json.loads(file.read_text())
    for name in ("facts", "provenance", "spectra_checksum", "checksum"):
        data.pop(name)
    spectra = folder / "profile.safetensors"
    save_file(load_file(spectra), spectra, {"schema_version": "1"})
    data |= {"notes": [], "columns": "all input coordinates (K = 6)", "method": "vmap(jvp)"}
    data |= {"certificate": "not asked for"} | texts
    file.write_text(json.dumps(data))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 5)).eval()
    return rs.jacobian_rank(net, torch.randn(2, 6), progress=False).save(tmp_path / "run")


@pytest.mark.parametrize(("texts", "name", "expected"), EARLIER)
def test_sentences_become_facts(folder: Path, texts: dict[str, Any], name: str, expected: Any) -> None:
    found = rs.JacobianProfile.load(as_the_first_version_wrote(folder, **texts))
    assert getattr(found, name) == expected
    assert found.function_rank == (4, 4, 4)
    again = rs.JacobianProfile.load(found.save(folder.parent / "again"))
    assert getattr(again, name) == expected
    assert str(again) == str(found)


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("all input coordinates (K = 6)", "all", 6),
        ("6 random directions (seed 0) (K = 6)", "sketch", 6),
        ("16×16 patch at the centre (K = 768)", "patch", 768),
        ("3 chosen coordinates (K = 3)", "patch", 3),
    ],
)
def test_columns_were_a_phrase(folder: Path, text: str, kind: str, count: int) -> None:
    columns = rs.JacobianProfile.load(as_the_first_version_wrote(folder, columns=text)).columns
    assert (columns.kind, columns.count, str(columns)) == (kind, count, text)
    assert columns.random == (kind == "sketch")


def test_failed_ways_were_sentences(folder: Path) -> None:
    found = rs.JacobianProfile.load(as_the_first_version_wrote(folder, failed_methods=["vmap(jvp): no formula"]))
    assert found.failed_methods == (Fact(FactKind.EARLIER_NOTE, {"text": "vmap(jvp): no formula"}),)
