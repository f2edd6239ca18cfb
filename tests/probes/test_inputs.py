"""A component at the user's own samples. The oracle is float64 reverse mode and NumPy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind

X = torch.randn(9, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh()).eval()


class Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return X[index], index


@pytest.mark.parametrize(
    "inputs",
    [X, X.numpy(), X.double(), Pairs(), torch.utils.data.DataLoader(Pairs(), batch_size=4), {"input": X}],
    ids=["tensor", "array", "float64", "data set", "loader", "mapping"],
)
def test_the_jacobian_is_that_of_the_component_at_the_samples(inputs: Any) -> None:
    net = block()
    found = rs.probe(net, inputs=inputs, jacobian_points=2, device="cpu")
    double = block().double()
    for point, spectrum in enumerate(found.jacobian_after):
        rows = torch.autograd.functional.jacobian(double, X[point : point + 1].double()).reshape(27, 18)
        np.testing.assert_allclose(spectrum.singular_values[:18], torch.linalg.svdvals(rows), rtol=1e-9, atol=1e-12)
    before = np.linalg.eigvalsh(np.cov(X.flatten(1).double().numpy().T))[::-1]
    after = np.linalg.eigvalsh(np.cov(double(X.double()).detach().flatten(1).numpy().T))[::-1]
    np.testing.assert_allclose(found.features_before.singular_values[:8], before[:8], rtol=1e-9)
    np.testing.assert_allclose(found.features_after.singular_values[:8], after[:8], rtol=1e-9)
    assert (found.input_shape, found.samples, found.front) == ((2, 3, 3), 9, "none")
    assert found.rank_before.value == 18
    assert "9 samples of 2×3×3 as given" in str(rs.ProbeResults((found,), 0.0, None))
    assert type(found).load is not None


def test_named_components_and_a_limit() -> None:
    x = torch.randn(9, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    found = rs.probe("relu", inputs=x, limit=4, device="cpu")
    assert found.samples == 4
    assert found.jacobian_after[0].rank("paper").value == int((x[0] > 0).sum())


def test_training_mode_at_given_samples() -> None:
    norm = nn.BatchNorm2d(2)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    found = rs.probe(norm, inputs=X, training=True, device="cpu")
    assert {fact.kind for fact in found.facts} == {FactKind.SAMPLES_COUPLED}
    assert norm.training
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class Powers(nn.Module):
    """Four functions of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.stack([x, x**2, torch.sin(x), torch.cos(x)], -1)))


