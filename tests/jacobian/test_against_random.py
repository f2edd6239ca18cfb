"""A profile beside random layers: what is compared, what the sentence may say, a random network as its own check."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import rankscope as rs
from rankscope.jacobian.directions import Directions
from rankscope.jacobian.profile import Layer

K = 40


def layer(name: str, rows: int, rank: int, *, true_cut: bool = True, columns: int = K, mixes: bool = True) -> Layer:
    """A layer whose spectrum has exactly this rank."""
    sigma = torch.zeros(min(rows, columns), dtype=torch.float64)
    sigma[:rank] = 1
    found = rs.Spectrum(sigma.numpy(), (rows, columns), "float32", 0.0)
    return Layer(name, rows, columns, true_cut, (found,), mixes)


def profile(*layers: Layer) -> rs.JacobianProfile:
    return rs.JacobianProfile(
        model="net", layers=layers, images=("sample 0",), tolerance=rs.Tolerance.paper(),
        columns=Directions("all", K, "all"),
        background="image", device="cpu", dtype="float32", versions={}, input_shape=(K,),
    )  # fmt: skip


def test_depth_and_widths_follow_the_true_cuts():
    found = profile(
        layer("a", 100, 40), layer("side", 30, 30, true_cut=False), layer("b", 50, 40), layer("c", 60, 40)
    ).against_random()
    assert [x.depth for x in found.layers] == [1, 2, 2, 3]
    assert [x.possible for x in found.layers] == [40, 30, 40, 40]
    chains = {"a": [100], "side": [100, 30], "b": [100, 50], "c": [100, 50, 60]}
    for name, widths in chains.items():
        rtol = rs.Tolerance.paper().relative((widths[-1], K))
        expected = rs.theory.rectangular_chain_rank(K, widths, rtol)
        assert found[name].predicted == pytest.approx(expected, abs=1e-6)


def test_without_a_graph_all_cut_points_are_the_chain():
    found = profile(layer("a", 30, 30, true_cut=False), layer("b", 40, 30, true_cut=False)).against_random()
    assert [x.depth for x in found.layers] == [1, 2]
    assert found["b"].possible == 30
    assert found.verdict == "alike"


DEEP = (40,) * 12


CHAIN = "a random Gaussian chain of the same widths"


@pytest.mark.parametrize(
    ("shift", "verdict", "words"),
    [
        ({}, "alike", f"The network's rank agrees with that of {CHAIN} at all 12 cut points."),
        ({11: -8, 10: -5}, "faster", f"loses more rank than {CHAIN} at 2 of 12 cut points "
         "(most at l11: 24 against 32)."),
        ({11: +5}, "slower", f"loses less rank than {CHAIN} at 1 of 12 cut points (l11: "),
        ({11: +5, 5: -9, 6: -5}, "mixed", f"loses more rank than {CHAIN} at 2 of 12 cut points (most at l5: "),
        ({10: +5, 11: +8, 5: -9}, "mixed", "at 1 of 12 cut points (l5: 29 against 38) and less at 2 (most at l11: 40 "
         "against 32)."),
        ({11: -2, 5: +2}, "alike", "at all 12 cut points"),
    ],
)  # fmt: skip
def test_sentence(shift: dict[int, int], verdict: str, words: str):
    expected = [rs.theory.predicted_rank(40, k).rank for k in range(1, 13)]
    layers = [layer(f"l{i}", n, min(40, expected[i] + shift.get(i, 0))) for i, n in enumerate(DEEP)]
    found = profile(*layers).against_random()
    assert found.verdict == verdict
    assert words in found.sentence
    assert found.sentence.endswith(".")
    assert found.sentence.count(". ") == 0  # one sentence, since no block has branches


def test_uncertain_ranks_decide_nothing():
    expected = rs.theory.predicted_rank(40, 12).rank
    likely = [rs.theory.predicted_rank(40, k).rank for k in range(1, 12)]
    base = profile(*[layer(f"l{i}", 40, n) for i, n in enumerate(likely)], layer("l11", 40, expected - 8))
    certain = base.against_random()["l11"]
    assert certain.verdict == "less"
    assert certain.slack == pytest.approx(3.4)  # and a hundredth of the 40 possible
    last = base.layers[-1]
    sigma = last.spectra[0].singular_values
    wide = rs.Spectrum(sigma, last.spectra[0].shape, "float32", 0.5)  # an error bound that admits 24 to 40
    unsure = replace(base, layers=(*base.layers[:-1], replace(last, spectra=(wide,)))).against_random()
    assert unsure["l11"].verdict == "undecided"
    assert unsure.verdict == "undecided"
    random = f"{unsure['l11'].predicted:.0f}"
    assert unsure.sentence == (
        f"At 1 of 12 cut points the certified bounds are too wide to compare the network with {CHAIN} "
        f"(l11: [24, 40] against {random}); measure in float64. The other ranks agree."
    )
    assert "l11       12        40" in str(unsure)
    assert [line for line in str(unsure).splitlines() if line.endswith("undecided")]
    more = replace(unsure, dtype="float64")
    assert "; use a larger tolerance." in more.sentence
    # what is certain elsewhere is still said, and what is not is counted
    open_ = replace(base.layers[10], spectra=(wide,))
    less = replace(base, layers=(*base.layers[:10], open_, last)).against_random()
    assert less["l10"].verdict == "undecided"
    assert less.verdict == "faster"
    assert less.sentence.endswith(" At 1 more the certified bounds are too wide to compare; measure in float64.")
    # narrow bounds decide although they are no single number
    near = replace(certain, lower=certain.lower - 1, upper=certain.upper + 1)
    assert near.verdict == "less"
    across = replace(certain, lower=int(certain.predicted - certain.slack), upper=int(certain.predicted - 1))
    assert across.verdict == "same"


def test_a_rank_without_bounds_decides_by_itself():
    expected = rs.theory.predicted_rank(40, 12).rank
    for shift, verdict in ((+8, "more"), (-8, "less"), (0, "same")):
        last = layer("l11", 40, expected + shift)
        bare = rs.Spectrum(last.spectra[0].singular_values, (40, 40), "float32", float("nan"))
        found = profile(*[layer(f"l{i}", 40, 40) for i in range(11)], replace(last, spectra=(bare,))).against_random()
        assert found["l11"].verdict == verdict
        assert found["l11"].lower == found["l11"].measured == found["l11"].upper == expected + shift


@pytest.mark.parametrize(("rtol", "whole"), [(1e-8, True), (1e-6, False)])
def test_a_millionth_of_a_dimension_is_rounding(rtol: float, whole: bool):
    law = rs.theory.rectangular_chain_rank(40, [40], rtol)
    assert 0 < 40 - law < 1e-4
    found = profile(layer("a", 40, 40)).with_tolerance(rtol).against_random()["a"].predicted
    assert found == (40 if whole else pytest.approx(law, abs=1e-12))


def test_a_law_that_leaves_less_than_the_widths_allow_is_not_said_to_keep_all():
    expected = [rs.theory.predicted_rank(40, depth).value for depth in (1, 2, 3, 4, 5, 6)]
    found = profile(*[layer(f"l{i}", 40, round(rank)) for i, rank in enumerate(expected)]).against_random()
    assert 37 < found.layers[-1].predicted < 39  # and not 40
    assert found.sentence.endswith("at all 6 cut points.")


def test_where_the_widths_leave_no_choice_it_says_so():
    found = profile(layer("a", 4000, 40), layer("b", 10, 10)).against_random()
    assert (
        found.sentence == f"The network keeps all the rank that its widths allow at both cut points, as {CHAIN} does."
    )
    assert found["b"].predicted == 10


def test_an_untrained_network_is_a_random_chain():
    torch.manual_seed(0)
    layers = [nn.Linear(K, 60, bias=False)] + [nn.Linear(60, 60, bias=False) for _ in range(9)]
    net = nn.Sequential(*layers, nn.Linear(60, 30)).double().eval()
    for module in net:
        nn.init.normal_(module.weight, std=0.1)
    found = rs.jacobian_rank(
        net, torch.randn(1, K, dtype=torch.float64), progress=False, tolerance=1e-2
    ).against_random()
    assert found.verdict == "alike"
    # one chain: within three of its own standard deviations of about one
    assert max(abs(x.difference) for x in found.layers) < 3
    assert found.layers[8].predicted < 36


def test_what_does_not_mix_adds_no_layer_and_may_narrow_the_last():
    found = profile(
        layer("crop", 38, 38, mixes=False), layer("a", 100, 38), layer("act", 100, 38, mixes=False),
        layer("pool", 25, 25, mixes=False), layer("pad", 60, 25, mixes=False), layer("side", 50, 25, true_cut=False),
        layer("side act", 50, 25, true_cut=False, mixes=False), layer("b", 30, 20), layer("b act", 30, 20, mixes=False),
    ).against_random()  # fmt: skip
    chains = {
        "crop": [], "a": [100], "act": [100], "pool": [25], "pad": [25], "side": [25, 50], "side act": [25],
        "b": [25, 30], "b act": [25, 30],
    }  # fmt: skip
    rows = {x.name: x.rows for x in found.layers}
    for name, widths in chains.items():
        assert found[name].depth == len(widths), name
        assert found[name].possible == min([38, *widths, rows[name]]), name
        if widths:  # the law for 38 columns; the threshold is the convention's for the profile's 40
            rtol = rs.Tolerance.paper().relative((rows[name], K))
            expected = rs.theory.rectangular_chain_rank(38, widths, rtol)
            assert found[name].predicted == pytest.approx(expected, abs=1e-6), name
    assert found["crop"].predicted == 38


class _Plain(nn.Module):
    """Its activations are function calls."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.layers:
            x = torch.tanh(each(x))
        return x


