"""Fig. 4 where no penalty keeps the accuracy, and the letters of its panels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankscope.dependencies import DependencyTable, independence_deficit
from rankscope.reproduce import deficit


@pytest.fixture(scope="module")
def tables() -> dict[str, DependencyTable]:
    """Logits that tell nothing of one another, and logits of which the last is the mean of two others."""
    rng = torch.Generator().manual_seed(0)
    alone = torch.randn(400, 6, generator=rng)
    tied = torch.randn(400, 6, generator=rng)
    tied[:, 5] = (tied[:, 0] + tied[:, 1]) * 0.8
    given: dict[str, Any] = {"convention": "all", "held_out": 0, "permutations": 1}
    names = [f"class {k}" for k in range(6)]
    return {
        kind: independence_deficit(logits, logits.argmax(1), class_names=names, **given, eta=eta)
        for kind, logits, eta in (("alone", alone, None), ("tied", tied, None), ("zero", alone, 1e6))
    }


def one(name: str) -> Any:
    return SimpleNamespace(network=SimpleNamespace(name=name))


def test_the_smallest_eta_is_not_called_the_largest_that_keeps(tables: dict[str, DependencyTable]) -> None:
    alone, tied = tables["alone"][0], tables["tied"][5]
    assert (alone.status, tied.status) == ("no eta keeps accuracy", "dependent")
    said = f"the smallest η tried, {alone.eta:.2g}: none keeps 90 % of the accuracy"
    rows = deficit._compare(one("ResNet-50"), tables["alone"], alone, "largest-eta")
    assert all("largest" not in row.quantity + row.convention for row in rows)
    assert rows[0].quantity.startswith("ResNet-50 at the smallest η tried: ")
    assert said in rows[0].convention
    kept = deficit._compare(one("ResNet-50"), tables["tied"], tied, "largest-eta")
    assert kept[0].quantity.startswith("ResNet-50 at its largest η: ")
    assert f"the largest η that keeps 90 % of the accuracy, {tied.eta:.2g}" in kept[0].convention


def test_panels_say_the_same_and_carry_the_papers_letters(tables: dict[str, DependencyTable]) -> None:
    zero, alone, tied = tables["zero"][0], tables["alone"][0], tables["tied"][5]
    assert not zero.n_dependencies
    drawn = [("GluMixer-24", zero, alone), ("Swin-T", zero, tied), ("mine", zero, alone)]
    panels = deficit._draw(drawn, "paper").axes
    titles = [" ".join(ax.get_title(loc="left").split()) for ax in panels]
    assert titles[:3] == [
        "(c) GluMixer-24, η = 20, paper", "(d) Swin-T, η = 20, paper", "mine, η = 20, paper",
    ]  # fmt: skip
    assert titles[3] == f"GluMixer-24: the smallest η tried, {alone.eta:.2g}: none keeps 90 % of the accuracy"
    assert titles[4] == f"Swin-T: the largest η that keeps 90 % of the accuracy, {tied.eta:.2g}"
    assert "no eta keeps accuracy" in panels[3].texts[-1].get_text()
    row = deficit._compare(one("GluMixer-24"), tables["zero"], zero, "paper")[0]
    assert "(panel c)" in row.quantity
