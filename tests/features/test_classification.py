"""Classification dimension against the slow, obvious procedure: project again at each k and take the argmax."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from rankscope._base.errors import DataError, MeasurementError, ModelError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope.features import ClassificationDimension, accuracy_curve, classification_dimension, sweep
from rankscope.features.accuracy_curve import RankSweep, rank_of_label


def planted(n=600, d=24, c=12, seed=0, noise=1.0, offset=1.0):
    g = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, d + 1) ** -1.0
    means = torch.randn(c, d, generator=g) * scale
    y = torch.arange(n) % c
    x = means[y] + noise * scale * torch.randn(n, d, generator=g) + offset
    head = nn.Linear(d, c)
    with torch.no_grad():
        head.weight.copy_(means)
        head.bias.copy_(-(head.weight * (means / 2 + offset)).sum(1))
    return x, y, head


def naive(x, y, weight, bias, *, projection="uncentred", fit=None):
    """Accuracy at each k by scikit-learn's PCA and a projection matrix, in float64."""
    from sklearn.decomposition import PCA

    x64, w, b = x.double().numpy(), weight.detach().double().numpy(), bias.detach().double().numpy()
    pca = PCA(svd_solver="full").fit(x64 if fit is None else fit.double().numpy())
    mean = pca.mean_ if projection == "centred" else np.zeros(x64.shape[1])
    top1, top5 = [], []
    for k in range(1, x64.shape[1] + 1):
        q = pca.components_[:k]
        z = ((x64 - mean) @ q.T @ q + mean) @ w.T + b
        top1.append((z.argmax(1) == y.numpy()).mean())
        top5.append(np.mean([y[i] in np.argsort(-z[i], kind="stable")[:5] for i in range(len(y))]))
    return np.array(top1), np.array(top5)


@pytest.mark.parametrize("projection", ["uncentred", "centred"])
@pytest.mark.parametrize("apart", [False, True])
def test_curve_is_that_of_projecting_again_at_each_k(projection, apart):
    x, y, head = planted()
    fit = planted(seed=5)[0] if apart else None
    found = classification_dimension(x, y, head, projection=projection, fit_features=fit, bootstrap=0)
    top1, top5 = naive(x, y, head.weight, head.bias, projection=projection, fit=fit)
    np.testing.assert_allclose(found.curve, top1, atol=1e-12)
    np.testing.assert_allclose(found.top5, top5, atol=1e-12)
    full = float((head(x).argmax(1) == y).float().mean())
    assert found.full_accuracy == pytest.approx(full)
    assert found.dimension == int(np.argmax(top1 >= 0.95 * full)) + 1
    assert found.full_top5 == pytest.approx(top5[-1])
    assert found.interval is None
    assert 1 < found.dimension < found.ambient == 24


def test_projections_and_separate_axes_give_different_curves():
    x, y, head = planted(offset=3.0)
    curves = [
        classification_dimension(x, y, head, bootstrap=0).curve,
        classification_dimension(x, y, head, bootstrap=0, projection="centred").curve,
        classification_dimension(x, y, head, bootstrap=0, fit_features=planted(seed=5)[0]).curve,
    ]
    assert not np.array_equal(curves[0], curves[1])
    assert not np.array_equal(curves[0], curves[2])


def slow_ranks(features, labels, offset, axes, folded):
    """Ranks in float64, one component at a time over all classes."""
    z = offset.double().expand(len(features), -1).clone()
    scores = features.double() @ axes.double()
    out = []
    for k in range(axes.shape[1]):
        z += scores[:, k : k + 1] * folded[k].double()
        out.append(rank_of_label(z, labels))
    return torch.stack(out, 1)


