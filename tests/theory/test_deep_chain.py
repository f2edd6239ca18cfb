"""The deep-chain bench: against direct products of the same weights, the stopping rule, and what prevents collapse."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from rankscope import DataError, UsageError
from rankscope.spectra import EPS32, Tolerance
from rankscope.theory import ChainProfile, deep_chain, residual_chain_rank
from rankscope.theory._chain_spectra import covariance_spectrum, jacobian_spectrum


class Recorded:
    """An init that keeps the weights it returned."""

    def __init__(self, width: int, std: float) -> None:
        self.width, self.std, self.weights = width, std, []

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        self.weights.append(self.std * rng.standard_normal((self.width, self.width)))
        return self.weights[-1]


def paper_rank(sigma: np.ndarray, width: int) -> int:
    return int((sigma >= EPS32 * width * sigma[0]).sum())


@pytest.mark.parametrize("residual", [False, 0.3])
def test_linear_chain_matches_direct_products(residual: bool | float):
    width, depth, samples = 30, 15, 80
    init = Recorded(width, 0.4)
    found = deep_chain(width=width, depth=depth, init=init, residual=residual, samples=samples, seeds=3)
    # the inputs are drawn first, from the same generator
    inputs = np.random.default_rng(3).standard_normal((samples, width))
    product = np.eye(width)
    for step, weights in zip(found.runs[0].steps, init.weights, strict=True):
        product = (residual * weights + np.eye(width) if residual else weights) @ product
        sigma = np.linalg.svd(product, compute_uv=False)
        assert step.jacobian.rank("paper").value == paper_rank(sigma, width)
        np.testing.assert_allclose(
            step.jacobian.singular_values[:10] / step.jacobian.sigma_max, sigma[:10] / sigma[0], rtol=1e-7
        )
        assert step.log_sigma_max == pytest.approx(math.log(sigma[0]), abs=1e-10)
        eigenvalues = np.sort(np.linalg.eigvalsh(np.cov((inputs @ product.T).T)))[::-1]
        assert step.features.rank("paper").value == paper_rank(eigenvalues, width)
        np.testing.assert_allclose(
            step.features.singular_values[:5] / step.features.sigma_max, eigenvalues[:5] / eigenvalues[0], rtol=1e-9
        )


@pytest.mark.parametrize("activation", [None, "relu"])
def test_fewer_inputs_than_units(activation: str | None):
    width, inputs, depth, samples = 20, 8, 6, 60
    init = Recorded(width, 0.3)
    found = deep_chain(
        width=width, input_width=inputs, depth=depth, init=init, samples=samples, seeds=1, activation=activation
    )
    rng = np.random.default_rng(1)
    features, point = rng.standard_normal((samples, inputs)), rng.standard_normal(inputs)
    product = np.eye(inputs)
    for step, weights in zip(found.runs[0].steps, init.weights, strict=True):
        layer = weights[:, : len(product)]  # the other units are zero before the first layer
        features, point, product = features @ layer.T, layer @ point, layer @ product
        if activation == "relu":
            product = (point > 0)[:, None] * product
            features, point = np.maximum(features, 0), np.maximum(point, 0)
        sigma = np.linalg.svd(product, compute_uv=False)
        assert step.jacobian.shape == (width, inputs)
        assert step.jacobian.rank("paper").value == paper_rank(sigma, inputs)
        np.testing.assert_allclose(
            step.jacobian.singular_values[:3] / step.jacobian.sigma_max, sigma[:3] / sigma[0], rtol=1e-9
        )
        eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
        assert step.features.rank("paper").value == paper_rank(eigenvalues, width)
    assert found.to_dict()["input_width"] == inputs
    assert deep_chain(width=4, depth=1, samples=9).to_dict()["input_width"] == 4
    named = deep_chain(width=width, input_width=inputs, depth=2, samples=samples)
    assert named.prediction.startswith("none: the input has fewer dimensions")
    assert np.isnan(named.predicted[0]).all()
    assert "width 20 behind 8 inputs" in str(named)


@pytest.mark.parametrize("inputs", [0, -1, 2.5, 21])
def test_an_input_width_out_of_range(inputs: float):
    with pytest.raises(UsageError, match=f"input_width is {inputs}"):
        deep_chain(width=20, input_width=inputs, depth=1, samples=9)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "tanh"])
@pytest.mark.parametrize("normalisation", [None, "layernorm", "batchnorm"])
@pytest.mark.parametrize("residual", [False, 0.5])
def test_blocks_match_autograd(activation: str | None, normalisation: str | None, residual: bool | float):
    width, depth, samples = 8, 3, 40
    init = Recorded(width, 0.5)
    found = deep_chain(
        width=width, depth=depth, init=init, activation=activation, normalisation=normalisation, residual=residual,
        samples=samples,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    batch = torch.from_numpy(rng.standard_normal((samples, width)))
    linear = activation is None and normalisation is None
    point = torch.zeros(width, dtype=torch.float64) if linear else torch.from_numpy(rng.standard_normal(width))
    acts = {None: lambda x: x, "relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}
    weights = [torch.from_numpy(w) for w in init.weights]
    statistics: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(x: torch.Tensor, measure: bool) -> torch.Tensor:
        for layer, w in enumerate(weights):
            y = x @ w.T
            if normalisation == "layernorm":
                y = torch.nn.functional.layer_norm(y, (width,))
            elif normalisation == "batchnorm":
                if measure:
                    statistics.append((y.mean(0), y.var(0, correction=0)))
                mean, var = statistics[layer]
                y = (y - mean) / torch.sqrt(var + 1e-5)
            y = acts[activation](y)
            x = x + residual * y if residual else y
        return x

    features = forward(batch, measure=True)
    jacobian = torch.func.jacrev(lambda x: forward(x, measure=False))(point).numpy()
    step = found.runs[0].steps[-1]
    sigma = np.linalg.svd(jacobian, compute_uv=False)
    assert step.jacobian.rank("paper").value == paper_rank(sigma, width)
    np.testing.assert_allclose(step.jacobian.singular_values / step.jacobian.sigma_max, sigma / sigma[0], atol=1e-6)
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features.numpy().T)))[::-1]
    np.testing.assert_allclose(
        step.features.singular_values / step.features.sigma_max, eigenvalues / eigenvalues[0], atol=1e-10
    )
    if activation != "relu":
        assert step.log_sigma_max == pytest.approx(math.log(sigma[0]), abs=1e-8)


def test_follows_the_gaussian_prediction_whatever_the_scale():
    runs = [
        deep_chain(width=80, depth=20, init=init, samples=2000, seeds=(0, 1))
        for init in ("normal(0.02)", "kaiming_normal", "xavier_normal")
    ]
    for found in runs:
        jacobian, features = found.predicted
        assert np.abs(found.jacobian_ranks.mean(0) - jacobian).max() < 4
        assert np.abs(found.feature_dimensions.mean(0) - features).max() < 5
        assert found.prediction == "Gaussian chain"
    # the same draws at another scale have the same ranks
    assert np.abs(runs[0].jacobian_ranks - runs[1].jacobian_ranks).max() <= 1


def test_svd_below_the_grams_reach():
    # the Gram matrix does not resolve 1e-10; the SVD of the product does
    init = Recorded(12, 1.0)
    found = deep_chain(width=12, depth=12, init=init, tolerance=1e-10, samples=20)
    sigma = np.linalg.svd(np.linalg.multi_dot(init.weights[::-1]), compute_uv=False)
    assert found.jacobian_ranks[0, -1] == (sigma >= 1e-10 * sigma[0]).sum()


def test_float32_stop_is_the_papers():
    width, depth = 20, 60
    init = Recorded(width, 0.02)
    found = deep_chain(width=width, depth=depth, init=init, float32_stop=True, samples=50)
    product, expected = np.eye(width), None
    for layer, weights in enumerate(init.weights, 1):
        product = weights @ product
        if np.abs(product).max() < EPS32:
            expected = layer
            break
    assert expected is not None
    assert found.runs[0].stopped_at == expected
    assert len(found.runs[0].steps) == expected - 1
    assert np.isnan(found.jacobian_ranks[0, expected - 1 :]).all()
    assert np.isfinite(found.jacobian_ranks[0, : expected - 1]).all()
    assert f"stopped at layer {expected}" in str(found)
    assert len(found.table()) == expected - 1
    assert found.plot().get_xlim()[0] <= 1
    assert found.to_dict()["jacobian_ranks"][0][-1] is None
    # at a scale where the chain does not shrink, nothing stops it
    assert (
        deep_chain(width=20, depth=30, init="kaiming_normal", float32_stop=True, samples=50).runs[0].stopped_at is None
    )


def test_a_stop_at_once_leaves_nothing_to_plot():
    found = deep_chain(width=5, depth=3, init="normal(1e-9)", float32_stop=True, samples=10)
    assert found.runs[0].stopped_at == 1
    str(found)
    json.dumps(found.to_dict(), allow_nan=False)
    assert len(found.table()) == 0
    with pytest.raises(DataError, match="no depth was measured before the float32 stop"):
        found.plot()


def test_remedies():
    common = {"width": 60, "depth": 40, "samples": 300, "init": "xavier_normal"}
    last = {
        "plain": deep_chain(**common),
        "residual": deep_chain(**common, residual=1 / math.sqrt(40)),
        "wide branch": deep_chain(**common, residual=1.0),
        "relu": deep_chain(**{**common, "init": "kaiming_normal"}, activation="relu"),
        "tanh": deep_chain(**common, activation="tanh"),
        "batchnorm": deep_chain(**common, normalisation="batchnorm", activation="relu"),
    }
    rank = {name: found.jacobian_ranks[0, -1] for name, found in last.items()}
    assert rank["residual"] == 60
    assert rank["plain"] < rank["wide branch"] < 60
    assert rank["relu"] < rank["plain"] < 40
    assert last["residual"].prediction == "residual chain"
    assert last["residual"].predicted[0][-1] == 60
    assert last["relu"].prediction == "Gaussian chain of half the width (ReLU)"
    assert abs(last["relu"].predicted[0][-1] - rank["relu"]) < 4
    assert "comparison" in last["tanh"].prediction


def test_orthogonal_init_prevents_collapse():
    def orthogonal(rng: np.random.Generator) -> np.ndarray:
        return np.linalg.qr(rng.standard_normal((40, 40)))[0]

    found = deep_chain(width=40, depth=100, init=orthogonal, samples=500)
    assert found.init == "orthogonal"
    assert set(found.jacobian_ranks[0]) == {40}
    assert found.prediction.startswith("none")
    assert np.isnan(found.predicted[0]).all()
    assert "orthogonal" in str(found)
    found.plot()


def test_layernorm_loses_one_dimension():
    found = deep_chain(width=20, depth=1, normalisation="layernorm", samples=200, init="xavier_normal")
    assert found.feature_dimensions[0, 0] == 19
    assert found.jacobian_ranks[0, 0] in (18, 19)  # one exactly, and one more by the epsilon


def test_float32_and_seeds():
    single = deep_chain(width=30, depth=5, samples=100, dtype="float32", seeds=[0, 5])
    double = deep_chain(width=30, depth=5, samples=100, seeds=[0, 5])
    assert single.dtype == "float32"
    assert np.abs(single.jacobian_ranks - double.jacobian_ranks).max() <= 1
    again = deep_chain(width=30, depth=5, samples=100, seeds=5)
    assert again.jacobian_ranks[0].tolist() == double.jacobian_ranks[1].tolist()
    state = torch.random.get_rng_state()
    deep_chain(width=5, depth=2, samples=10)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_zero_layer_has_rank_zero():
    found = deep_chain(width=6, depth=2, init=lambda rng: np.zeros((6, 6)), samples=10)
    assert found.jacobian_ranks.tolist() == [[0, 0]]
    assert found.feature_dimensions.tolist() == [[0, 0]]
    assert found.to_dict()["log_sigma_max"] == [[None, None]]
    str(found)


@pytest.fixture(scope="module")
def profile() -> ChainProfile:
    return deep_chain(width=30, depth=25, samples=300, seeds=(0, 1, 2))


def test_table(profile: ChainProfile):
    table = profile.table()
    assert list(table.columns[:4]) == ["seed", "depth", "jacobian_rank", "feature_dimension"]
    assert len(table) == 75
    row = table[(table.seed == 2) & (table.depth == 25)].iloc[0]
    assert row.jacobian_rank == profile.jacobian_ranks[2, 24]
    assert row.predicted_jacobian_rank == profile.predicted[0][24]


def test_to_dict(profile: ChainProfile):
    plain = json.loads(json.dumps(profile.to_dict(), allow_nan=False))
    assert plain["kind"] == "chain_profile"
    assert plain["schema_version"] == 1
    assert plain["seeds"] == [0, 1, 2]
    assert plain["jacobian_ranks"] == profile.jacobian_ranks.tolist()
    assert "spectra" not in plain
    full = profile.to_dict(spectra=True)
    assert len(full["spectra"][0][4]["jacobian"]) == 30


def test_print(profile: ChainProfile):
    lines = str(profile).splitlines()
    assert "3 seeds" in lines[0]
    assert lines[1].split()[0] == "depth"
    assert [int(line.split()[0]) for line in lines[2:13]][-1] == 25
    assert max(map(len, lines)) < 120


def test_plot(profile: ChainProfile):
    ax = profile.plot()
    assert isinstance(ax.figure, Figure)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "Jacobian rank" in labels
    assert {"theory, rank", "theory, features"} <= set(labels)  # every line style is explained
    measured = [line for line in ax.lines if line.get_label() in ("Jacobian rank", "feature dimension (PCA)")]
    assert [line.get_color() for line in measured] == ["#808080", "#009E73"]  # as in every figure with these two
    assert not any(line.get_clip_on() for line in measured)  # else the axes cut the first and last marker
    few = deep_chain(width=6, depth=3, samples=20).plot().get_xticks()  # 1.00, 1.25 … unless asked for whole layers
    assert all(tick == int(tick) for tick in few)
    own = Figure().add_subplot()
    assert profile.plot(ax=own) is own


@pytest.mark.parametrize("rank", [59, 30])
def test_dense_singular_weights_are_told(rank: int):
    """No zero row or column: the last pivots of their LU factors are rounding, some 1e-16 of the first, not zero."""

    def dense(rng: np.random.Generator) -> np.ndarray:
        weights = rng.standard_normal((60, rank)) @ rng.standard_normal((rank, 60))
        assert np.linalg.matrix_rank(weights) == rank
        return weights

    found = deep_chain(width=60, depth=4, samples=20, init=dense)
    assert found.runs[0].singular == tuple((k, rank) for k in range(1, 5))


@pytest.mark.parametrize(("width", "samples"), [(40, 12), (40, 300)])
def test_the_bound_of_the_features_eigenvalues_holds(width: int, samples: int):
    """Squares of the factor's singular values, which an SVD has to 1e-16·σ_1·σ_k: far better than the solver."""
    factor = np.random.default_rng(3).standard_normal((width, samples)) * 10.0 ** -np.linspace(0, 9, width)[:, None]
    found = covariance_spectrum(torch.from_numpy(factor), width, torch.float64)
    exact = np.zeros(width)
    exact[: min(width, samples)] = np.linalg.svd(factor, compute_uv=False) ** 2
    wrong = np.abs(found.singular_values - exact / exact.sum()).max()
    assert 0 < wrong <= found.error_bound < 1e-13


