"""Every standard component against its closed form and against reverse mode and numpy, one row at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

import rankscope as rs
from rankscope.probes import Component, ProbeResult

SHAPE, N, BATCH, SEED, CONTEXT = (8, 4, 4), 128, 100, 3, 7
# name → (exact rank, singular values well above an ε); None: read off the input or the mask in the test
EXPECTED: dict[str, tuple[int | None, int | None]] = {
    "conv3x3": (128, 128),
    "fc": (128, 128),
    "relu": (None, None),
    "gelu": (128, 128),
    "silu": (128, 128),
    "maxpool": (32, 32),
    "avgpool": (32, 32),
    "batchnorm_train": (128, 128),
    "batchnorm_eval": (128, 128),
    "instancenorm": (120, 112),  # 8 channels
    "layernorm": (127, 126),
    "groupnorm": (126, 124),  # 2 groups of 4 channels
    "rmsnorm": (128, 127),
    "attention": (None, None),
    "dropout": (None, None),
    "upsample": (128, 128),
    "downsample": (64, 64),
}


def setting() -> tuple[Tensor, Tensor]:
    """The random layer (n × n) and the features (batch, *shape) that the seed stands for, drawn again here."""
    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(N, N, generator=generator).double() / math.sqrt(N)
    noise = torch.randn(BATCH, N, generator=generator).double()
    return weight, (noise @ weight.T).view(BATCH, *SHAPE)


def component(name: str) -> Component:
    part = rs.standard_components(SHAPE, seed=SEED)[name]
    part.module.double()  # here, not inside a transform: it would leave the transform's tensors in the module
    return part


def outputs(part: Component, features: Tensor) -> Tensor:
    """All outputs at once; training BatchNorm written out, since it would update its running statistics."""
    module = part.module
    if part.name == "batchnorm_train":
        mean, var = features.mean((0, 2, 3)), features.var((0, 2, 3), correction=0)
        scaled = (features - mean.view(1, -1, 1, 1)) / (var + 1e-5).sqrt().view(1, -1, 1, 1)
        return scaled * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)
    return features * mask(features) if part.name == "dropout" else module(features)


def mask(features: Tensor) -> Tensor:
    """p = 0.5: kept values are doubled."""
    torch.manual_seed(SEED)
    return 2.0 * (torch.rand(features.shape) >= 0.5).double()


def own_jacobian(part: Component, features: Tensor) -> Tensor:
    """The component's Jacobian at the first sample, (outputs, n)."""
    x, others = features[:1], features[1:CONTEXT]

    def f(flat: Tensor) -> Tensor:
        point = flat.view(1, *SHAPE)
        batch = torch.cat([point, others]) if part.name == "batchnorm_train" else point
        return outputs(part, batch)[0].flatten()

    if part.name == "dropout":
        return torch.diag(mask(x).flatten())
    return jacrev(f)(x.flatten()).detach()


@pytest.fixture(scope="module")
def probed() -> rs.ProbeResults:
    return rs.probe_all(input_shape=SHAPE, samples=BATCH, seed=SEED, context=CONTEXT, device="cpu", progress=False)


def test_the_standard_set(probed: rs.ProbeResults) -> None:
    assert [r.name for r in probed] == list(EXPECTED) == list(rs.standard_components(SHAPE))


@pytest.mark.parametrize("name", EXPECTED)
def test_against_reverse_mode_and_numpy(name: str, probed: rs.ProbeResults) -> None:
    result, part = probed[name], component(name)
    weight, features = setting()
    sigma = np.linalg.svd((own_jacobian(part, features) @ weight).numpy(), compute_uv=False)
    found = result.jacobian_after[0].singular_values
    # both are float64 products of about n terms and backward-stable SVDs: 1e-13·σ₁ with room
    np.testing.assert_allclose(found, sigma, rtol=0, atol=1e-12 * sigma[0])
    assert result.rank_after.value == int((sigma >= 2.0**-23 * len(sigma) * sigma[0]).sum())
    assert result.rank_after.lower <= result.rank_after.value <= result.rank_after.upper
    assert result.rank_after.certified

    rows = outputs(part, features).detach().flatten(1).numpy()
    values = np.clip(np.linalg.eigvalsh(np.cov(rows.T))[::-1], 0, None)
    np.testing.assert_allclose(result.features_after.singular_values, values, rtol=0, atol=1e-12 * values[0])
    assert result.dimension_after.value == int((values >= 2.0**-23 * len(values) * values[0]).sum())
    assert result.dimension_after.certified
    assert result.output_shape == tuple(outputs(part, features).shape[1:])