@pytest.mark.parametrize("share", [-1.0, 0.35, 2.0], ids=["dense", "mixed", "pairs"])
@pytest.mark.parametrize("cap", [1, 5, 99])
@pytest.mark.parametrize("pairs", [7, 1 << 15])
def test_every_path_of_the_sweep_finds_the_same_ranks(monkeypatch, share, cap, pairs):
    monkeypatch.setattr(accuracy_curve, "_DENSE_SHARE", share)
    monkeypatch.setattr(accuracy_curve, "_BLOCK", 5)
    monkeypatch.setattr(accuracy_curve, "_TILE", {"cpu": 16})
    monkeypatch.setattr(accuracy_curve, "_PAIRS", {"cpu": pairs})
    g = torch.Generator().manual_seed(3)
    # small integers: sums are exact in float32, and ties are everywhere
    features = torch.randint(-2, 3, (90, 17), generator=g).float() * torch.cat([torch.ones(9), torch.ones(8) / 16])
    folded = torch.randint(-2, 3, (17, 30), generator=g).float()
    labels = torch.randint(0, 30, (90,), generator=g)
    offset = torch.randint(-1, 2, (30,), generator=g).float()
    engine = RankSweep(features, labels, offset.expand(90, -1).clone(), cap)
    got = torch.cat([engine.advance(tile, torch.eye(17), folded) for tile in engine.tiles()])
    expected = slow_ranks(features, labels, offset, torch.eye(17), folded)
    torch.testing.assert_close(got.clamp_max(cap).long(), expected.clamp_max(cap))
    assert len(engine.tiles()) > 1
    torch.testing.assert_close(engine.logits, offset + features @ folded)


def test_ranks_agree_where_margins_are_large_and_components_decay():
    x, y, head = planted(n=1500, d=80, c=40, noise=0.3)
    axes = torch.linalg.qr(torch.randn(80, 80, generator=torch.Generator().manual_seed(1)))[0]
    folded = (axes.double().T @ head.weight.detach().double().T).float()
    engine = RankSweep(x, y, head.bias.detach().expand(len(x), -1).clone())
    got = torch.cat([engine.advance(tile, axes, folded) for tile in engine.tiles()])
    expected = slow_ranks(x, y, head.bias.detach(), axes, folded)
    assert float((got.clamp_max(5) != expected.clamp_max(5)).float().mean()) < 1e-4


def test_first_crossing_is_found_though_accuracy_falls_again():
    x, y, head = planted(offset=3.0)
    curve = classification_dimension(x, y, head, bootstrap=0).curve
    peak = next(k for k in range(1, 23) if curve[k + 1] < curve[k] and curve[k] > curve[:k].max())
    keep = curve[peak] / curve[-1]
    found = classification_dimension(x, y, head, bootstrap=0, keep=keep)
    assert found.dimension == peak + 1
    below = int((curve[peak:] < curve[peak] - 1e-12).sum())
    assert Fact(FactKind.NOT_MONOTONE, {"count": below}) in found.facts


def test_planted_dimension_is_recovered():
    g = torch.Generator().manual_seed(0)
    d, r = 40, 8
    signs = torch.tensor([[1.0 if (c >> b) & 1 else -1.0 for b in range(r)] for c in range(256)])
    y = torch.arange(2560) % 256
    scale = torch.linspace(2, 1, r)
    q = torch.linalg.qr(torch.randn(d, d, generator=g))[0][:, :r]
    x = (signs[y] * scale) @ q.T + 0.01 * torch.randn(2560, d, generator=g)
    found = classification_dimension(x, y, ((signs * scale) @ q.T, None), bootstrap=20)
    assert (found.dimension, found.ambient, found.full_accuracy) == (r, d, 1.0)
    assert found.interval == (r, r)
    assert found.variance_kept > 0.99


def test_bootstrap_interval_is_that_of_resampling_and_measuring_again():
    x, y, head = planted(n=240)
    found = classification_dimension(x, y, head, bootstrap=40, seed=7)
    generator = torch.Generator().manual_seed(7)
    from rankscope.features.principal import principal_axes

    q = principal_axes(x).axes.float()
    crossings = []
    for _ in range(40):
        pick = torch.randint(240, (240,), generator=generator)
        full = (head(x[pick]).argmax(1) == y[pick]).double().sum()
        right = torch.stack(
            [(head(x[pick] @ q[:, :k] @ q[:, :k].T).argmax(1) == y[pick]).double().sum() for k in range(1, 25)]
        )
        crossings.append(int((right >= 0.95 * full - 1e-9).nonzero()[0]) + 1)
    crossings.sort()
    assert found.interval == (crossings[0], crossings[-1])  # 2.5% of 40 − 1, rounded outwards
    assert crossings[0] < crossings[-1]
    again = classification_dimension(x, y, head, bootstrap=40, seed=7)
    assert again.interval == found.interval


