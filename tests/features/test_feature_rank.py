"""Feature dimension of layers against scikit-learn's PCA, on networks whose dimensions are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from rankscope._base.errors import CutPointError, DataError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope.features import CentredMoments, feature_rank, local_feature_rank
from rankscope.features.accumulate import choose_accumulator, layer_features
from rankscope.features.sketch import FrequentDirections, RowStore
from rankscope.slicing import layers
from rankscope.spectra import EPS32


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.Linear(16, 5), nn.Linear(5, 30), nn.ReLU(inplace=True), nn.Linear(30, 8))


def data(n=400, d=20, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def outputs(net, x):
    with torch.no_grad():
        found = [x]
        for layer in net:
            found.append(layer(found[-1].clone()))
    return found[1:]


def test_dimensions_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    net, x = network(), data()
    profile = feature_rank(net, x, cut_points=[str(i) for i in range(5)], batch_size=37)
    assert [layer.name for layer in profile] == ["0", "1", "2", "3", "4"]
    for layer, out in zip(profile, outputs(net, x), strict=True):
        found = PCA(svd_solver="full").fit(out.double().numpy()).explained_variance_
        np.testing.assert_allclose(layer.covariance.singular_values, found, rtol=1e-6, atol=1e-9 * found[0])
        assert layer.pca_dimension == int((found >= EPS32 * layer.width * found[0]).sum())
        p = found / found.sum()
        assert layer.participation_ratio == pytest.approx(1 / (p**2).sum(), rel=1e-5)
        assert layer.stable_rank == pytest.approx(found.sum() / found[0], rel=1e-5)
        sigma = np.sqrt(np.maximum(found, 0))
        q = sigma / sigma.sum()
        assert layer.effective_rank == pytest.approx(np.exp(-(q[q > 0] * np.log(q[q > 0])).sum()), rel=1e-3)
        raw = np.linalg.svd(out.double().numpy(), compute_uv=False)  # RankMe does not centre
        share = raw / raw.sum() + 1e-7
        assert layer.rankme == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
        assert (layer.samples, layer.method, layer.limited_by) == (400, "covariance", "network")
    assert [layer.pca_dimension for layer in profile][:3] == [16, 5, 5]
    assert profile["3"].pca_dimension > 5  # covariance rank grows through a ReLU


def test_sources_agree():
    net, x = network(), data()
    out = outputs(net, x)[0]
    moments = CentredMoments(16)
    moments.update(out)
    values = [
        feature_rank(net, x, cut_points=["0"])[0],
        feature_rank(net, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), 33), cut_points=["0"])[0],
        feature_rank(out)[0],
        feature_rank({"0": out.numpy()})["0"],
        feature_rank({"0": moments})["0"],
    ]
    for one in values[1:]:
        np.testing.assert_allclose(one.covariance.singular_values, values[0].covariance.singular_values, rtol=1e-5)


def test_layers_wider_than_the_samples_go_through_their_gram_matrix():
    x = data(25, 60)
    wide = feature_rank({"a": x})["a"]
    assert wide.method == "gram"
    assert wide.pca_dimension == 24
    assert wide.limited_by == "samples"
    moments = CentredMoments(60)
    moments.update(x)
    square = feature_rank({"a": moments})["a"]
    assert square.method == "covariance"
    assert square.pca_dimension == 24
    np.testing.assert_allclose(wide.covariance.singular_values, square.covariance.singular_values, rtol=1e-9)
    assert wide.covariance.shape == (60, 60)
    assert wide.matrix.shape == (25, 60)
    flat = feature_rank({"a": x[:, :3] @ torch.ones(3, 60) + data(25, 1) @ data(1, 60, 5)})["a"]
    assert (flat.pca_dimension, flat.limited_by) == (2, "network")


def test_too_wide_for_memory_is_sketched_with_bounds_that_hold():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 300, generator=g, dtype=torch.float64) * 0.3 ** torch.arange(300) + 3
    exact = feature_rank({"a": x})["a"]
    profile = feature_rank({"a": x}, memory_budget=300 * 8 * 4 * 40)
    layer = profile["a"]
    assert layer.method == "sketch"
    (said,) = profile.facts
    assert said.kind is FactKind.SKETCHED_LAYER
    asked = {"covariance": 8.0 * 300**2, "rows": 8.0 * 400 * 300 + 8.0 * 400**2, "memory": 300 * 8 * 4 * 40.0}
    assert said.values == {"name": "a", "width": 300, "directions": 40, **asked}
    low, high = layer.pca_bounds
    assert low <= exact.pca_dimension <= high
    assert exact.pca_dimension == layer.pca_dimension
    assert layer.stable_rank == pytest.approx(exact.stable_rank, rel=1e-3)
    assert f"[{low}, {high}]" in str(profile)
    with pytest.raises(DataError, match=r'a: 300 dimensions: .*give a larger memory_budget, or reduce="pool"'):
        feature_rank({"a": x}, memory_budget=1000)


def test_what_narrow_layers_leave_goes_to_wide_ones():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 200)).eval()
    x = data(1000, 8)
    wide, narrow = 8 * 200**2, 8 * 8**2
    names = ["0", "1", "2"]
    exact = feature_rank(net, x, cut_points=names, memory_budget=wide + 2 * narrow)
    assert [layer.method for layer in exact] == ["covariance"] * 3
    assert not exact.facts
    short = feature_rank(net, x, cut_points=names, memory_budget=wide + 2 * narrow - 1)
    assert [layer.method for layer in short] == ["covariance", "covariance", "sketch"]


def test_a_wide_layer_gets_its_least_sketch_before_narrow_ones_are_exact():
    net = nn.Sequential(nn.Linear(8, 60), nn.Linear(60, 60), nn.Linear(60, 2000))
    x, names = data(1000, 8), ["0", "1", "2"]
    sketch, exact = 4 * 8 * 8 * 2000, 8 * 60**2
    # an equal share for each of the three would leave the widest without even a sketch of eight directions
    for memory in (sketch + 2 * exact, sketch + 1.2 * exact):
        found = feature_rank(net, x, cut_points=names, memory_budget=memory)
        assert found["2"].method == "sketch"
    with pytest.raises(DataError, match=r"even a sketch of 8 directions 0\.00051 GB of 0\.\d+ GB allowed"):
        feature_rank(net, x, cut_points=names, memory_budget=sketch / 2)


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 0, -1.0, "1e9", "much", True, [4]])
def test_a_memory_budget_is_a_size(budget):
    with pytest.raises(UsageError, match=r"memory_budget (is .*; it must be a finite number|'.*' is not a size)"):
        feature_rank({"a": data(10, 3)}, memory_budget=budget)
    with pytest.raises(UsageError, match=r"memory_budget (is .*; it must be a finite number|'.*' is not a size)"):
        local_feature_rank(nn.Linear(3, 3), data(1, 3), cut_points=[""], memory_budget=budget)


def test_a_memory_budget_is_read_as_everywhere():
    x = data(400, 300)
    found = [feature_rank({"a": x}, memory_budget=size) for size in ("320KB", 320 * 1024, 320 * 1024.0)]
    (said,) = {one.facts for one in found}
    assert said[0]["memory"] == 320 * 1024
    assert feature_rank({"a": x}, memory_budget="4GB")["a"].method == feature_rank({"a": x})["a"].method == "covariance"


def test_sketch_bounds_are_wide_when_its_error_is():
    x = data(400, 100)
    exact = feature_rank({"a": x})["a"]
    layer = feature_rank({"a": x}, memory_budget=100 * 8 * 4 * 10)["a"]
    assert layer.sketch_error > 0
    low, high = layer.pca_bounds
    assert low <= exact.pca_dimension <= high == 100
    assert layer.sketch_error >= float(
        (exact.covariance.singular_values[:10] - layer.covariance.singular_values[:10]).max()
    )


@pytest.mark.parametrize(
    ("width", "samples", "memory", "kind"),
    [
        (100, 1000, 1e9, "CentredMoments"),
        (100, None, 1e9, "CentredMoments"),
        (100, 50, 1e9, "RowStore"),
        (100, 100, 1e9, "CentredMoments"),
        (100, 50, 79_000, "RowStore"),
        (100, 1000, 79_000, "FrequentDirections"),
        (100, None, 79_000, "FrequentDirections"),
        (100, 1000, 80_000, "CentredMoments"),
        (100, 99, 80_000, "CentredMoments"),  # fewer samples than dimensions, but all rows take 118,008 bytes
    ],
)
def test_choice_of_accumulator(width, samples, memory, kind):
    chosen, facts = choose_accumulator("a", width, samples=samples, memory=memory)
    assert type(chosen).__name__ == kind
    assert bool(facts) == (kind == "FrequentDirections")


def test_every_position_counts_as_a_sample_in_the_choice():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1)), torch.randn(4, 3, 8, 8)
    # 256 rows of 6 numbers, though there are but 4 images
    layer = feature_rank(net, x, cut_points=["0"], reduce="positions")["0"]
    assert (layer.samples, layer.width, layer.method) == (256, 6, "covariance")
    assert feature_rank(net, x, cut_points=["0"], reduce="pool")["0"].method == "gram"


def test_a_number_of_samples_that_is_given_counts_more_than_the_length_of_the_data():
    net, x = nn.Sequential(nn.Linear(20, 16)), data(12)
    assert feature_rank(net, x, cut_points=["0"])["0"].method == "gram"
    told = feature_rank(net, x, cut_points=["0"], samples=1000)["0"]
    assert (told.method, told.samples, told.pca_dimension) == ("covariance", 12, 11)


@pytest.mark.parametrize("kind", [CentredMoments, RowStore, FrequentDirections])
def test_the_rounding_of_a_mean_is_no_variance(kind):
    """The float64 mean of three numbers 0.1 is off in its last digit, which leaves a variance of order 1e-33."""
    x = torch.full((3, 4), 0.1, dtype=torch.float64)
    found = kind(4, name="a")
    found.update(x)
    left = found.state()[2].trace() if kind is CentredMoments else found.eigenvalues().sum()
    assert 0 <= float(left) < 1e-30
    layer = layer_features("a", found)
    assert (layer.constant, layer.pca_dimension, layer.pca_bounds, layer.limited_by) == (True, 0, (0, 0), "constant")


def test_the_smallest_sketch_has_eight_directions():
    """A sketch of k directions is given 32·k bytes a dimension."""
    chosen, (said,) = choose_accumulator("a", 300, samples=400, memory=32 * 300 * 8)
    assert type(chosen).__name__ == "FrequentDirections"
    assert (said.kind, said["directions"]) == (FactKind.SKETCHED_LAYER, 8)
    with pytest.raises(DataError, match="even a sketch of 8 directions"):
        choose_accumulator("a", 300, samples=400, memory=32 * 300 * 8 - 1)


def test_reductions_of_a_convolution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
    x = torch.randn(50, 3, 8, 8)
    out = outputs(net, x)[0]
    sizes = {"flatten": (384, 50), "pool": (6, 50), "positions": (6, 3200)}
    for reduce, (width, samples) in sizes.items():
        layer = feature_rank(net, x, cut_points=["0"], reduce=reduce)["0"]
        assert (layer.width, layer.samples, layer.reduce) == (width, samples, reduce)
        twin = feature_rank({"0": out}, reduce=reduce)["0"]
        np.testing.assert_allclose(
            twin.covariance.singular_values, layer.covariance.singular_values, rtol=1e-5, atol=1e-7
        )
    # the convolution's output must not be the one that ReLU overwrote
    assert feature_rank(net, x, cut_points=["0"], reduce="positions")["0"].covariance.sigma_max == pytest.approx(
        float(torch.linalg.eigvalsh(torch.cov(out.movedim(1, -1).reshape(-1, 6).T))[-1]), rel=1e-5
    )


def test_local_dimension_is_that_of_the_noise_through_the_layer():
    net = network()
    x = data(1)
    profile = local_feature_rank(net, x, cut_points=["0", "1", "4"], samples=300, batch_size=77)
    assert profile.kind == "local_feature_rank"
    assert [layer.samples for layer in profile] == [300] * 3
    assert profile["0"].pca_dimension == 16
    assert profile["1"].pca_dimension == 5
    # variance of the first layer: noise² · W Wᵀ
    top = 1e-6 * float(torch.linalg.matrix_norm(net[0].weight, 2)) ** 2
    assert profile["0"].covariance.sigma_max == pytest.approx(top, rel=0.3)
    double = local_feature_rank(net, x, cut_points=["0"], samples=300, noise=2e-3)
    assert double["0"].covariance.sigma_max == pytest.approx(4 * profile["0"].covariance.sigma_max, rel=1e-2)


@pytest.mark.parametrize(
    ("width", "samples"), [pytest.param(9216, 400, marks=pytest.mark.slow), (700, 400), (120, 400)]
)
def test_local_dimension_counts_as_the_published_code_does(width, samples):
    """The threshold is eps32·min(samples, width)·λ_1; with the width it would be another number for wide layers."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Linear(300, width, bias=False)
    with torch.no_grad():
        frame = torch.linalg.qr(torch.randn(width, 300, generator=generator))[0]
        net.weight.copy_(frame[:, : min(300, width)] @ torch.diag(10 ** (-torch.arange(300) / 60.0))[: min(300, width)])
    found = local_feature_rank(net, torch.zeros(1, 300), cut_points=["output"], samples=samples)["output"]
    draw = torch.Generator().manual_seed(0)
    rows = 1e-3 * np.stack([torch.randn(300, generator=draw).numpy() for _ in range(samples)])
    out = (rows.astype(np.float32) @ net.weight.detach().numpy().T).astype(float)
    values = np.linalg.svd(out - out.mean(0), compute_uv=False) ** 2
    counts = [int((values >= 2.0**-23 * n * values[0]).sum()) for n in (min(samples, width), width)]
    low, high = found.pca_bounds
    assert low <= counts[0] <= high
    # an eigenvalue within float32 rounding of the threshold may fall on either side
    assert abs(found.pca_dimension - counts[0]) <= 1
    assert found.counted == min(samples, width)
    assert (counts[0] > counts[1] + 3) == (width > samples)
    assert abs(feature_rank(torch.tensor(out))["features"].pca_dimension - counts[1]) <= 1