NUMBERS = torch.linspace(-1, 1, 9, dtype=torch.float64)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (NUMBERS, {"per_sample": "x"}),
        ({"x": NUMBERS}, {"per_sample": "x"}),
        (torch.utils.data.TensorDataset(NUMBERS), {}),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(NUMBERS), batch_size=4), {}),
    ],
    ids=["tensor", "mapping", "data set", "loader"],
)
def test_samples_of_one_number(inputs: Any, options: Any) -> None:
    torch.manual_seed(0)
    net = Powers().double().eval()
    found = rs.probe(net, inputs=inputs, jacobian_points=3, device="cpu", **options)
    for x, spectrum in zip(NUMBERS, found.jacobian_after, strict=False):
        length = torch.autograd.functional.jacobian(net, x[None])[0].norm()  # one column: its length is σ₁
        np.testing.assert_allclose(spectrum.singular_values, [float(length)], rtol=1e-12)
    outputs = net(NUMBERS).detach().numpy()
    np.testing.assert_allclose(
        found.features_after.singular_values, np.linalg.eigvalsh(np.cov(outputs.T))[::-1], rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose(found.features_before.singular_values, [np.var(NUMBERS.numpy(), ddof=1)], rtol=1e-12)
    assert (found.input_shape, found.samples) == ((), 9)
    assert "9 samples of one number as given" in str(rs.ProbeResults((found,), 0.0, None))


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_components_that_return_one_number(name: str) -> None:
    """A matrix of outputs has one column, of standard components as of others."""
    x = torch.utils.data.TensorDataset(NUMBERS)
    found = rs.probe(nn.Tanh() if name == "tanh" else name, inputs=x, device="cpu")
    own = (torch.tanh if name == "tanh" else torch.nn.functional.gelu)(NUMBERS)
    np.testing.assert_allclose(found.features_after.singular_values, [np.var(own.numpy(), ddof=1)], rtol=1e-12)
    assert found.rank_after.value == 1


@pytest.mark.parametrize("mask", [torch.tensor([1.0, 0, 2]), [torch.tensor([1.0, 0, 2])], np.array([1.0, 0, 2])])
def test_what_all_samples_share_is_held_fixed(mask: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor, *, mask: Any) -> Tensor:
            return torch.tanh(self.fc(x) * (mask[0] if isinstance(mask, list) else mask))

    torch.manual_seed(0)
    net = Scaled()
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    found = rs.probe(net, inputs={"x": x, "mask": mask}, shared=("mask",), device="cpu")
    assert net.training
    assert dict(net.named_buffers()) == {}
    double = copy.deepcopy(net).double()
    scale = torch.tensor([1.0, 0, 2], dtype=torch.float64)
    rows = torch.autograd.functional.jacobian(lambda one: torch.tanh(double.fc(one) * scale), x[0].double())
    np.testing.assert_allclose(
        found.jacobian_after[0].singular_values, torch.linalg.svdvals(rows), rtol=1e-9, atol=1e-12
    )
    assert found.rank_after.value == 2
    assert found.name == "Scaled"
    assert Fact(FactKind.DIFFERENTIATED, {"name": "x", "per_sample": (), "shared": ("mask",)}) in found.facts


class Rotation(nn.Module):
    """Turns pairs of numbers in the plane, as rotary position embeddings do; a turn of 0 deletes a pair."""

    def __init__(self, turns: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("own", turns)

    def forward(self, x: Tensor, turns: Tensor | None = None) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous())
        return torch.view_as_real(pairs * (self.own if turns is None else turns)).flatten(1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shared", [False, True])
def test_complex_numbers_keep_their_imaginary_parts(shared: bool, dtype: str) -> None:
    turns = torch.tensor([1, 1j, 0, 0.6 + 0.8j])
    x = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    if shared:
        found = rs.probe(Rotation(), inputs={"x": x, "turns": turns}, shared=("turns",), dtype=dtype, device="cpu")
    else:
        found = rs.probe(Rotation(turns), inputs=x, dtype=dtype, device="cpu")
    assert found.rank_after.value == 6
    # six singular values |turn|; |0.6 + 0.8j| = 1 up to the rounding of float32
    np.testing.assert_allclose(found.jacobian_after[0].singular_values, [1] * 6 + [0] * 2, rtol=1e-6, atol=1e-6)


def test_complex_numbers_that_the_precision_rounds_are_refused() -> None:
    turns = torch.tensor([1, 1j, 0, 0.6 + 0.8j], dtype=torch.complex128)
    with pytest.raises(rs.UsageError, match=r"'turns' holds complex128 values that float32 rounds"):
        rs.probe(
            Rotation(),
            inputs={"x": torch.randn(7, 8), "turns": turns},
            shared=("turns",),
            dtype="float32",
            device="cpu",
        )


NORMAL = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("scale", [1e134, 1e160, 1e300, 1e-140, 1e-170, 1e-300])
def test_the_dimension_does_not_depend_on_the_scale(scale: float) -> None:
    """Squares of these inputs are no numbers in float64."""
    x = NORMAL @ torch.diag(torch.logspace(0, -5, 12, dtype=torch.float64))  # some eigenvalues are below the threshold
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T))
    expected = int((eigenvalues >= np.finfo(np.float32).eps * 12 * eigenvalues[-1]).sum())
    assert 1 < expected < 12
    found = rs.probe(nn.Identity(), inputs=x * scale, device="cpu").dimension_before
    assert (found.lower, found.value, found.upper) == (expected,) * 3


@pytest.mark.parametrize(("scale", "expected"), [(1e-170, 0), (1e170, 12)])
def test_an_absolute_tolerance_at_any_scale(scale: float, expected: int) -> None:
    """Eigenvalues of about 1e-340 are all below 1e-200, those of about 1e340 all above."""
    found = rs.probe(nn.Identity(), inputs=NORMAL * scale, tolerance=rs.Tolerance(atol=1e-200), device="cpu")
    assert (found.dimension_before.lower, found.dimension_before.upper) == (expected, expected)
    with pytest.raises(rs.UsageError, match="atol of 1e-300 is not compared with eigenvalues"):
        _ = found.with_tolerance(rs.Tolerance(atol=1e-300)).dimension_before


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e5 / 7])
def test_constant_inputs_have_no_dimension(value: float) -> None:
    """The mean of 41 equal numbers is off by a rounding error, and that is no feature."""
    found = rs.probe(nn.Identity(), inputs=torch.full((41, 12), value, dtype=torch.float64), device="cpu")
    assert (found.dimension_before.value, found.dimension_before.upper) == (0, 0)