def test_any_callable_gives_what_its_linear_twin_gives():
    x, y, head = planted(n=240)
    fast = classification_dimension(x, y, head, projection="centred", bootstrap=10)
    slow = classification_dimension(x, y, lambda rows: head(rows), projection="centred", bootstrap=10)
    np.testing.assert_allclose(slow.curve, fast.curve, atol=1 / 240)
    np.testing.assert_allclose(slow.top5, fast.top5, atol=1 / 240)
    assert slow.dimension == fast.dimension
    with pytest.raises(UsageError, match="only a linear head can be folded"):
        slow.head()


def test_any_scorer():
    x, y, head = planted(n=240)
    score = lambda rows, labels: float((head(rows).argmax(1) == labels).double().mean())  # noqa: E731
    for projection in ("uncentred", "centred"):
        by_score = classification_dimension(x, y, scorer=score, projection=projection)
        by_head = classification_dimension(x, y, head, projection=projection, bootstrap=0)
        np.testing.assert_allclose(by_score.curve, by_head.curve, atol=1 / 240)
        assert (by_score.dimension, by_score.interval, by_score.top5) == (by_head.dimension, None, None)
    with pytest.raises(MeasurementError, match=r"full score is -1; .*positive"):
        classification_dimension(x, y, scorer=lambda *_: -1.0)


def test_stopping_at_the_crossing_changes_nothing_before_it(monkeypatch):
    monkeypatch.setattr(sweep, "_CHUNK", 4)
    x, y, head = planted(n=480)
    whole = classification_dimension(x, y, head)
    for one in (head, lambda rows: head(rows)):
        early = classification_dimension(x, y, one, stop_at_crossing=True)
        assert early.dimension == whole.dimension
        assert early.interval == whole.interval
        assert whole.dimension <= len(early.curve) < 24
        np.testing.assert_allclose(early.curve, whole.curve[: len(early.curve)], atol=1 / 480)


@pytest.mark.parametrize("projection", ["uncentred", "centred"])
def test_truncated_head_is_the_projected_classifier(projection):
    x, y, head = planted(offset=2.0)
    found = classification_dimension(x, y, head, projection=projection, bootstrap=0)
    for k in (1, found.dimension, 24):
        small = found.head(k)
        accuracy = float((small(x).argmax(1) == y).double().mean())
        assert accuracy == pytest.approx(found.curve[k - 1], abs=2 / len(x))
        assert sum(p.numel() for p in small.parameters()) == k * (24 + 12) + 12
    torch.testing.assert_close(found.head(24)(x), head(x), rtol=1e-4, atol=1e-3)
    assert found.head().project.out_features == found.dimension
    with pytest.raises(UsageError, match="k is 25; a truncated head keeps 1 to 24"):
        found.head(25)


def test_top5_only_from_ten_classes_on():
    x, y, head = planted(c=9, n=180)
    found = classification_dimension(x, y, head, bootstrap=0)
    assert found.top5 is None
    assert found.full_top5 is None
    assert classification_dimension(*planted(c=10, n=180), bootstrap=0).top5 is not None


def test_head_is_checked_against_stored_logits():
    x, y, head = planted()
    logits = head(x).detach()
    found = classification_dimension(x, y, head, logits=logits, bootstrap=0)
    assert found.head_error is not None
    assert found.head_error < 1e-5
    with pytest.raises(DataError, match=r"does not reproduce the stored logits: they differ by up to 1 "):
        classification_dimension(x, y, head, logits=logits + 1, bootstrap=0)
    with pytest.raises(DataError, match="12 classes, the stored logits have 11"):
        classification_dimension(x, y, head, logits=logits[:, 1:], bootstrap=0)
    with pytest.raises(DataError, match="599 rows of logits for 600 samples"):
        classification_dimension(x, y, head, logits=logits[1:], bootstrap=0)
    logits[3, 3] = torch.nan
    with pytest.raises(DataError, match="the stored logits of sample 3 hold a NaN"):
        classification_dimension(x, y, head, logits=logits, bootstrap=0)