@pytest.mark.parametrize("how", ["modules", "functions", "containers", "with norm and dropout"])
def test_an_untrained_network_with_activations_is_a_random_chain(how: str):
    """Tanh near zero is linear: twelve layers have the rank of twelve, whoever calls the activations."""
    torch.manual_seed(0)
    linear = [nn.Linear(64, 64, bias=False) for _ in range(12)]
    for each in linear:
        nn.init.normal_(each.weight, std=1 / 8)
    net: nn.Module = {
        "modules": lambda: nn.Sequential(*[m for each in linear for m in (each, nn.Tanh())]),
        "functions": lambda: _Plain(list(linear)),
        "containers": lambda: nn.Sequential(*[nn.Sequential(each, nn.Tanh()) for each in linear]),
        "with norm and dropout": lambda: nn.Sequential(
            *[m for each in linear for m in (each, nn.BatchNorm1d(64), nn.Tanh(), nn.Dropout(0.1))]
        ),
    }[how]()
    x = 1e-3 * torch.randn(1, 64, dtype=torch.float64)
    found = rs.jacobian_rank(net.double().eval(), x, progress=False).against_random()
    last = found.layers[-1]
    assert last.depth == 12
    # one chain scatters by about one around the mean; 24 layers would have 35.3
    assert abs(last.difference) < 3
    assert last.predicted == pytest.approx(rs.theory.predicted_rank(64, 12).value, abs=0.1)
    assert found.verdict == "alike"


