"""A figure of ranks: colours mean kinds of networks, no curve is hidden, names and legend have room of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rankscope._base.style import TRAINED, UNTRAINED, narrow_axes
from rankscope.views.comparison_view import plot_comparison
from rankscope.views.layer_labels import named_places
from rankscope.views.profile_figure import plot_profile


def rows(count: int, value: int = 64) -> list[dict[str, Any]]:
    rank = {"min": value - 2, "median": value - 1.0, "max": value}
    function = {"value": value, "lower": value, "upper": value}
    common = {"rank": rank, "function_rank": function, "certified": True, "rises_by": 0, "true_cut": True}
    return [{"name": f"encoder_layer_with_a_long_name_{k:02d}"} | common for k in range(count)]


def drawn(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_gid() == "function rank"]


def plotted(count: int, untrained: list[bool], ax: Any = None) -> Any:
    for number, kind in enumerate(untrained):
        ax = plot_profile(rows(count), label=f"net {number}", title="Ranks", images=2, untrained=kind, ax=ax)
    return ax


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([False], [TRAINED]),
        ([True], [UNTRAINED]),
        ([False, True], [TRAINED, UNTRAINED]),
        ([True, False], [UNTRAINED, TRAINED]),
        ([True, True], [UNTRAINED, "#009E73"]),
        ([False, False], [TRAINED, "#009E73"]),
    ],
)
def test_a_trained_network_is_blue_and_an_untrained_one_orange(kinds: list[bool], expected: list[str]) -> None:
    assert [line.get_color() for line in drawn(plotted(4, kinds))] == expected


def test_of_equal_curves_each_is_seen() -> None:
    first, second = drawn(plotted(4, [False, True]))
    assert first.get_markerfacecolor() == TRAINED
    assert second.get_markerfacecolor() == "none"
    assert 0 < (second.get_xdata() - first.get_xdata()).max() < 0.25
    assert second.get_zorder() > first.get_zorder()
    assert second.get_linewidth() < first.get_linewidth()
    equal = [{"layer": "a", "values": (3.0, 3.0), "lower": (np.nan,) * 2, "upper": (np.nan,) * 2}]
    one, other = plot_comparison(equal, ["x", "y"], "rankme").lines
    assert (one.get_markerfacecolor() == "none", other.get_markerfacecolor() == "none") == (False, True)


@pytest.mark.parametrize("narrow", [True, False])
def test_48_layers_leave_the_curve_its_room_and_the_legend_hides_nothing(narrow: bool) -> None:
    ax = plotted(48, [False], narrow_axes() if narrow else None)
    ax.figure.draw_without_rendering()
    box, legend, title = ax.get_window_extent(), ax.get_legend().get_window_extent(), ax._left_title.get_window_extent()
    assert box.height > 0.28 * ax.figure.bbox.height
    assert box.y1 <= legend.y0
    assert legend.y1 <= title.y0 + 2
    names = [t.get_window_extent() for t in ax.get_xticklabels()]
    apart = np.diff([name.x1 for name in names]).min() / ax.figure.dpi * 72
    assert apart >= 5.5  # points between names of 7 points that slant
    assert ax.get_xticklabels()[-1].get_text().endswith("47")


def test_the_last_layer_has_its_name() -> None:
    for count in range(1, 200):
        for most in (1, 7, 28, 60):
            places = named_places(count, most)
            assert places[-1] == count - 1
            assert len(places) <= most


def test_a_title_that_is_set_later_clears_the_legend_and_axes_of_the_caller_keep_theirs_inside() -> None:
    from matplotlib.figure import Figure

    ax = plotted(9, [False, True])
    ax.set_title("another title", loc="left")
    ax.figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().y1 <= ax._left_title.get_window_extent().y0 + 2
    given = plotted(9, [False, True], Figure(figsize=(4, 3), layout="constrained").add_subplot())
    given.figure.draw_without_rendering()
    assert given.get_legend().get_window_extent().y1 <= given.get_window_extent().y1 + 1