class Powers(nn.Module):
    def forward(self, x, scale=1.0):
        return torch.stack([x, scale * x, scale * x**2, torch.ones_like(x)], -1)


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.tensor([0.5], dtype=torch.float64), {"per_sample": "x"}),
        ({"x": torch.tensor([0.5], dtype=torch.float64)}, {"per_sample": ("x",)}),
        (torch.utils.data.TensorDataset(torch.tensor([0.5], dtype=torch.float64)), {}),
    ],
    ids=["tensor", "mapping", "data set"],
)
def test_local_dimension_of_an_input_of_one_number(x, options):
    """The noise is one number a copy: its first order spans one dimension, its second one more."""
    profile = local_feature_rank(Powers(), x, cut_points=["output"], samples=50, noise=0.1, **options)
    step = 0.1 * torch.randn(50, generator=torch.Generator().manual_seed(0)).double().numpy()
    rows = np.stack([0.5 + step, 0.5 + step, (0.5 + step) ** 2, np.ones(50)])
    assert profile["output"].pca_dimension == np.linalg.matrix_rank(np.cov(rows)) == 2


def test_local_dimension_refuses_what_could_be_several_inputs():
    with pytest.raises(DataError, match=r'give x\[None\] for one sample, or per_sample=\("x",\)'):
        local_feature_rank(Powers(), torch.zeros(1))
    with pytest.raises(DataError, match=r"x must be one input with a batch axis of length 1; this has shape \(3,\)"):
        local_feature_rank(Powers(), torch.zeros(3), per_sample="x")
    with pytest.raises(DataError, match=r"this has shape \(\), so give x\[None\]"):
        local_feature_rank(Powers(), torch.tensor(0.5), per_sample="x")