@pytest.mark.parametrize("name", [n for n in EXPECTED if n != "attention"])
def test_expectations(name: str, probed: rs.ProbeResults) -> None:
    result, part = probed[name], component(name)
    _, features = setting()
    exact, numerical = EXPECTED[name]
    if name == "relu":
        exact = numerical = int((features[0] > 0).sum())
    if name == "dropout":
        exact = numerical = int((own_jacobian(part, features) != 0).sum())
    assert result.expected_exact == (exact,)
    assert result.expected_numerical == (numerical,)
    # what the record claims, held against the component's own Jacobian: zero is below 1e-13, an ε's direction near 1e-5
    sigma = np.linalg.svd(own_jacobian(part, features).numpy(), compute_uv=False)
    assert int((sigma > 1e-12 * sigma[0]).sum()) == exact
    assert int((sigma > 1e-4 * sigma[0]).sum()) == numerical
    # the random layer is invertible, so the bound on the exact rank of the two reaches it
    assert result.exact_rank_at_least == exact
    assert result.rank_after.value <= exact
    assert result.expectation


def test_behind_an_orthogonal_layer_the_component_is_seen_alone() -> None:
    def after(name: str) -> ProbeResult:
        return rs.probe(name, input_shape=SHAPE, samples=20, front="orthogonal", tolerance=1e-3, device="cpu")

    assert after("layernorm").rank_before.value == N
    assert after("layernorm").rank_after.value == N - 2
    assert after("rmsnorm").rank_after.value == N - 1
    assert after("batchnorm_eval").rank_after.value == N
    scale = rs.standard_components(SHAPE)["batchnorm_eval"].module
    assert isinstance(scale, nn.BatchNorm2d)
    assert scale.running_var is not None
    slopes = (scale.weight / (scale.running_var + 1e-5).sqrt()).detach().double().repeat_interleave(16)
    found = after("batchnorm_eval").jacobian_after[0].singular_values
    # the layer is orthogonal up to the rounding of its float64 QR, the slopes carry float32's
    np.testing.assert_allclose(found, slopes.sort(descending=True).values.numpy(), rtol=1e-6)


def test_attention_carries_no_expectation(probed: rs.ProbeResults) -> None:
    row = probed["attention"].summary()
    assert row["expected_exact"] is None
    assert row["expected_numerical"] is None
    assert "unknown" in str(probed)


def test_weights_do_not_depend_on_the_company() -> None:
    alone = rs.standard_components(SHAPE, seed=5, only=["fc"])["fc"].module.state_dict()
    among = rs.standard_components(SHAPE, seed=5)["fc"].module.state_dict()
    other = rs.standard_components(SHAPE, seed=6, only=["fc"])["fc"].module.state_dict()
    assert all(torch.equal(alone[k], among[k]) for k in alone)
    assert not torch.equal(alone["linear.weight"], other["linear.weight"])
    # N(0, 1/fan-in): 128² entries give the standard deviation to 0.6%
    assert float(alone["linear.weight"].std()) == pytest.approx(N**-0.5, rel=0.03)


def test_no_component_has_the_weights_of_another_seeds_neighbour() -> None:
    """Four layers carry a scale for each of 8 channels; each has its own under each of 20 neighbouring seeds."""
    names = ["batchnorm_train", "batchnorm_eval", "instancenorm", "groupnorm"]
    scales = [
        tuple(part.module.weight.tolist())
        for seed in range(20)
        for part in rs.standard_components(SHAPE, seed=seed, only=names).values()
    ]
    assert len(set(scales)) == 20 * len(names)


def test_normalisation_layers_are_not_the_identity() -> None:
    norm = rs.standard_components((64, 4, 4))["batchnorm_eval"].module
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for values in (norm.weight, norm.running_var):
        assert 0.5 <= float(values.min()) < 0.7 < 1.3 < float(values.max()) <= 1.5
    for values in (norm.bias, norm.running_mean):  # 64 draws give a standard deviation to about 9%
        assert float(values.std()) == pytest.approx(0.1, rel=0.4)


