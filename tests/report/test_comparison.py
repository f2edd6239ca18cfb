"""``rs.compare``: matching, differences in how runs were measured, paired intervals, and the command."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import rankscope as rs
from rankscope.cli.app import app
from rankscope.report.plain_names import plain_name, plain_names


def relu_net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())


X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


def profile(seed, **more):
    return rs.jacobian_rank(relu_net(seed), X, columns="all", progress=False, **{"cut_points": ["1", "3"], **more})


@pytest.fixture(scope="module")
def profiles():
    return {"a": profile(0), "b": profile(1)}


def ranks(seed, layer):
    """Rank of each image's Jacobian from autograd's own rows in float64."""
    net = relu_net(seed).double()[: layer + 1]
    rows = [torch.autograd.functional.jacobian(net, x).numpy() for x in X.double()]
    return np.array([np.linalg.matrix_rank(row) for row in rows])


def test_values_differences_and_paired_intervals(profiles):
    found = rs.compare(profiles, same_images=True)
    assert found.names == ("a", "b")
    for layer in found.layers:
        a, b = (ranks(seed, int(layer.layer)) for seed in (0, 1))
        assert layer.values == (a.max(), b.max())
        assert layer.paired[1] == pytest.approx((b - a).mean())
        # 2000 draws: each end is a mean of 8 whole numbers, so within 1/8 of the exact quantile
        rng = np.random.default_rng(99)
        means = (b - a)[rng.integers(8, size=(20000, 8))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        assert layer.paired_low[1] == pytest.approx(low, abs=0.126)
        assert layer.paired_high[1] == pytest.approx(high, abs=0.126)
        assert np.isnan(layer.paired[0])
    assert found == rs.compare(profiles, same_images=True)
    assert found.facts == ()


def test_numbered_images_are_not_taken_for_the_same(profiles):
    found = rs.compare(profiles)
    assert np.isnan(found.layers[0].paired[1])
    assert "it is not known whether the runs saw the same ones" in found.notes[-1]
    assert "−" in str(found)
    assert str(found).startswith("Note: The images have numbers and no names")


def test_what_differs_is_named_before_the_numbers(profiles):
    other = rs.jacobian_rank(
        relu_net(1), X[:4], cut_points=["1", "3"], columns=rs.Sketch(3), tolerance=0.01, progress=False
    )
    found = rs.compare({"a": profiles["a"], "b": other})
    said = str(found).split("layer ")[0]
    for what in ("tolerance", "columns", "images"):
        assert f"Caution: The runs differ in {what} (a: " in said
    with pytest.raises(rs.UsageError, match="different numbers of images"):
        rs.compare({"a": profiles["a"], "b": other}, same_images=True)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module.layer1", "layer1"),
        ("_orig_mod.module.layer1", "layer1"),
        ("module._orig_mod.a.b", "a.b"),
        ("net._orig_mod.a", "net.a"),
        ("net.module.a", "net.module.a"),
        ("layer._orig_mod.x", "layer.x"),
        ("_fsdp_wrapped_module.layer._fsdp_wrapped_module._checkpoint_wrapped_module.x", "layer.x"),
        ("module.layer._checkpoint_wrapped_module", "layer"),
        ("layer._orig_mod#2", "layer#2"),
        ("layer._orig_mod:0.hidden", "layer:0.hidden"),
        ("_orig_mod#2", "_orig_mod#2"),
        ("my_orig_mod.a", "my_orig_mod.a"),
        ("_orig_mod_a.b", "_orig_mod_a.b"),
        ("module", "module"),
        ("_orig_mod", "_orig_mod"),
    ],
)
def test_names_of_wrappers_are_ignored(name, plain):
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    ("runs", "plain"),
    [
        ([["model.a", "model.b"], ["a", "b"]], [["a", "b"], ["a", "b"]]),
        ([["a"], ["module.model.model.a"]], [["a"], ["a"]]),
        ([["model.a", "model", "output"], ["a", "output"]], [["a", "model", "output"], ["a", "output"]]),
        ([["model.a", "model.b"], ["model.a"]], [["model.a", "model.b"], ["model.a"]]),  # their own name
        ([["model.a"], ["model.a", "head"]], [["model.a"], ["model.a", "head"]]),
        ([["model.a", "head"], ["a"]], [["model.a", "head"], ["a"]]),
        ([["modelled.a"], ["a"]], [["modelled.a"], ["a"]]),
        ([["output"], ["model.a"]], [["output"], ["model.a"]]),
    ],
)
def test_a_model_inside_a_module_has_the_names_of_the_model(runs, plain):
    assert plain_names(runs) == plain


def test_layers_of_wrapped_networks_are_those_of_the_plain_one():
    """With the names that torch's own wrappers give."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    plain, wrapped, inside = relu_net(0), relu_net(0), nn.Module()
    wrapped[0] = checkpoint_wrapper(wrapped[0])
    wrapped[2] = torch.compile(wrapped[2], backend="eager")
    inside.model = nn.Sequential(*relu_net(0))
    inside.forward = inside.model.forward
    names = [[n for n, m in net.named_modules() if isinstance(m, nn.Linear)] for net in (plain, wrapped, inside)]
    assert names[1] == ["0._checkpoint_wrapped_module", "2._orig_mod"]
    found = rs.compare([history(**{name: 1.0 + i for i, name in enumerate(one)}) for one in names])
    assert [layer.layer for layer in found.layers] == ["0", "2"]
    assert [layer.names for layer in found.layers] == [*zip(*names, strict=True)]
    assert found.facts == ()