BAD_DATA = {
    "label too large": (lambda x, y, h: y.__setitem__(4, 12), r"label 12 of sample 4 is outside the 12 classes"),
    "label negative": (lambda x, y, h: y.__setitem__(5, -1), r"label -1, first of sample 5"),
    "class absent": (lambda x, y, h: y.__setitem__(y == 3, 4), r"no sample of class 3 \(1 of 12"),
    "fewer samples than classes": (lambda x, y, h: (x[:11], y[:11], h), r"11 samples for 12 classes are too few"),
    "one class": (lambda x, y, h: y.fill_(2) is None, "one class alone"),
    "NaN": (lambda x, y, h: x[7, 3].fill_(torch.nan) is None, "features: sample 7 holds a NaN"),
    "infinite": (lambda x, y, h: x[8, 3].fill_(-torch.inf) is None, "features: sample 8 holds a NaN or infinite"),
    "constant": (lambda x, y, h: x.fill_(1.0) is None, "features are constant: all 120 samples"),
    "head of another width": (lambda x, y, h: (x, y, nn.Linear(23, 12)), "takes features of width 23, these have 24"),
    "labels missing": (lambda x, y, h: (x, y[:-1], h), "119 labels for 120 samples"),
    "labels of floats": (lambda x, y, h: (x, y.float(), h), "labels are float32"),
    "not a matrix": (lambda x, y, h: (x[None], y, h), r"samples × dimensions\); this has shape \(1, 120, 24\)"),
    "empty": (lambda x, y, h: (x[:0], y[:0], h), "features is empty"),
    "complex": (lambda x, y, h: (x + 0j, y, h), "complex64; give real"),
    "head of one output": (lambda x, y, h: (x, y, lambda r: r[:, 0]), r"must return logits .* it gave \(120,\)"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_named(case):
    change, message = BAD_DATA[case]
    x, y, head = planted(n=120)
    x, y, head = change(x, y, head) or (x, y, head)  # a change in place returns nothing true
    with pytest.raises(DataError, match=message):
        classification_dimension(x, y, head)


def test_absent_classes_can_be_allowed():
    x, y, head = planted(n=120)
    keep = y != 3
    assert classification_dimension(x[keep], y[keep], head, allow_absent=True, bootstrap=0).samples == 110


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": 1.01}, "keep is 1.01"),
        ({"projection": "centered"}, "did you mean 'centred'"),
        ({"bootstrap": -1}, "bootstrap is -1"),
        ({"scorer": lambda *_: 1.0}, "either a head"),
        ({"head": None}, "either a head"),
        ({"head": 3}, "the head is a int"),
    ],
)
def test_bad_options_are_named(options, message):
    x, y, head = planted(n=120)
    with pytest.raises(UsageError, match=message):
        classification_dimension(x, y, **{"head": head, **options})


def test_accuracy_of_zero_is_an_error():
    x, y, head = planted(n=120, noise=0.0)
    with pytest.raises(MeasurementError, match="right on none of 120 samples"):
        classification_dimension(x, (y + 1) % 12, head)


def test_axes_of_another_width():
    x, y, head = planted(n=120)
    with pytest.raises(DataError, match="fit_features have width 23, features 24"):
        classification_dimension(x, y, head, fit_features=x[:, 1:])


def test_record_prints_tabulates_and_turns_to_json(tmp_path):
    x, y, head = planted(n=240)
    found = classification_dimension(x, y, head, bootstrap=20)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["schema_version"] == 1
    assert plain["dimension"] == found.dimension
    assert len(plain["curve"]) == len(plain["top5"]) == 24
    row = found.table().iloc[0]
    assert (row["classification_dimension"], row["ambient"], row["low"]) == (found.dimension, 24, found.interval[0])
    curve = found.curve_table()
    assert list(curve.columns) == ["k", "top1", "kept", "top5"]
    assert curve["k"].tolist() == list(range(1, 25))
    assert curve["kept"].iloc[-1] == pytest.approx(1.0)
    assert f"{found.dimension} of 24" in str(found)
    axes = found.plot(label="planted")
    axes.figure.savefig(tmp_path / "curve.png")
    assert axes.get_xscale() == "function"
    assert "principal components" in axes.get_xlabel()
    assert "%" in axes.get_ylabel()
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["planted", "top-5", "0.95 × full"]


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.04, 0.06])
def test_the_number_stays_clear_of_the_threshold(gap):
    """However far the dot is above the dotted line, the number lies below that line and beside the dot."""
    x, y, head = planted(n=240)
    found = classification_dimension(x, y, head)
    found = dataclasses.replace(found, keep=(found.accuracy - gap) / found.full_accuracy)
    axes = found.plot()
    axes.figure.canvas.draw()
    (number,) = axes.texts
    assert number.get_text() == str(found.dimension)
    at = axes.transData.transform((found.dimension, 100 * (found.accuracy - gap)))
    box = number.get_window_extent()
    assert box.y1 < at[1]
    assert 0 < box.x0 - at[0] < box.height


