"""Names of layers in figures stay apart, however long and however many they are."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.views.comparison_view import plot_comparison
from rankscope.views.layer_labels import layer_labels, named_places
from rankscope.views.watch_figure import plot_heat_map, plot_step_curves

LONG = [f"backbone.encoder.transformer_layers.{i}.attention.output" for i in range(48)]
CASES = {
    "a shared beginning": LONG,
    "two stacks": [f"{side}coder.transformer.{i}.attention.output.dense" for side in ("en", "de") for i in range(12)],
    "no parts": [f"{'x' * 30}{i}{'y' * 30}" for i in range(9)],
    "one inside another": ["backbone.some.long.name.of.a.block", "backbone.some.long.name.of.a.block.some.long.name"],
    "words that begin alike": [f"model.attention.{w}.attention.{w}.attention.output" for w in ("normal", "normed")],
}


@pytest.mark.parametrize("names", CASES.values(), ids=CASES)
def test_labels_stay_apart_and_short(names: list[str]) -> None:
    found = layer_labels(names)
    assert len(set(found)) == len(names)
    assert max(map(len, found)) <= 30


def test_short_names_stay_as_they_are() -> None:
    assert layer_labels(["backbone.a", "backbone.b", "x$y"]) == ["backbone.a", "backbone.b", r"x\$y"]


def test_numbers_survive() -> None:
    assert [label.split(".")[0] for label in layer_labels(LONG)] == [f"…{i}" for i in range(48)]


@pytest.mark.parametrize(("count", "named"), [(1, 1), (48, 48), (60, 60), (61, 31), (500, 56)])
def test_as_many_names_as_stand_apart(count: int, named: int) -> None:
    assert len(named_places(count)) == named


def test_a_heat_map_names_48_layers_and_shows_what_is_not_known_on_any_ground() -> None:
    values = np.ones((48, 3))
    values[20, 1] = np.nan
    ax = plot_heat_map(values, LONG, [0, 5, 9], "effective_rank", "step")
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert len(set(labels)) == 48
    # 7 points a name, and the height that they share
    assert ax.figure.get_size_inches()[1] * 72 / 48 > 7
    image = ax.images[0]
    assert image.cmap(image.norm(image.get_array()))[20, 1, 3] == 1  # a colour of the map, not the ground behind it


def test_curves_and_comparisons_name_layers_apart() -> None:
    ax = plot_step_curves(np.ones((48, 2)), LONG, [0, 1], "effective_rank", "step")
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert len(set(texts)) == len(texts) == 7
    rows = [{"layer": n, "values": (1.0, 2.0), "lower": (np.nan,) * 2, "upper": (np.nan,) * 2} for n in LONG]
    ticks = [t.get_text() for t in plot_comparison(rows, ["a", "b"], "rankme").get_xticklabels()]
    assert len(set(ticks)) == 48