def test_building_components_draws_nothing_from_the_caller() -> None:
    before = torch.get_rng_state()
    rs.standard_components(SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (6, 4, 4),
            r"input_shape is \(6, 4, 4\), but groupnorm needs channels divisible by 4; .* are conv3x3, .* and d",
        ),
        ((8, 3, 4), "maxpool and avgpool need an even height and width; .* are conv3x3, fc, relu, gelu, silu, batch"),
        ((8, 4, 3), "maxpool and avgpool need an even height and width"),
        ((8, 4), r"conv3x3, .* need \(channels, height, width\); .* are fc, relu, .*, layernorm, rmsnorm and dropout$"),
        ((0, 4, 4), "give the sizes of one sample"),
    ],
)
def test_shapes_that_the_set_cannot_take(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        rs.standard_components(shape)


def test_one_value_a_channel() -> None:
    with pytest.raises(rs.UsageError, match="instancenorm needs more than one value per channel"):
        rs.standard_components((4, 1, 1), only=["instancenorm"])
    # the derivative of (a − b)/√((a − b)²/4 + ε): 4ε/(…)^{3/2}, which no usual tolerance calls a direction
    assert rs.standard_components((4, 1, 1), only=["batchnorm_train"])["batchnorm_train"].expected.numerical is None


# the ranks come from reverse mode, a singular value counts above 1e-3 of the largest (the ε shrink theirs by 1e-5)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("relu", (20,)),
        ("fc", (5, 3)),
        ("layernorm", (20,)),
        ("rmsnorm", (7, 3)),
        ("batchnorm_eval", (3, 5, 3)),
        ("instancenorm", (3, 5, 3)),
        ("upsample", (3, 5, 3)),
        ("downsample", (3, 4, 6)),
        ("maxpool", (3, 4, 6)),
        ("groupnorm", (4, 3, 5)),
    ],
)
def test_a_component_needs_only_what_it_looks_at(name: str, shape: tuple[int, ...]) -> None:
    samples = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1)).double()
    result = rs.probe_all([name], inputs=samples, tolerance=1e-3, device="cpu", progress=False)[name]
    module = rs.standard_components(shape, only=[name])[name].module.double()
    jacobian = np.asarray(jacrev(lambda x: module(x[None])[0])(samples[0]).detach()).reshape(-1, samples[0].numel())
    sigma = np.linalg.svd(jacobian, compute_uv=False)
    assert result.rank_after.value == int((sigma > 1e-3 * sigma[0]).sum()) == result.expected_numerical[0]


def test_an_odd_size_has_no_expected_rank_behind_a_stride() -> None:
    module = rs.standard_components((3, 3, 3), only=["downsample"])["downsample"]
    jacobian = jacrev(module.module.double())(torch.zeros(1, 3, 3, 3).double()).detach().reshape(-1, 27)
    assert np.linalg.matrix_rank(jacobian.numpy()) != 27 // 2
    assert module.expected.exact is None


def test_attention_of_channels_that_no_power_of_two_divides() -> None:
    module = rs.standard_components((100, 1, 2), only=["attention"])["attention"].module
    assert module(torch.zeros(2, 100, 1, 2)).shape == (2, 100, 1, 2)


def test_the_shape_of_given_samples_is_not_called_an_option() -> None:
    with pytest.raises(rs.UsageError, match=r"samples of inputs have shape \(3, 4, 4\), but groupnorm needs channels"):
        rs.probe_all(inputs=torch.randn(4, 3, 4, 4), device="cpu")


def test_unknown_component() -> None:
    with pytest.raises(rs.UsageError, match="no standard component 'layer_norm'; did you mean 'layernorm'"):
        rs.standard_components(SHAPE, only=["layer_norm"])
    with pytest.raises(
        rs.UsageError, match=r"'Softmax'; did you mean 'attention'\? The standard set is conv3x3, .*, downs"
    ):
        rs.standard_components(SHAPE, only=["Softmax"])
    with pytest.raises(rs.UsageError, match=r"'zzz'; the standard set is conv3x3, fc, .*, downsample$"):
        rs.standard_components(SHAPE, only=["zzz"])