def test_local_dimension_says_what_gets_the_noise():
    x = {"x": torch.rand(1, 3), "scale": torch.rand(3)}
    profile = local_feature_rank(Powers(), x, cut_points="all", samples=9, shared="scale")
    assert Fact(FactKind.NOISED, {"name": "x", "per_sample": (), "shared": ("scale",)}) in profile.facts
    assert "Noise is added to x. All copies share scale." in str(profile)
    assert "Jacobian" not in str(profile)


def test_model_is_left_as_it_came():
    net = network().train()
    net[1].eval()
    feature_rank(net, data(), cut_points=["0"])
    assert [m.training for m in net] == [True, False, True, True, True]
    assert not any(m._forward_hooks for m in net)
    assert torch.backends.mha.get_fastpath_enabled()


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(20, 3), nn.Linear(20, 3)

    def forward(self, x):
        return self.used(x)


def test_bad_input_is_named():
    net, x = network(), data()
    bad = x.clone()
    bad[41, 0] = torch.inf
    with pytest.raises(DataError, match=r"0: sample 41 holds a NaN or infinite"):
        feature_rank(net, bad, cut_points=["0"], batch_size=16)
    with pytest.raises(DataError, match="a: the features are constant: all 9 samples"):
        feature_rank({"a": torch.full((9, 4), 0.1)})
    with pytest.raises(DataError, match="a: the features are constant: all 3 samples"):
        feature_rank({"a": torch.full((3, 4), 0.1)})
    with pytest.raises(DataError, match="a: a covariance needs two samples; it got 1"):
        feature_rank({"a": x[:1]})
    with pytest.raises(CutPointError, match="Sequential has no layer '9'; known are"):
        feature_rank(net, x, cut_points=["9"])
    with pytest.raises(CutPointError, match="'unused' is never called"):
        feature_rank(Unused(), x, cut_points=["unused"])
    with pytest.raises(UsageError, match="a model needs data, and cut_points"):
        feature_rank(net)
    with pytest.raises(UsageError, match="no layers are given"):
        feature_rank({})
    with pytest.raises(UsageError, match="the input is a int"):
        feature_rank(net, 3, cut_points=["0"])
    with pytest.raises(DataError, match="there is no sample"):
        feature_rank(net, [], cut_points=["0"])
    with pytest.raises(UsageError, match="unknown reduce 'mean'"):
        feature_rank(net, x, cut_points=["0"], reduce="mean")
    with pytest.raises(DataError, match=r"batch axis of length 1; this has shape \(400, 20\)"):
        local_feature_rank(net, x, cut_points=["0"])
    with pytest.raises(UsageError, match=r"noise is 0\.0; it must be a finite number above 0"):
        local_feature_rank(net, x[:1], cut_points=["0"], noise=0.0)
    with pytest.raises(UsageError, match="no cut_points are given"):
        local_feature_rank(net, x[:1], cut_points=[])
    with pytest.raises(UsageError, match="no layer 'b' in this profile; known are 'a'"):
        feature_rank({"a": x})["b"]