def history(**layers):
    rows = [(step, layer, "rankme", value + step, 9) for layer, value in layers.items() for step in (0, 10)]
    return pd.DataFrame(rows, columns=["step", "layer", "metric", "value", "samples"])


def test_layers_are_matched_by_name_in_the_order_of_depth():
    one = history(**{"module.a": 1.0, "module.c": 3.0})
    two = history(a=5.0, b=6.0, c=7.0)
    found = rs.compare([one, two])
    assert [layer.layer for layer in found.layers] == ["a", "b", "c"]
    assert [layer.values for layer in found.layers][::2] == [(11.0, 15.0), (13.0, 17.0)]
    assert np.isnan(found.layers[1].values[0])
    assert found.layers[1].names == ("", "b")
    assert found.notes == ("1 layer is not in every run: b.",)
    assert found.names == ("run 1", "run 2")


def test_layers_without_a_common_name_are_matched_by_depth():
    found = rs.compare({"x": history(a=1.0, b=2.0), "y": history(p=3.0, q=4.0)})
    assert [layer.names for layer in found.layers] == [("a", "p"), ("b", "q")]
    assert found.notes[0].startswith("The runs share no layer name. Layers are matched by their order: 'a' of x")
    with pytest.raises(rs.UsageError, match=r"different numbers of layers \(x: 2, y: 1\)"):
        rs.compare({"x": history(a=1.0, b=2.0), "y": history(p=3.0)})


def test_histories_are_compared_at_the_last_common_step():
    one, two = history(a=1.0), history(a=2.0)
    two = two[two["step"] == 0]
    assert rs.compare([one, two]).layers[0].values == (1.0, 2.0)
    with pytest.raises(rs.UsageError, match="share no monitored step"):
        rs.compare([one[one["step"] == 10], two])


def test_feature_profiles():
    data = [rs.feature_rank(relu_net(seed), X, cut_points=["0", "2"]) for seed in (0, 1)]
    found = rs.compare(data, metric="participation_ratio", names=["p", "q"])
    for layer in found.layers:
        for seed, value in zip((0, 1), layer.values, strict=True):
            with torch.no_grad():
                rows = relu_net(seed)[: int(layer.layer) + 1](X).double().numpy()
            values = np.linalg.eigvalsh(np.cov(rows.T))
            assert value == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-6)
    assert np.isnan(found.layers[0].paired[1])


def test_features_around_one_input_are_not_taken_for_those_of_a_data_set():
    """Their dimensions have another threshold too."""
    whole = rs.feature_rank(relu_net(0), X, cut_points=["0"])
    near, nearer = (
        rs.local_feature_rank(relu_net(0), X[:1], cut_points=["0"], samples=len(X), noise=n) for n in (1e-3, 1e-4)
    )
    said = rs.compare({"whole": whole, "near": near}).notes
    assert any("differ in what was measured (whole: feature_rank; near: local_feature_rank)" in one for one in said)
    assert any(
        "differ in noise (near: 0.001; nearer: 0.0001)" in n for n in rs.compare({"near": near, "nearer": nearer}).notes
    )
    assert not any("differ in" in one for one in rs.compare([near, near]).notes)


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        ([], {}, "there are 0 runs"),
        ([history(a=1.0)], {}, "there is 1 run; "),
        (
            [history(a=1.0), history(a=1.0).assign(metric="alpha_req")],
            {},
            r"first metrics of the runs differ \(rankme, alpha_req\); give metric, one that all",
        ),
        ([history(a=1.0), 3], {}, "a run has the type .int.; give"),
        ([history(a=1.0)] * 2, {"metric": "rank"}, "has no metric 'rank'"),
        ([history(a=1.0)] * 2, {"names": ["x", "x"]}, "give 2 different ones"),
        ([history(**{"a": 1.0, "module.a": 2.0})] * 2, {}, "has two layers 'a'"),
        ([history(a=1.0)] * 2, {"same_images": True}, "same_images=True is for Jacobian profiles"),
        ([history(a=1.0)] * 2, {"resamples": 0}, "resamples is 0"),
        ([history(a=1.0)] * 2, {"seed": 2**63}, "seed is .*; it must be at most"),
        ([history(a=1.0)] * 2, {"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_compared(given, options, match):
    with pytest.raises(rs.UsageError, match=match):
        rs.compare(given, **options)


def test_kinds_do_not_mix(profiles):
    with pytest.raises(rs.UsageError, match="several kinds"):
        rs.compare([profiles["a"], history(a=1.0)])


def test_the_command(tmp_path, profiles):
    paths = [str(found.save(tmp_path / name)) for name, found in profiles.items()]
    done = CliRunner().invoke(app, ["compare", *paths, "--same-images", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "jacobian_rank" in done.output
    kinds = ("json", "csv", "png", "svg", "html")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {f"comparison.{kind}" for kind in kinds}
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["value"].tolist() == [v for layer in rs.compare(profiles).layers for v in layer.values]


def test_long_names_of_runs_leave_the_figure_its_room(profiles):
    names = [f"/data/{'deep/' * 30}run-{k}" for k in "ab"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = rs.compare(list(profiles.values()), names=names).plot()
        ax.figure.canvas.draw()
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(set(shown)) == 2
    assert all(len(text) <= 32 for text in shown)