def test_relu_loses_rank_faster_than_the_layers_alone():
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(12) for m in (nn.Linear(64, 64, bias=False), nn.ReLU())]).double().eval()
    found = rs.jacobian_rank(net, torch.randn(1, 64, dtype=torch.float64), progress=False).against_random()
    assert found.layers[-1].depth == 12
    assert found.verdict == "faster"


def test_residual_blocks_count_once_whatever_stands_between():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(20, 20), nn.Linear(20, 20), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x + self.b(self.act(self.a(x))))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), Block(), nn.LayerNorm(20), Block(), nn.Linear(20, 5)).eval()
    x = torch.randn(1, 20)
    blocks = rs.jacobian_rank(net, x, progress=False).against_random()
    assert {x.name: x.depth for x in blocks.layers} == {"1": 1, "2": 2, "3": 2, "4": 3, "5": 4}
    assert blocks.sentence.endswith(" Each block counts as one layer; the largest has 2 mixing operations.")
    assert [x.joined for x in blocks.layers] == [1, 2, 2, 2, 2]
    # every call: the block's last activation is the block's own output, and its inner ones stand in a branch
    every = rs.jacobian_rank(net, x, cut_points="all", progress=False).against_random()
    assert {k: every[k].depth for k in ("0", "1", "2.a", "2.act#1", "2.b", "2.act#2", "2", "3", "4.a", "4", "5")} == {
        "0": 1, "1": 1, "2.a": 2, "2.act#1": 2, "2.b": 3, "2.act#2": 2, "2": 2, "3": 2, "4.a": 3, "4": 3, "5": 4,
    }  # fmt: skip