def test_profile_prints_tabulates_draws_and_turns_to_json(tmp_path):
    profile = feature_rank(network().eval(), data(), cut_points=["0", "1", "4"])
    assert len(profile) == 3
    assert profile.table()["pca_dimension"].tolist() == [16, 5, profile["4"].pca_dimension]
    assert profile.table()["pca_low"].tolist() == profile.table()["pca_high"].tolist()
    plain = json.loads(json.dumps(profile.to_dict()))
    assert plain["schema_version"] == 1
    assert len(plain["layers"][0]["eigenvalues"]) == 16
    lines = str(profile).splitlines()
    assert "PCA dim." in lines[0]
    assert len(lines) == 4
    axes = profile.plot()
    axes.figure.savefig(tmp_path / "profile.png")
    assert axes.get_ylabel() == "dimensions"


def test_cut_points_take_the_forms_of_jacobian_rank():
    net, x = network(), data()
    assert [layer.name for layer in feature_rank(net, x, cut_points="*")] == [name for name, _ in net.named_children()]
    assert [layer.name for layer in feature_rank(net, x, cut_points=["[01]"])] == ["0", "1"]
    assert [layer.name for layer in feature_rank(net, x, cut_points="1")] == ["1"]
    blocks = [layer.name for layer in feature_rank(net, x)]
    assert blocks == list(layers(net, x[:1]).default)
    assert [layer.name for layer in local_feature_rank(net, x[:1], samples=20)] == blocks
    with pytest.raises(CutPointError, match="no called module matches"):
        feature_rank(net, x, cut_points=["z*"])


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-150, 1e-100, 1e100, 1e150, 1e200, 1e300])
@pytest.mark.parametrize("samples", [50, 9])
@pytest.mark.parametrize("memory", [4e9, 16_000.0])
def test_scale_does_not_matter(scale, samples, memory):
    """Covariance, Gram matrix and sketch; a power of two before any square."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, dtype=torch.float64, generator=g) @ torch.randn(5, 60, dtype=torch.float64, generator=g)
    one, other = (feature_rank({"a": x * s}, memory_budget=memory)["a"] for s in (1.0, scale))
    assert one.pca_dimension == other.pca_dimension == 5
    assert one.pca_bounds == other.pca_bounds
    for name in ("effective_rank", "participation_ratio", "stable_rank", "rankme"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-5)  # √eps64 in each zero σ


@pytest.mark.parametrize("size", [1e160, 1e-170])
def test_moments_whose_squares_leave_the_range_are_named(size):
    moments = CentredMoments(6, name="a")
    moments.update(size * torch.randn(50, 6, dtype=torch.float64))
    with pytest.raises(DataError, match=r"a: .*square"):
        feature_rank({"a": moments})


def test_f9_bfloat16_features_with_a_mean_are_limited_by_precision():
    """Rounding at 100 is ¼: it fills all 16 dimensions of features that have 3."""
    g = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(500, 3, generator=g) @ torch.randn(3, 16, generator=g)
    profile = feature_rank({"a": x.bfloat16()})
    low, high = profile["a"].pca_bounds
    assert low <= 3 <= high
    assert profile["a"].limited_by == "precision"
    assert profile.facts == (Fact(FactKind.ROUNDED_LAYER, {"name": "a", "low": low, "high": high}),)
    exact = feature_rank({"a": x.double()})
    assert (exact["a"].pca_bounds, exact["a"].limited_by, exact.facts) == ((3, 3), "network", ())


@pytest.mark.parametrize("mean", [0.0, 1e2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_f9_bounds_hold_the_dimension_before_rounding(dtype, mean):
    """Singular values that fall through the threshold, rounded at several levels."""
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        q = torch.linalg.qr(torch.randn(20, 20, generator=g, dtype=torch.float64)).Q
        x = torch.randn(200, 20, generator=g, dtype=torch.float64) * 10.0 ** torch.linspace(0, -6, 20) @ q.T + mean
        values = np.linalg.eigvalsh(np.cov(x.numpy().T))
        truth = int((values >= EPS32 * 20 * values[-1]).sum())
        low, high = feature_rank({"a": x.to(dtype)})["a"].pca_bounds
        assert low <= truth <= high


def test_f9_pooled_half_precision_maps_carry_the_rounding_of_their_entries():
    """Entries of ±100 cancel in the mean over positions, and their rounding does not."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=g) @ torch.randn(2, 8, generator=g)
    maps = x[:, :, None, None] + 100 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    layer = feature_rank({"a": maps.bfloat16()}, reduce="pool")["a"]
    assert layer.pca_bounds[0] <= 2 <= layer.pca_bounds[1]
    assert layer.limited_by == "precision"