def test_singular_weights_are_told():
    def projection(rng: np.random.Generator) -> np.ndarray:
        weights = rng.standard_normal((6, 6))
        weights[2] = weights[1]
        return weights

    found = deep_chain(width=6, depth=5, samples=20, init=projection)
    assert found.runs[0].singular == tuple((k, 5) for k in range(1, 6))
    text = str(found)
    assert "seed 0: the weights of layer 1 are singular to float64 precision, of rank 5, and rank drops there" in text
    assert "seed 0: so are those of 2 more layers" in text
    assert found.to_dict()["singular_layers"] == [[[k, 5] for k in range(1, 6)]]
    assert "rank drops there" not in str(deep_chain(width=6, depth=2, samples=20, init=projection, residual=True))
    zero = deep_chain(width=4, depth=1, samples=20, init=lambda rng: np.zeros((4, 4)))
    assert zero.runs[0].singular == ((1, 0),)
    regular = deep_chain(width=6, depth=5, samples=20, init=lambda rng: 1e-9 * rng.standard_normal((6, 6)))
    assert regular.runs[0].singular == ()


def test_a_long_title_stays_inside_the_figure():
    found = deep_chain(
        width=6, depth=2, samples=20, init="kaiming_normal", activation="gelu", normalisation="batchnorm", residual=0.1
    )
    ax = found.plot()
    box = ax.title.get_window_extent(ax.figure.canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= ax.figure.bbox.width


def test_rises_are_flagged():
    # a first layer that squashes and a second that undoes it: the numerical rank rises, and stays as measured
    squash = np.diag([1.0, 1.0, 1e-8])
    layers = [squash, np.linalg.inv(squash)]
    found = deep_chain(width=3, depth=2, init=lambda rng: layers.pop(0), samples=20)
    assert found.jacobian_ranks.tolist() == [[2, 3]]
    assert found.rises == ((0, 2),)
    assert "rose at layer 2 (seed 0)" in str(found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, UsageError, "width is 0"),
        ({"depth": 0}, UsageError, "depth is 0"),
        ({"depth": 2.5}, UsageError, "depth is 2.5"),
        ({"samples": 1}, UsageError, "samples is 1; a covariance needs at least 2"),
        ({"init": "kaiming_norml"}, UsageError, "unknown init 'kaiming_norml'.*kaiming_normal"),
        ({"init": "normal(x)"}, UsageError, "unknown init"),
        ({"init": "normal(-1)"}, UsageError, "standard deviation of init.* is -1.0"),
        ({"init": 3}, UsageError, "init is a int"),
        ({"init": lambda rng: np.eye(3)}, DataError, r"shape \(3, 3\) for layer 1 .*but the width is 4"),
        ({"init": lambda rng: np.full((4, 4), np.nan)}, DataError, "layer 1 .*16 NaN or infinite"),
        ({"init": lambda rng: None}, DataError, "what init returned for layer 1"),
        ({"activation": "rleu"}, UsageError, "unknown activation 'rleu'.*relu"),
        ({"normalisation": "layer"}, UsageError, "unknown normalisation 'layer'"),
        ({"residual": 0.0}, UsageError, "residual is 0.0"),
        ({"residual": math.nan}, UsageError, "residual is nan"),
        ({"residual": "yes"}, UsageError, "residual is 'yes'"),
        ({"seeds": []}, UsageError, r"seeds is \[\]"),
        ({"seeds": -1}, UsageError, "seeds is -1"),
        ({"seeds": [True]}, UsageError, "seeds is True"),
        ({"seeds": 1.5}, UsageError, "seeds is 1.5"),
        ({"dtype": "float16"}, UsageError, "'float16' cannot be used to measure"),
        ({"tolerance": 1e-14}, UsageError, "resolves σ/σ_1 down to 1e-12"),
        ({"tolerance": Tolerance(atol=1.0)}, UsageError, "absolute part"),
        (
            {"init": "normal(1e200)", "depth": 3, "residual": 1.0, "activation": "gelu"},
            DataError,
            "features overflow float64 at layer 2",
        ),
    ],
)
def test_bad_input(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        deep_chain(**{"width": 4, "depth": 2, "samples": 10, **options})


def test_one_curve_where_both_predictions_are_one():
    for tolerance, names in (("reference", {"theory"}), ("paper", {"theory, rank", "theory, features"})):
        ax = deep_chain(width=30, depth=6, samples=60, tolerance=tolerance).plot()
        labels = {line.get_label() for line in ax.get_lines()}
        assert {label for label in labels if label.startswith("theory")} == names


@pytest.mark.parametrize(
    ("width", "depth", "residual"), [(200, 20, 1.0), (100, 60, 0.3), (60, 100, 1.0), (20, 60, 2.0), (60, 40, -0.7)]
)
def test_follows_the_residual_law(width: int, depth: int, residual: float):
    """At width 200, t = 1 and depth 20 the exponents alone said 156 and 104 where 139 and 79 are measured."""
    found = deep_chain(width=width, depth=depth, init="xavier_normal", residual=residual, seeds=(0, 1, 2))
    jacobian, features = found.predicted
    assert found.in_range
    assert "within 3 dimensions" in str(found)
    # what the record states; measured, 2.4 for either at worst
    assert np.abs(found.jacobian_ranks.mean(0) - jacobian).max() < 3
    assert np.abs(found.feature_dimensions.mean(0) - features).max() < 3


def test_a_narrow_chain_is_out_of_range():
    found = deep_chain(width=6, depth=3, init="xavier_normal", residual=1.0, samples=30)
    assert not found.in_range
    assert "OUTSIDE the range" in str(found)
    assert found.to_dict()["prediction_in_range"] is False
    assert "limit law, rank" in {line.get_label() for line in found.plot().lines}
    assert not deep_chain(width=6, depth=1, samples=30, init=lambda rng: np.eye(6)).in_range


def test_a_skip_is_in_the_curve_or_there_is_none():
    """The plain chain's curve, 114.7 of 200, stood beside 200 measured dimensions of a residual tanh chain."""
    common = {"width": 60, "depth": 12, "samples": 100}
    found = deep_chain(**common, activation="tanh", residual=0.2)
    assert found.prediction == "residual chain without the activation, for comparison: no law of this block"
    assert found.prediction_range == ""
    assert not found.in_range
    expected = [residual_chain_rank(60, 0.2 * 0.02 * math.sqrt(60), k) for k in range(1, 13)]
    assert found.predicted[0].tolist() == pytest.approx(expected)
    assert "linear residual chain" in {line.get_label() for line in found.plot().lines}
    for normalisation in ("layernorm", "batchnorm"):
        for activation in (None, "tanh"):
            found = deep_chain(**common, activation=activation, normalisation=normalisation, residual=0.2)
            assert found.prediction.startswith("none: a normalised branch")
            assert np.isnan(found.predicted).all()
            assert not any(line.get_color() == "black" for line in found.plot().lines)


def test_no_curve_strikes_the_legend():
    for options in ({"activation": "gelu", "normalisation": "batchnorm"}, {"float32_stop": True}):
        ax = deep_chain(width=30, depth=40, samples=60, **options).plot()
        ax.figure.draw_without_rendering()
        legend, axes = ax.get_legend().get_window_extent(), ax.get_window_extent()
        assert legend.y1 < ax.xaxis.label.get_window_extent().y0 < axes.y0
        figure = ax.figure.bbox
        assert min(legend.x0 - figure.x0, figure.x1 - legend.x1, legend.y0 - figure.y0) >= 0
    assert "float32 stop" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert not ax.texts


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("std", [1e-290, 1e-170, 1e-165, 1e-3, 1e160, 1e290])
def test_no_scale_under_or_overflows(std: float, activation: str | None):
    """At 1e-170 the squares in the norm underflowed, and rank 0 stood beside a prediction of 30."""
    common = {"width": 30, "depth": 8, "samples": 100, "activation": activation}
    found, plain = (deep_chain(**common, init=f"normal({value})") for value in (std, 1.0))
    assert found.jacobian_ranks.tolist() == plain.jacobian_ranks.tolist()
    assert found.feature_dimensions.tolist() == plain.feature_dimensions.tolist()
    logs = [step.log_sigma_max - step.depth * math.log(std) for step in found.runs[0].steps]
    np.testing.assert_allclose(logs, [step.log_sigma_max for step in plain.runs[0].steps], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "normal(1e-300)"}, r"weights of layer 1 .* reach \de-300, which float64 cannot compute with"),
        ({"init": "normal(1e-170)", "dtype": "float32"}, r"reach \de-170, which float32 cannot"),
        ({"init": "normal(1e100)", "dtype": "float32"}, r"reach \de\+100, which float32 cannot"),
        ({"init": "normal(1e-170)", "activation": "tanh"}, "features underflow float64 at layer 2 .* raise the init"),
        ({"init": "normal(1e-30)", "activation": "gelu"}, "features underflow float64 at layer 10"),
        ({"init": "normal(1e-170)", "normalisation": "layernorm"}, "features underflow float64 at layer 2"),
        ({"init": "normal(1e30)", "activation": "gelu"}, "features overflow float64 at layer 11"),
        ({"init": "normal(1e200)", "normalisation": "layernorm"}, "features overflow float64 at layer 1"),
        ({"init": "normal(1e200)", "normalisation": "batchnorm", "residual": 1.0}, "overflow float64 at layer 1"),
    ],
)
def test_what_cannot_be_rescaled_is_refused(options: dict, message: str):
    with pytest.raises(DataError, match=message):
        deep_chain(**{"width": 30, "depth": 20, "samples": 100, **options})