def test_threads_are_given_back_and_change_nothing():
    x, y, head = planted(n=1200)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = classification_dimension(x, y, head, bootstrap=5)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        one = classification_dimension(x, y, head, bootstrap=5)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(one.curve, two.curve, atol=1 / 1200)


def test_a_whole_model_brings_its_own_head():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 3))
    images, labels = torch.randn(60, 1, 6, 6), torch.arange(60) % 3
    with torch.no_grad():
        features = net[:5](images)
    whole = classification_dimension(features, labels, net, bootstrap=0)
    alone = classification_dimension(features, labels, net[5], bootstrap=0)
    assert whole.curve.tolist() == alone.curve.tolist()
    with pytest.raises(DataError, match="the head takes features of width 10, these have 7"):
        classification_dimension(torch.randn(60, 7), labels, net, bootstrap=0)


def clusters(n=600, d=32, classes=5, seed=0, dtype=torch.float32):
    """Features, a two-layer head of fixed random weights, and the labels that it gives."""
    torch.manual_seed(seed)
    head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, classes))
    x = torch.randn(n, d, dtype=dtype)
    return x, head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_f1_a_head_in_another_precision_is_taken_whole(dtype):
    """Dimension and accuracy of the same weights in float32, by projecting again at every k."""
    x, head = clusters()
    head = head.to(dtype)
    exact = copy.deepcopy(head).double()
    with torch.no_grad():
        y = exact(x.double()).argmax(1)
    found = classification_dimension(x, y, head, bootstrap=0)
    centred = x.double() - x.double().mean(0)
    q = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    with torch.no_grad():
        curve = [
            float((exact(x.double() @ q[:, :k] @ q[:, :k].T).argmax(1) == y).double().mean()) for k in range(1, 33)
        ]
    np.testing.assert_allclose(found.curve, curve, atol=3 / len(x))  # float32 ties of a few samples
    assert found.full_accuracy > 0.99
    assert {p.dtype for p in head.parameters()} == {dtype}


def test_f16_dropout_and_batch_statistics_are_off_and_the_head_stays_as_it_was():
    x, head = clusters()
    head = nn.Sequential(nn.Dropout(0.5), head[0], nn.BatchNorm1d(32), nn.ReLU(), head[2]).train()
    with torch.no_grad():
        head[2].running_mean.normal_()
    before = {key: value.clone() for key, value in head.state_dict().items()}
    y = copy.deepcopy(head).eval()(x).argmax(1)
    one, other = (classification_dimension(x, y, head, bootstrap=0, allow_absent=True) for _ in range(2))
    assert one.full_accuracy == 1.0
    np.testing.assert_array_equal(one.curve, other.curve)
    assert all(module.training for module in head.modules())
    for key, value in head.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_f16_functions_that_are_random_or_mix_samples_are_named():
    x, head = clusters()
    y = head(x).argmax(1)
    random = nn.Sequential(nn.Dropout(0.5), head).train()
    with pytest.raises(ModelError, match="differs from call to call; put the modules it calls into evaluation mode"):
        classification_dimension(x, y, lambda rows: random(rows))
    mixing = nn.Sequential(nn.BatchNorm1d(32, track_running_stats=False), head)
    with pytest.raises(ModelError, match="depends on the other samples of a batch"):
        classification_dimension(x, y, lambda rows: mixing(rows))
    with pytest.raises(ModelError, match="the head fails on float32 features"):
        classification_dimension(x, y, lambda rows: head.double()(rows))


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f2_a_head_with_nan_is_named(part, bad):
    x = torch.randn(50, 4)
    head = nn.Linear(4, 3)
    with torch.no_grad():
        getattr(head, part)[1] = bad
    y = torch.arange(50) % 3
    for given in (head, (head.weight, head.bias)):
        with pytest.raises(DataError, match=rf"the head's {part} holds a NaN or infinite value \(class 1\)"):
            classification_dimension(x, y, given)
    with pytest.raises(DataError, match="the head gives a NaN or infinite logit for sample 0"):
        classification_dimension(x, y, lambda rows: head(rows))