def test_f9_what_half_precision_makes_constant_may_have_varied():
    x = 1e4 + torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    layer = feature_rank({"good": x, "a": x.bfloat16()})["a"]
    assert (layer.pca_dimension, layer.limited_by, layer.pca_bounds) == (0, "constant", (0, 6))


@pytest.mark.parametrize("kind", [CentredMoments, RowStore, FrequentDirections])
def test_f10_complex_features_are_refused(kind):
    x = torch.complex(torch.randn(200, 6), torch.randn(200, 6))
    with pytest.raises(DataError, match="a: the features are complex64; give real ones"):
        feature_rank({"a": x})
    with pytest.raises(DataError, match="a: the features are complex64"):
        kind(6, name="a").update(x)
    beside = feature_rank({"a": torch.view_as_real(x).flatten(1)})["a"]
    assert beside.pca_dimension == 12


def test_f11_a_constant_layer_among_others():
    x = data()
    profile = feature_rank({"good": x, "flat": torch.full((400, 7), 0.1), "wide": x.repeat(1, 3)})
    assert [layer.pca_dimension for layer in profile] == [20, 0, 20]
    flat = profile["flat"]
    assert (flat.limited_by, flat.pca_bounds, flat.effective_rank, flat.stable_rank) == ("constant", (0, 0), 0, 0)
    assert profile.facts == (Fact(FactKind.CONSTANT_LAYER, {"name": "flat", "samples": 400}),)
    assert "constant" in str(profile)
    profile.plot()
    assert len(profile.table()) == 3