def test_features_that_grow_without_overflow_keep_their_dimension():
    """Their covariance overflows at 1e155, which raised a LinAlgError."""
    for std in (1e20, 1e-20):
        common = {"width": 30, "depth": 12, "samples": 100, "activation": "gelu"}
        found = deep_chain(**common, init=f"normal({std})")
        assert found.feature_dimensions[0, -1] >= 1
    small = deep_chain(**common, init="normal(1e-20)")
    linear = deep_chain(width=30, depth=12, samples=100, init="normal(1e-20)")
    # GELU is x/2 there: dimensions like those of the linear chain, from other draws
    assert abs(small.feature_dimensions[0, -1] - linear.feature_dimensions[0, -1]) <= 4


def test_zero_weights_are_no_underflow():
    common = {"width": 6, "depth": 3, "samples": 30}
    for activation in (None, "tanh", "gelu", "relu"):
        found = deep_chain(**common, activation=activation, init=lambda rng: np.zeros((6, 6)))
        assert found.feature_dimensions.tolist() == [[0, 0, 0]]
    swap = np.diag([1.0, 1, 1, 0, 0, 0])
    layers = iter([swap, np.eye(6) - swap, np.eye(6)])
    found = deep_chain(**common, activation="tanh", init=lambda rng: next(layers))
    assert found.feature_dimensions.tolist() == [[3, 0, 0]]