def test_f2_a_nan_for_some_inputs_never_counts_as_right():
    x, y = torch.randn(50, 4).abs() + 1, torch.arange(50) % 2
    weight = torch.randn(4, 2)

    def late(rows):  # NaN on every projection, since only the features themselves have a norm above the limit
        return torch.where((rows - x[: len(rows)]).abs().amax(1, keepdim=True) < 1e-4, rows @ weight, torch.nan)

    ranks = rank_of_label(torch.tensor([[float("nan"), 1.0], [0.0, float("nan")]]), torch.tensor([0, 0]))
    assert (ranks > 0).all()
    with pytest.raises(DataError, match="logit for sample 7"):
        classification_dimension(x, y, lambda rows: torch.where(rows[:, :1] == x[7, 0], torch.nan, rows @ weight))
    scores = iter([1.0])  # of the features themselves, and NaN of every projection
    found = classification_dimension(x, y, scorer=lambda *_: next(scores, math.nan))
    assert (found.dimension, bool(np.isinf(found.curve).all())) == (4, True)


@pytest.mark.parametrize("mean", [1e3, 1e6])
def test_f8_float64_features_keep_their_digits(mean):
    g = torch.Generator().manual_seed(0)
    x = mean + 0.05 * torch.randn(300, 8, generator=g, dtype=torch.float64)
    weight = torch.randn(5, 8, generator=g, dtype=torch.float64)
    bias = -weight @ torch.full((8,), mean, dtype=torch.float64)
    y = ((x - mean) @ weight.T).argmax(1)
    for projection in ("uncentred", "centred"):
        found = classification_dimension(x, y, (weight, bias), projection=projection, bootstrap=0)
        assert found.full_accuracy == found.curve[-1] == 1.0
    made = found.head(8)(x).argmax(1)
    assert bool((made == y).all())


def skewed():
    """95% of 2,000 samples in class 0 of 10, told apart by 9 directions of falling variance."""
    g = torch.Generator().manual_seed(0)
    y = torch.where(torch.arange(2000) < 1900, 0, torch.arange(2000) % 9 + 1)
    axes = torch.linalg.qr(torch.randn(20, 20, generator=g)).Q
    centres = torch.cat([torch.zeros(1, 20), 6 * torch.diag(torch.linspace(1.0, 0.8, 9)) @ axes[:, :9].T])
    x = centres[y] + 0.01 * torch.randn(2000, 20, generator=g)
    return x, y, (2 * centres, -centres.square().sum(1))


def test_f14_the_majority_share_is_named_and_balanced_accuracy_offered():
    x, y, head = skewed()
    plain = classification_dimension(x, y, head)
    assert plain.dimension == 1
    (said,) = plain.facts
    assert (said.kind, said.caution) == (FactKind.KEPT_BY_CHANCE, True)
    assert (said["share"], said["answer"], said["measure"]) == (0.95, 0, "overall")
    assert said["kept"] == pytest.approx(0.95 * plain.full_accuracy)
    assert 'accuracy="balanced"' in str(plain).splitlines()[0]
    found = classification_dimension(x, y, head, accuracy="balanced")
    sk = pytest.importorskip("sklearn.metrics").balanced_accuracy_score
    centred = x.double() - x.double().mean(0)
    q = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)
    for k in (1, 4, 7, 8, 9, 20):
        made = (x.double() @ q[:, :k] @ q[:, :k].T @ head[0].T.double() + head[1].double()).argmax(1)
        assert found.curve[k - 1] == pytest.approx(sk(y, made), abs=1e-2)
    assert found.dimension >= 8
    assert found.interval[0] <= found.dimension <= found.interval[1]
    assert found.facts == ()
    assert "balanced accuracy kept" in str(found)