def test_f11_a_constant_layer_of_a_model():
    net = nn.Sequential(nn.Linear(20, 6), nn.Linear(6, 5), nn.Linear(5, 3))
    with torch.no_grad():
        net[1].weight.zero_()
    found = feature_rank(net, data(), cut_points=["0", "1"], batch_size=37)
    assert [layer.pca_dimension for layer in found] == [6, 0]
    with pytest.raises(DataError, match="1: the features are constant: all 400 samples"):
        feature_rank(net, data(), cut_points=["1", "2"])


def test_f11_features_that_vary_little_about_a_large_mean_are_not_constant():
    x = 1e14 + torch.randn(100, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not feature_rank({"a": x})["a"].constant
    assert not feature_rank({"a": x}, memory_budget=8.0 * 4 * 50)["a"].constant


def test_f20_rankme_is_not_centred():
    """The digits' 64 pixels, against NumPy on the matrix as it is and centred."""
    from sklearn.datasets import load_digits

    x = load_digits().data
    layer = feature_rank({"digits": x})["digits"]
    for found, matrix, eps in ((layer.rankme, x, 1e-7), (layer.effective_rank, x - x.mean(0), 0.0)):
        sigma = np.linalg.svd(matrix, compute_uv=False)
        share = sigma / sigma.sum() + eps
        share = share[share > 1e-12]
        assert found == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)


