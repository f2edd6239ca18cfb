"""Report pages: escaped, self-contained, and each finding said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.report import Figure, Finding, Page, Section, Table, figure_of, findings, profile_page


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


def chain(*sizes: float) -> rs.JacobianProfile:
    """One diagonal layer whose singular values are ``sizes``."""
    net = nn.Sequential(nn.Linear(len(sizes), len(sizes), bias=False), nn.Identity()).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor(sizes)))
    return rs.jacobian_rank(net, torch.randn(1, len(sizes)), cut_points=["0"], progress=False)


def test_another_tolerance_is_named_where_it_changes_a_rank():
    # eps32 · 3 = 3.6e-7 for paper and torch, √(eps32 · 3) = 6.0e-4 for reference: 1e-4 is below the last alone
    text = " ".join(f.text for f in findings(chain(1.0, 1e-1, 1e-4)))
    expected = (
        "Other tolerances change the function rank most at 0: it is 2 (reference) and 3 (torch), where paper gives 3."
    )
    assert expected in text
    assert "Other tolerances" not in " ".join(f.text for f in findings(chain(1.0, 1e-1, 1e-2)))


def test_the_numbers_of_a_column_have_equally_many_decimals():
    rows = [
        (151.0, 9.854, 40.5, 1e-9, 0.05, 3),
        (28.08, 62.43, 64.0, 1e3, 0.056, 4),
        (float("nan"), 5.0, 3.0, 2.0, 0.0, 5),
    ]
    table = Table("numbers", tuple("abcdef"), rows)
    columns = [[text for text, _ in column] for column in zip(*table.cells(), strict=True)]
    assert columns[:3] == [["151.0", "28.1", "nan"], ["9.85", "62.43", "5.00"], ["40.5", "64.0", "3.0"]]
    assert columns[3:] == [["1e-09", "1000", "2"], ["0.050", "0.056", "0.000"], ["3", "4", "5"]]


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ((3e-15, 1e-16), ["3e-15", "1e-16"]),
        ((1.5e-13, 0.0), ["1.5e-13", "0"]),
        ((-2.5e-9, 3e-9), ["-2.5e-09", "3e-09"]),
        ((0.25, 3e-13), ["0.25", "3e-13"]),
        ((0.1 + 0.2, 0.5), ["0.3", "0.5"]),  # 0.30000000000000004
        ((2.5e-5, 1e-5), ["0.000025", "0.000010"]),
        ((1e5, 2e5), ["100,000", "200,000"]),
    ],
)
def test_small_numbers_are_not_printed_as_zero(column: tuple[float, ...], texts: list[str]):
    assert [cells[0][0] for cells in Table("numbers", ("a",), [(v,) for v in column]).cells()] == texts


def test_a_note_that_two_tables_share_is_printed_once():
    table = Table("one", ("a",), [(1,)], note="how to read it")
    page = Page("p", [Section("s", tables=[table, table]), Section("t", tables=[table])]).html()
    assert page.count("how to read it") == 2  # once in each section


def test_a_figure_follows_the_page_in_the_dark_and_its_labels_stay():
    import matplotlib.pyplot as plt

    _, ax = plt.subplots()
    ax.text(0.5, 0.5, "black and white #000000", color="black", bbox={"facecolor": "white", "edgecolor": "black"})
    svg = figure_of(ax, "c", name="n").svg
    plt.close("all")
    assert "black and white #000000" in svg  # a class may be called so
    assert "fill: var(--ground)" in svg
    assert "stroke: currentColor" in svg
    assert "#ffffff" not in svg


def test_the_first_figure_comes_before_the_findings_and_further_ones_after():
    figures = [Figure(f"<svg id='{name}'></svg>", f"Caption of {name}.") for name in ("first", "second", "third")]
    table = Table("Ranks", ("layer", "rank"), [("stem", 3)])
    page = Page("p", [Section("s", lead="The lead.", findings=[Finding("What was found.")], figures=figures,
                              tables=[table])]).html()  # fmt: skip
    order = ["The lead.", "id='first'", "Caption of first.</figcaption>", "What was found.", "id='second'",
             "id='third'", "Ranks</p>"]  # fmt: skip
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert page.count("<figure>") == page.count("</figure>") == 3


def test_a_phone_sees_a_figure_whole_and_the_first_column_of_a_table_stays():
    figure = Figure("<svg id='wide'></svg>", "Caption.", "<svg id='small'></svg>")
    page = Page("p", [Section("s", figures=[figure])]).html()
    assert '<div role="img" aria-label="Caption." class="narrow"><svg id=\'small\'></svg></div>' in page
    assert page.count("<figcaption>") == 1
    narrow = page[page.index("@media (max-width: 34rem)") : page.index("@media print")]
    assert "figure > div.narrow { display: block; } figure > div.broad { display: none; }" in narrow
    assert "{ position: sticky; left: 0; background: var(--ground); }" in page