def test_f13_an_accuracy_at_chance_is_named_first():
    x, y = torch.randn(300, 6), torch.arange(300) % 3
    x[:, 0] += 5 * y
    head = (torch.zeros(3, 6), torch.tensor([1.0, 0.0, 0.0]))
    found = classification_dimension(x, y, head)
    said = found.facts[0]
    assert (said.kind, said.caution, said["of"], said["answer"]) == (FactKind.AT_CHANCE, True, "head", 0)
    assert said["accuracy"] == said["share"] == pytest.approx(1 / 3)
    assert found.cautions == found.notes[:1]
    first, *rest = str(found).splitlines()
    assert first.startswith("Caution: The accuracy is at chance: 33.33%")
    assert rest[0].startswith("classification dimension")
    assert "at chance" not in "".join(rest)
    with pytest.raises(UsageError, match="accuracy is 'balanced', but scorer= also scores the answers"):
        classification_dimension(x, y, scorer=lambda a, b: 1.0, accuracy="balanced")


def scaled_heads(weight, bias, factor):
    """The same classifier for features times ``factor``, as (weight, bias) and as a function; logits grow with it."""
    return {
        "linear": (weight, None if bias is None else bias * factor),
        "function": lambda rows: rows @ weight.T + (0 if bias is None else bias * factor),
    }


@pytest.mark.parametrize("projection", ["uncentred", "centred"])
@pytest.mark.parametrize("kind", ["linear", "function"])
@pytest.mark.parametrize("exponent", [-990, -700, -520, -110, 110, 520, 700, 1000])
def test_scale_of_the_features_changes_nothing(exponent, kind, projection):
    """A power of two rounds nothing, so the curve must be the same to the last count, squares in range or not."""
    x, y, head = planted(n=240, d=12, c=4)
    x, weight, bias = x.double(), head.weight.detach().double(), head.bias.detach().double()
    once = classification_dimension(x, y, scaled_heads(weight, bias, 1.0)[kind], projection=projection, bootstrap=20)
    factor = 2.0**exponent
    found = classification_dimension(
        x * factor, y, scaled_heads(weight, bias, factor)[kind], projection=projection, bootstrap=20
    )
    np.testing.assert_array_equal(found.curve, once.curve)
    assert (found.dimension, found.interval) == (once.dimension, once.interval)
    assert found.variance_kept == pytest.approx(once.variance_kept, rel=1e-12)
    assert once.dimension > 1


@pytest.mark.parametrize("exponent", [-100, -70, 60, 100])
def test_scale_of_float32_features_changes_nothing(exponent):
    """In float32 squares leave the range already at 2**-75: the norms that bound a block of components were zero."""
    x, y, head = planted(n=240, d=12, c=4)
    weight, bias = head.weight.detach(), head.bias.detach()
    once = classification_dimension(x, y, (weight, bias), bootstrap=0)
    found = classification_dimension(x * 2.0**exponent, y, (weight, bias * 2.0**exponent), bootstrap=0)
    np.testing.assert_array_equal(found.curve, once.curve)
    large = classification_dimension(x, y, (weight * 2.0**exponent, bias * 2.0**exponent), bootstrap=0)
    np.testing.assert_array_equal(large.curve, once.curve)


def test_extreme_features_with_a_scorer_and_a_folded_head():
    x, y, head = planted(n=240, d=12, c=4)
    x, weight = x.double() * 1e200, head.weight.detach().double()
    found = classification_dimension(x, y, (weight, None), bootstrap=0)
    truncated = found.head().double()(x).argmax(1)
    assert float((truncated == y).double().mean()) == pytest.approx(found.accuracy, abs=1e-12)
    scored = classification_dimension(
        x, y, scorer=lambda rows, labels: float(((rows @ weight.T).argmax(1) == labels).double().mean())
    )
    assert scored.dimension == found.dimension


def test_a_result_that_was_saved_still_gives_its_truncated_head(tmp_path):
    x, y, head = planted(offset=3.0)
    for projection in ("uncentred", "centred"):
        found = classification_dimension(x, y, head, bootstrap=0, projection=projection)
        again = ClassificationDimension.load(found.save(tmp_path / f"{projection}.json"))
        # the same numbers in another memory layout: float32 sums of 24 products differ in their order alone
        torch.testing.assert_close(again.head()(x), found.head()(x), rtol=24 * 2.0**-23, atol=24 * 2.0**-23 * 10)