@pytest.mark.parametrize(
    "component", [nn.Identity(), nn.LayerNorm(12), nn.Linear(12, 9, bias=False)], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize(("spread", "mean"), [(1e-3, 1e6), (1e-50, 0.0), (1e-2, 1e4), (1.0, 0.0)])
def test_bounds_hold_for_the_inputs_that_were_given(component: nn.Module, spread: float, mean: float) -> None:
    """A conversion to float32 may leave a constant of the inputs, and no dimension of a constant is certain."""
    x = NORMAL * spread + mean
    found = rs.probe(component, inputs=x, dtype="float32", device="cpu")
    with torch.no_grad():
        outputs = copy.deepcopy(component).double()(x)
    for values, dimension in ((x, found.dimension_before), (outputs, found.dimension_after)):
        values = values - values[0]  # exact beside a large mean
        values = values / values.abs().max()  # else the covariance may underflow
        eigenvalues = np.linalg.eigvalsh(np.cov(values.numpy().T))
        expected = int((eigenvalues >= np.finfo(np.float32).eps * len(eigenvalues) * eigenvalues[-1]).sum())
        assert dimension.lower <= expected <= dimension.upper
    if spread == 1.0:
        assert found.dimension_before.lower == 12


def test_the_jacobian_bound_holds_at_the_inputs_that_were_given() -> None:
    """2^24 + 1 becomes 2^24 in float32, where tanh(x − 2^24) has slope 1 and not 0.42."""

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x - 2.0**24)

    x = torch.full((3, 4), 2.0**24 + 1, dtype=torch.float64)
    found = rs.probe(Shifted(), inputs=x, dtype="float32", device="cpu", jacobian_points=1).jacobian_after[0]
    true = 1 - np.tanh(1.0) ** 2
    assert np.abs(found.singular_values - true).max() > 0.5
    assert not np.abs(found.singular_values - true).max() > found.error_bound  # NaN: no bound is known


@pytest.mark.parametrize(
    ("component", "options", "error", "message"),
    [
        (block(), {"inputs": X, "samples": 5}, rs.UsageError, "inputs have their own samples; leave it out"),
        (block(), {"inputs": X, "input_shape": (2, 3, 3)}, rs.UsageError, "have their own input_shape"),
        (block(), {"inputs": X, "front": "orthogonal"}, rs.UsageError, "given inputs pass through no random layer"),
        (block(), {"inputs": X[:1]}, rs.UsageError, "needs two samples; inputs hold 1"),
        (block(), {"limit": 3}, rs.UsageError, "limit belongs to inputs; give inputs"),
        (block(), {"inputs": {"foo": X}}, rs.UsageError, "'foo', which forward does not take"),
        (block(), {"inputs": X * torch.nan}, rs.DataError, "NaN"),
        (nn.Tanh(), {"inputs": X.double() * 1e39, "dtype": "float32"}, rs.DataError, "which is infinite in float32"),
        (
            block(),
            {"inputs": X[:, :1]},
            rs.ModelError,
            r"failed on features of shape .* give inputs of a shape that it",
        ),
        (
            Masked(),
            {"inputs": {"x": X, "mask": X}, "differentiate": "x", "per_sample": "mask"},
            rs.UsageError,
            "a component has one input, and each sample of inputs has its own mask beside x; wrap the component",
        ),
        (
            Masked(),
            {"inputs": [({"x": x, "mask": x}, 0) for x in X], "differentiate": "x"},
            rs.UsageError,
            "each sample of inputs has its own mask beside x",
        ),
        (
            Masked(),
            {
                "inputs": {"x": X, "mask": torch.full((1,), 0.1, dtype=torch.float64)},
                "shared": "mask",
                "dtype": "float32",
            },
            rs.UsageError,
            "'mask' holds float64 values that float32 rounds; choose dtype=\"float64\"",
        ),
        (nn.Tanh(), {"inputs": NUMBERS}, rs.DataError, r"per_sample=\(\"input\",\) if each sample is one number"),
        ("layernorm", {"inputs": torch.utils.data.TensorDataset(NUMBERS)}, rs.UsageError, "needs samples of at least"),
        (nn.Tanh(), {"inputs": [(torch.zeros(3), 0), (torch.zeros(4), 0)]}, rs.DataError, "samples of one shape"),
        (block(), {"inputs": X, "jacobian_points": 10}, rs.UsageError, "points are some of the samples"),
    ],
)
def test_what_cannot_be_meant_is_refused(component: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        rs.probe(component, device="cpu", **options)