def test_absolute_tolerances_are_refused_and_reports_go_without():
    from rankscope.report import profile_page

    base = profile(layer("a", 50, 40), layer("b", 50, 20))
    absolute = base.with_tolerance(rs.Tolerance(atol=0.1))
    with pytest.raises(rs.UsageError, match=r"has an absolute part.*with_tolerance\('paper'\)"):
        absolute.against_random()
    page = profile_page(absolute).html()
    assert "No random chain is shown: the tolerance" in page
    assert "random layers, same widths" not in page
    page = profile_page(base).html()
    assert page.count("The network loses more rank than a random Gaussian chain") == 1
    assert "random layers, same widths" in page
    assert "not why" in page


def test_figure():
    base = profile(*[layer(f"l{i}", 40, 40 - i) for i in range(12)])
    ax = base.plot(theory=True)
    dotted = [line for line in ax.lines if line.get_gid() == "random layers"]
    assert len(dotted) == 1
    np.testing.assert_allclose(dotted[0].get_ydata(), [x.predicted for x in base.against_random().layers])
    base.plot(ax=ax, theory=True, label="again")  # of the same widths: no second line
    assert len([line for line in ax.lines if line.get_gid() == "random layers"]) == 1
    base.with_tolerance("reference").plot(ax=ax, theory=True)
    assert len([line for line in ax.lines if line.get_gid() == "random layers"]) == 2
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts.count("random layers, same widths") == 1
    assert not [line for line in base.plot().lines if line.get_gid() == "random layers"]
    own = Figure().add_subplot()
    assert base.against_random().plot(ax=own) is own


def test_record():
    found = profile(layer("a", 50, 40), layer("b", 50, 20, true_cut=False)).against_random()
    plain = json.loads(found.to_json())
    assert plain["schema_version"] == 1
    assert plain["sentence"] == found.sentence
    assert plain["layers"][1]["true_cut"] is False
    assert list(found.frame()["measured"]) == [40, 20]
    assert found.sentence in str(found)
    assert "in a branch" in str(found)
    with pytest.raises(rs.UsageError, match="'c' is not in this comparison; it has a, b"):
        found["c"]


def test_the_directions_of_a_sketch_are_a_layer_of_their_own():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(120, 120, bias=False) for _ in range(5)]).double().eval()
    for module in net:
        nn.init.normal_(module.weight)
    x = torch.randn(1, 120, dtype=torch.float64)
    options = {"cut_points": "all", "tolerance": "reference", "progress": False}
    whole = rs.jacobian_rank(net, x, columns="all", **options).against_random()
    sketch = rs.jacobian_rank(net, x, columns=rs.Sketch(120), **options).against_random()
    assert whole.verdict == sketch.verdict == "alike"
    # one layer more at every cut point
    assert [a.depth + 1 for a in whole.layers] == [b.depth for b in sketch.layers]
    assert sketch.layers[0].predicted == pytest.approx(whole.layers[1].predicted, abs=1e-9)


def gaussian(widths: list[int], seed: int) -> list[nn.Linear]:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(widths)]
    for each in layers:
        nn.init.normal_(each.weight, std=each.in_features**-0.5, generator=generator)
    return layers


def test_blocks_of_plain_layers_are_as_many_random_layers():
    """A Gaussian chain is its own random chain, however it is cut."""
    widths = [60, 60, 30, 80, 60, 60, 40, 60, 60, 60, 60, 60, 60]
    layers = gaussian(widths, 0)
    blocks = nn.Sequential(*[nn.Sequential(*layers[i : i + 4]) for i in range(0, 12, 4)]).double().eval()
    x = torch.randn(1, 60, dtype=torch.float64)
    whole = rs.jacobian_rank(blocks, x, cut_points=["0", "1", "2"], progress=False).against_random()
    each = rs.jacobian_rank(blocks, x, cut_points="all", progress=False).against_random()
    for name in "012":
        assert whole[name].depth == each[name].depth == 4 * (1 + int(name))
        assert whole[name].predicted == each[name].predicted
        assert whole[name].possible == 30
    assert whole.verdict == "alike"
    assert "counts as one" not in whole.sentence