def test_f20_rankme_of_the_digits_network():
    from rankscope.demo.digits_network import digits_network, digits_split

    layer = feature_rank(digits_network(), digits_split().held_out_images, cut_points="flatten")["flatten"]
    assert (round(layer.rankme, 2), round(layer.effective_rank, 2)) == (20.30, 23.17)


@pytest.mark.parametrize("samples", [300, 30])
def test_f20_rankme_under_a_large_mean(samples):
    """Gram matrix, covariance and moments against NumPy's singular values of the matrix as it is."""
    x = torch.randn(samples, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e3
    sigma = np.linalg.svd(x.numpy(), compute_uv=False)
    share = sigma / sigma.sum() + 1e-7
    truth = np.exp(-(share * np.log(share)).sum())
    moments = CentredMoments(40)
    moments.update(x)
    for source in (x, moments):
        assert feature_rank({"a": source})["a"].rankme == pytest.approx(truth, rel=1e-6)
    sketched = feature_rank({"a": x}, memory_budget=8.0 * 4 * 40 * 8)["a"]
    assert sketched.method == "sketch"
    assert sketched.rankme == pytest.approx(truth, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_measured_as_numbers(dtype):
    x = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) * 200).to(torch.uint8)
    x = x > 100 if dtype is torch.bool else x.to(dtype)
    values = np.linalg.eigvalsh(np.cov(x.double().numpy().T))
    for n in (60, 4):
        layer = feature_rank({"a": x[:n]})["a"]
        values = np.linalg.eigvalsh(np.cov(x[:n].double().numpy().T))
        assert layer.pca_dimension == int((values >= EPS32 * 5 * values[-1]).sum())


@pytest.mark.parametrize("reduce", ["flatten", "pool", "positions"])
def test_one_number_for_each_sample_is_one_feature(reduce):
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(20, 6), nn.Linear(6, 1)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x))).squeeze(-1)

    model, x = Regression().eval(), data(50)
    found = {layer.name: layer for layer in feature_rank(model, x, reduce=reduce).layers}
    assert list(found) == ["first", "last", "output"]
    with torch.no_grad():
        variance = float(model(x).double().var())
    # the outputs are float32 of about 1, their variance in float64: 50 roundings of 2⁻²⁴ at most
    assert abs(found["output"].trace - variance) < 50 * EPS32
    assert (found["output"].width, found["output"].pca_dimension) == (1, 1)
    assert local_feature_rank(model, x[:1], samples=10)["output"].width == 1


def test_a_vector_for_the_whole_batch_is_left_out():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 8)

        def forward(self, x):
            return self.layer(x).mean(0)

    found = feature_rank(Mean().eval(), data(8))  # as many samples as features: the shapes alone do not tell
    assert [layer.name for layer in found.layers] == ["layer"]