def test_a_small_branch_vanishes_beside_its_skip():
    found = deep_chain(width=10, depth=4, samples=30, activation="tanh", residual=1.0, init="normal(1e-200)")
    assert found.jacobian_ranks.tolist() == [[10] * 4]


def test_the_error_names_the_nearest_init_as_a_question():
    with pytest.raises(UsageError, match=r"unknown init 'kaiming' .*; did you mean 'kaiming_normal'\?$"):
        deep_chain(width=3, depth=1, init="kaiming")


def test_a_dtype_is_one_of_torch_too():
    named, own = (deep_chain(width=4, depth=3, samples=8, dtype=dtype) for dtype in ("float32", torch.float32))
    assert named.dtype == own.dtype == "float32"
    assert [s.log_sigma_max for s in named.runs[0].steps] == [s.log_sigma_max for s in own.runs[0].steps]


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_the_rank_of_a_jacobian_does_not_depend_on_its_scale(scale: float) -> None:
    """Its squares are no numbers in float64."""
    matrix = np.random.default_rng(0).standard_normal((20, 12))
    found = jacobian_spectrum(torch.from_numpy(matrix * scale), 1e-5)
    np.testing.assert_allclose(found.singular_values / scale, np.linalg.svd(matrix)[1], rtol=1e-12)
    assert found.rank("paper").lower == 12