def test_float32_cannot_tell_a_deep_chain():
    blocks = nn.Sequential(*[nn.Sequential(*gaussian([60] * 11, k)) for k in range(5)]).eval()
    found = rs.jacobian_rank(blocks, torch.randn(1, 60), cut_points=list("01234"), progress=False).against_random()
    assert found.layers[-1].verdict == "undecided"
    assert found.verdict == "undecided"
    assert "measure in float64" in found.sentence


def test_pooling_inside_a_block_narrows_the_chain():
    inner = nn.Sequential(nn.Linear(K, 60), nn.AdaptiveAvgPool1d(7), nn.Linear(7, 50))
    net = nn.Sequential(inner, nn.Linear(50, 50)).double().eval()
    x = torch.randn(1, K, dtype=torch.float64)
    found = rs.jacobian_rank(net, x, cut_points=["0", "1"], progress=False).against_random()
    assert [(x.depth, x.possible) for x in found.layers] == [(2, 7), (3, 7)]
    assert found.verdict == "alike"


def test_without_a_mixing_operation_there_is_no_verdict():
    net = nn.Sequential(nn.ReLU(), nn.LayerNorm(K)).eval()
    for columns in ("all", rs.Sketch(K)):  # the directions of a sketch are no operation of the network
        found = rs.jacobian_rank(net, torch.randn(1, K), columns=columns, progress=False).against_random()
        assert found.verdict == "none"
        assert found.sentence.startswith("No operation that mixes features was recognised up to 1, so there is no")
        assert {x.verdict for x in found.layers} == {"none"}
    later = nn.Sequential(nn.ReLU(), nn.Linear(K, 4)).eval()  # what comes before the first is not judged
    found = rs.jacobian_rank(later, torch.randn(1, K), cut_points="all", progress=False).against_random()
    assert [x.verdict for x in found.layers] == ["none", "same"]
    assert "at the only cut point, as" in found.sentence


@pytest.mark.parametrize("widths", [[256, 192, 128, 96, 64, 48, 32, 24, 16], [64] * 13], ids=["narrowing", "square"])
def test_gaussian_chains_are_alike_at_every_tolerance(widths: list[int]):
    """Twenty chains, judged at every layer; of the square ones some lie further off than the slack's fixed part."""
    tolerances = ["paper", "reference", "torch", 0.1, 0.3, 0.5]
    outer = 0
    for seed in range(20):
        net = nn.Sequential(*gaussian(widths, 100 + seed)).double().eval()
        x = torch.zeros(1, widths[0], dtype=torch.float64)
        measured = rs.jacobian_rank(net, x, cut_points="all", certify=False, progress=False)
        for tolerance in tolerances:
            found = measured.with_tolerance(tolerance).against_random()
            assert found.verdict == "alike", (seed, tolerance, found.sentence)
            outer += any(abs(x.difference) > 3 + 0.01 * x.possible for x in found.layers)
    assert outer > 0 or len(set(widths)) > 1


class OtherWords:
    """Row J8: the tangents of a sketch under a class and a description of its own."""

    def __init__(self, sketch: rs.Sketch) -> None:
        self.sketch = sketch

    def __getattr__(self, name):
        return getattr(self.sketch, name)

    def describe(self):
        return "probes of mine"


def test_j8_a_description_decides_no_prediction():
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(48, 48) for _ in range(3))).eval()
    x = torch.randn(1, 48)
    own, named = (
        rs.jacobian_rank(net, x, columns=c, progress=False).against_random()
        for c in (rs.Sketch(24), OtherWords(rs.Sketch(24)))
    )
    assert [(a.depth, a.predicted) for a in own.layers] == [(b.depth, b.predicted) for b in named.layers]
    assert own.layers[0].depth == 2, "the directions are a layer of their own"
