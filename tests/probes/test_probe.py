"""The probe itself: spectra by every path, certificates, methods, the user's module, and what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from networks import BackwardCube, ReverseCube
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.linear.linear_map import LinearMap
from rankscope.probes import _bench
from rankscope.probes._bench import covariance_spectrum, matrix_spectrum
from rankscope.probes._component import Prepared
from rankscope.spectra import gram_square_error

SMALL: dict[str, Any] = {"input_shape": (4, 4, 4), "samples": 24, "device": "cpu"}


def probe(component: Any, **options: Any) -> rs.ProbeResult:
    return rs.probe(component, **{**SMALL, **options})


# spectra


@pytest.mark.parametrize("shape", [(40, 25), (25, 40), (30, 30)])
def test_matrix_spectrum_by_gram_and_by_svd(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    k = min(shape)
    prescribed = np.geomspace(1, 1e-4, k)
    u, v = (np.linalg.qr(rng.standard_normal((side, k)))[0] for side in shape)
    transposed = torch.from_numpy((u * prescribed) @ v.T)
    by_svd = matrix_spectrum(transposed)
    assert by_svd.square_error == 0
    monkeypatch.setattr(_bench, "_SVD_LIMIT", 8)
    by_gram = matrix_spectrum(transposed)
    assert by_gram.square_error > 0
    assert by_gram.shape == by_svd.shape == shape[::-1]
    np.testing.assert_allclose(by_svd.singular_values, prescribed, rtol=1e-10)
    # σ² is off by about 1e-16·σ₁², so σ = 1e-4 by 1e-8 relative
    np.testing.assert_allclose(by_gram.singular_values, prescribed, rtol=1e-6)
    total, top = (prescribed**2).sum(), prescribed[0]
    assert by_gram.square_error == pytest.approx(gram_square_error(max(shape), k, total, top), rel=1e-6, abs=0)
    errors = np.abs(by_gram.singular_values**2 - prescribed**2)
    assert errors.max() <= by_gram.square_error


@pytest.mark.parametrize("scale", [1e-170, 1e170])
@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_the_gram_matrix_of_a_jacobian_of_any_scale(
    shape: tuple[int, int], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bench, "_SVD_LIMIT", 8)
    monkeypatch.setattr(_bench, "_ROWS", 7)  # the last block is shorter
    matrix = np.random.default_rng(0).standard_normal(shape)
    found = matrix_spectrum(torch.from_numpy(matrix * scale))
    # a square root of float64 squares: 1e-16·σ₁²/σ² at most, and these have σ₁/σ below 10
    np.testing.assert_allclose(found.singular_values / scale, np.linalg.svd(matrix)[1], rtol=1e-12)
    assert found.rank(1e-3).lower == 12


@pytest.mark.parametrize(("samples", "d"), [(30, 12), (12, 30), (13, 13)])
def test_covariance_spectrum(samples: int, d: int) -> None:
    values = torch.from_numpy(np.random.default_rng(1).standard_normal((samples, d)) * np.geomspace(1, 1e-2, d) + 3)
    expected = np.linalg.eigvalsh(np.cov(values.numpy().T))[::-1]
    found = covariance_spectrum(values)
    np.testing.assert_allclose(found.singular_values, np.clip(expected, 0, None), atol=1e-14 * 100)
    assert np.abs(found.singular_values - np.clip(expected, 0, None)).max() <= found.error_bound
    assert (found.singular_values[samples - 1 :] == 0).all()  # centring leaves no more, exactly
    assert found.rank(1e-9).value == min(samples - 1, d)
    assert covariance_spectrum(values, relative_error=1e-3).error_bound > found.error_bound


def test_the_gram_path_gives_the_same_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["conv3x3", "relu", "avgpool", "upsample", "layernorm"]
    plain = rs.probe_all(names, **SMALL, progress=False)
    monkeypatch.setattr(_bench, "_SVD_LIMIT", 4)
    gram = rs.probe_all(names, **SMALL, progress=False)
    for name in names:
        assert gram[name].rank_after.value == plain[name].rank_after.value
        assert gram[name].rank_after.certified
    # the Gram matrix turns an exact zero into about 1e-8·σ₁: its own error says that this counts for nothing
    assert gram["layernorm"].exact_rank_at_least <= plain["layernorm"].exact_rank_at_least == 63


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = probe("gelu").jacobian_after[0].singular_values
    monkeypatch.setitem(_bench._CHUNK_BYTES, "cpu", 8 * 64 * 8 * 3)  # three tangents: 64 is no multiple
    seen = []
    push = LinearMap.push
    monkeypatch.setattr(LinearMap, "push", lambda j, t, rows=None: seen.append(len(t)) or push(j, t, rows))
    np.testing.assert_allclose(probe("gelu").jacobian_after[0].singular_values, plain, rtol=1e-11)
    assert seen.count(3) == 21


# certificates


def test_the_certificate_covers_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    single, double = probe("conv3x3", dtype="float32"), probe("conv3x3")
    error = np.abs(single.jacobian_after[0].singular_values - double.jacobian_after[0].singular_values).max()
    bound = single.jacobian_after[0].error_bound
    # Weyl: no singular value moves by more than ‖E‖₂; the bound is 8·max‖E·g‖, at most about 8·√n·‖E‖₂ above it
    assert error <= bound <= 1e-3
    assert double.jacobian_after[0].error_bound < 1e-6 * bound
    assert single.dtype == single.rank_after.dtype == "float32"
    features = np.abs(single.features_after.singular_values - double.features_after.singular_values).max()
    assert features <= single.features_after.error_bound
    # 10 probes, each wrong by a factor of ten with probability 1/10
    assert (
        "certificate: float32 against float64 on 10 Gaussian tangents; each bound fails with probability 1e-10"
        in str(double)
    )


class OnlyDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64:
            raise TypeError("float64 alone")
        return x * 2


class IntoHalf(nn.Module):
    """A cast that no argument of an operator asks for, so that it cannot be left out."""

    def forward(self, x: Tensor) -> Tensor:
        narrow = torch.tensor([0.0] * x.numel(), dtype=torch.float16).view(x.shape)
        return narrow.copy_(x).to(x.dtype) * 2


def test_a_component_of_one_precision_is_compared_with_shorter_numbers() -> None:
    """What takes float64 alone is run on float64 numbers of float32's length: 2·W in the end, known from NumPy."""
    found = probe(OnlyDouble())
    assert found.rank_after.certified
    sigma, bound = found.jacobian_after[0].singular_values, found.jacobian_after[0].error_bound
    np.testing.assert_allclose(sigma, 2 * found.jacobian_before.singular_values, atol=max(bound, 1e-14), rtol=0)
    assert bound < 1e-10


def test_without_a_second_precision_nothing_is_certified() -> None:
    found = probe(IntoHalf())
    assert not found.rank_after.certified
    assert not found.summary()["certified"]
    assert not found.dimension_after.certified
    assert found.certificate == Fact(FactKind.NOT_IN_BOTH)
    assert (found.rank_after.lower, found.rank_after.upper) == (0, 64)
    assert "[?]" in str(found)
    both = rs.probe_all({"half": IntoHalf(), "relu": nn.ReLU()}, input_shape=(4, 4, 4), samples=80, device="cpu")
    assert "certificate of half: none" in str(both)
    assert "certificate of relu: float32 against float64" in str(both)


def test_the_sample_limit() -> None:
    found = probe("batchnorm_eval", samples=20)
    assert found.sample_limit == found.dimension_after.value == 19
    assert found.at_sample_limit
    assert "20 samples cannot show more than 19" in str(found)
    # behind max pooling 16 dimensions are left, which 23 do not limit; of those before it the table speaks too
    pooled = probe("maxpool")
    assert (pooled.dimension_before.value, pooled.dimension_after.value) == (23, 16)
    assert "24 samples cannot show more than 23" in str(pooled)
    many = probe("batchnorm_eval", samples=200, front="orthogonal")
    assert many.dimension_after.value == 64
    assert not many.at_sample_limit
    assert "cannot show" not in str(many)


def test_an_expected_rank_is_told_once_where_both_are_the_same() -> None:
    lines = str(rs.probe_all(["conv3x3", "layernorm", "relu", "attention"], **SMALL, progress=False)).splitlines()
    last = {line.split()[0]: line for line in lines if line}
    assert last["conv3x3"].endswith(" 64")
    assert last["layernorm"].endswith(" 63 (62)")
    assert last["attention"].endswith(" unknown")
    assert "(" not in last["relu"]  # a count taken at the point


# ways of differentiating


class Reverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ReverseCube.apply(x)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3 if torch.isfinite(x.sum()).item() else x


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


class Wrong(BackwardCube):
    """The cube, whose backward is that of the square."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 2 * x


class WronglyDerived(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Wrong.apply(x)


def test_fallbacks_agree() -> None:
    plain, reverse, looped = probe(Cube()), probe(Reverse()), probe(DataDependent())
    assert plain.method == Fact(FactKind.LINEARISED, {"name": "vmap(jvp)", "difference": 0.0})
    assert reverse.method == Fact(FactKind.PUSHED, {"name": "double backward"})
    expected = plain.jacobian_after[0].singular_values
    for other in (reverse, looped):
        np.testing.assert_allclose(other.jacobian_after[0].singular_values, expected, rtol=1e-10)
        assert other.rank_after.certified


def test_a_wrong_backward_is_not_certified() -> None:
    """Both precisions agree on the wrong derivative; the function itself does not."""
    found = probe(WronglyDerived())
    assert found.certificate == Fact(FactKind.IN_DOUBT)
    assert not found.rank_after.certified
    assert FactKind.CUSTOM_BACKWARD in {fact.kind for fact in found.facts}
    assert "in doubt" in str(found)


def test_a_detached_factor_is_said() -> None:
    """x·sg(x): autograd says diag(x), the function 2·diag(x)."""
    found = probe(Returns(lambda x: x * x.detach()).eval(), front="orthogonal")
    (fact,) = found.facts
    assert fact.kind is FactKind.LEAVES_COMPUTATION
    assert fact.caution


# modes


class CentreBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_coupled_samples_are_found_and_said() -> None:
    found = probe(CentreBatch().eval(), front="orthogonal", context=5)
    assert found.facts == (Fact(FactKind.SAMPLES_COUPLED, {"context": 5}),)
    assert "batch of 5 " in str(found)
    # the others are fixed: the sample's own derivative is I − I/5
    np.testing.assert_allclose(found.jacobian_after[0].singular_values, 0.8, rtol=1e-10)
    train = probe("batchnorm_train")
    assert train.facts[0]["context"] == 24  # context=32 is cut to the batch
    assert train.method["name"] == "vmap(jvp)"  # running statistics, updated in place, would forbid it
    assert not probe("batchnorm_eval").facts


def test_random_masks_are_said_and_repeat() -> None:
    found = probe(nn.Dropout(0.25), training=True)
    assert found.facts == (Fact(FactKind.RANDOM_MASKS),)
    again = probe(nn.Dropout(0.25), training=True)
    np.testing.assert_array_equal(found.jacobian_after[0].singular_values, again.jacobian_after[0].singular_values)
    assert probe(nn.Dropout(0.25), training=True, seed=1).rank_after.value != 64
    inside = probe(nn.Sequential(nn.Identity(), nn.Dropout(0.25)), training=True)
    assert inside.rank_after.value == found.rank_after.value
    single = probe(nn.Dropout(0.25), training=True, dtype="float32")
    assert single.rank_after.value == found.rank_after.value  # the same mask
    assert single.rank_after.certified
    assert probe(nn.Dropout2d(0.5), training=True).facts == (Fact(FactKind.RANDOM_MASKS),)
    own = probe(Returns(lambda x: x * (torch.rand(x.shape, dtype=x.dtype) > 0.5)), front="orthogonal")
    # two precisions would draw two masks: float64 numbers of float32's length stand in, with one and the same
    sigma = own.jacobian_after[0].singular_values
    assert own.rank_after.certified
    assert set(sigma.round(12)) == {0.0, 1.0}
    assert own.rank_after.value == int(sigma.sum().round())
    single = probe(Returns(lambda x: x * (torch.rand(x.shape, dtype=x.dtype) > 0.5)), dtype="float32")
    assert not single.rank_after.certified  # there they do: their difference is no rounding error
    assert not single.dimension_after.certified
    assert single.certificate == Fact(FactKind.IN_DOUBT)
    still = probe(nn.Dropout(0.25).eval())
    assert not still.facts
    assert still.rank_after.value == still.rank_before.value


def test_a_component_in_training_mode_is_measured_in_evaluation_mode() -> None:
    component = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4))
    found = probe(component, front="orthogonal")
    assert found.facts == (Fact(FactKind.TRAINING_MODE),)
    assert component.training
    assert component[0].training
    np.testing.assert_allclose(found.jacobian_after[0].singular_values, (1 + 1e-5) ** -0.5, rtol=1e-9)
    assert not probe(component.eval(), front="orthogonal").facts
    assert not component.training
    trained = probe(component, front="orthogonal", training=True)
    assert {fact.kind for fact in trained.facts} >= {FactKind.SAMPLES_COUPLED}
    with pytest.raises(rs.UsageError, match="training is for a component of your own"):
        probe("dropout", training=True)
    with pytest.raises(rs.UsageError, match="training is 'no'; give True or False"):
        probe(nn.ReLU(), training="no")


def test_masks_differ_between_the_parts_of_a_batch() -> None:
    ones = torch.ones(1024, 8)
    out = Prepared(nn.Dropout(0.5), "dropout", ones, seed=0).all_outputs(ones)
    assert set(out.flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(out[:512], out[512:])


def test_several_points_give_the_largest_rank() -> None:
    found = probe("relu", jacobian_points=6, tolerance=1e-9)
    ranks = [s.rank(1e-9).value for s in found.jacobian_after]
    assert len(set(ranks)) > 1
    assert found.rank_after.value == max(ranks) == max(v or 0 for v in found.expected_exact)
    assert found.summary()["rank_min"] == min(ranks)


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True))
    module[0].eval()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    module[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    random.seed(4)
    np.random.seed(4)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    probe(module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(v.dtype == before[k].dtype for k, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert torch.equal(module[0].weight.grad, torch.ones_like(module[0].weight))
    assert not module[0].bias.requires_grad
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    assert torch.is_grad_enabled()


def test_an_in_place_component_does_not_change_the_features() -> None:
    found = rs.probe_all({"a": nn.ReLU(inplace=True), "b": nn.Identity()}, **SMALL, progress=False)
    alone = rs.probe_all({"b": nn.Identity()}, **SMALL, progress=False)
    assert found["b"].rank_after.value == found["b"].rank_before.value
    np.testing.assert_array_equal(found["b"].features_after.singular_values, alone["b"].features_after.singular_values)


def test_any_shape_for_a_component_of_ones_own() -> None:
    found = rs.probe(nn.Linear(10, 4), input_shape=(10,), samples=50, device="cpu")
    assert (found.rank_after.value, found.dimension_after.value) == (4, 4)
    assert found.name == "Linear"
    assert found.expected_exact == ()
    assert found.summary()["expected_exact"] is None


# records


def test_record() -> None:
    found = rs.probe_all(["relu", "layernorm"], **SMALL, progress=False)
    assert len(found) == 2
    table = found.table()
    assert list(table["component"]) == ["relu", "layernorm"]
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["schema_version"] == 1
    assert record["kind"] == "probe_all"
    one = record["components"][1]
    assert one["expected_exact"] == 63
    assert one["tolerance"]["rule"] == "paper"
    assert one["sample_limit"] == 23
    assert one["dtype"] == "float64"
    assert one["versions"]["torch"]
    assert "spectra" not in one
    full = found.to_dict(spectra=True)["components"][1]["spectra"]
    assert len(full["jacobian_after"][0]) == len(full["features_after"]) == 64
    assert found["layernorm"].table().shape[0] == 1
    loose = found.with_tolerance(0.5)
    assert loose["relu"].rank_after.value < found["relu"].rank_after.value
    assert loose["relu"].to_dict()["tolerance"]["rtol"] == 0.5
    with pytest.raises(rs.UsageError, match="'layernrm' was not probed; did you mean 'layernorm'"):
        found["layernrm"]


def test_figure() -> None:
    found = rs.probe_all(["relu", "maxpool"], **SMALL, progress=False)
    ax = found.plot()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ReLU", "max pool"]
    assert len(ax.patches) == 8
    widths = {round(p.get_width()) for p in ax.patches}
    assert {16, found["relu"].rank_after.value, 23, found["relu"].rank_before.value} <= widths
    assert ax.figure.get_size_inches()[0] <= 3.5
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert texts[1:4] == ["PCA dimension after", "sample limit 23", "Jacobian rank before"]
    assert list(ax.lines[0].get_xdata()) == [23, 23]
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    for label, colour in (("Jacobian rank", "#808080"), ("PCA dimension", "#009E73")):
        for when, alpha in (("before", 0.45), ("after", 1.0)):
            assert handles[f"{label} {when}"].patches[0].get_facecolor() == to_rgba(colour, alpha)
    _, given = plt.subplots()
    assert found["relu"].plot(ax=given) is given
    plt.close("all")


def test_progress_is_told() -> None:
    said: list[tuple[int, int | None, str]] = []
    rs.probe_all(["relu", "gelu"], **SMALL, progress=lambda *a: said.append(a))
    assert said == [(0, 2, "relu"), (1, 2, "gelu"), (2, 2, "done")]


# bad input


class Returns(nn.Module):
    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(x)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (lambda x: x[:1], rs.ModelError, r"turned 2 samples into an output of shape \(1, 4, 4, 4\)"),
        (lambda x: x.flatten(), rs.ModelError, "turned 2 samples into"),
        (lambda x: x[:3], rs.ModelError, "turned 24 samples into 3"),
        (lambda x: x.sum(), rs.ModelError, "a single number"),
        (lambda x: (x, x), rs.ModelError, "returned a tuple of 2; wrap it in a module that returns one tensor"),
        (lambda x: None, rs.ModelError, "returned a NoneType; wrap it"),
        (lambda x: x > 0, rs.ModelError, "returned torch.bool"),
        (lambda x: x.view(-1, 5), rs.ModelError, r"Returns failed on features of shape \(4, 4, 4\).*input_shape"),
        (lambda x: x / 0, rs.MeasurementError, "128 of 128 values of the output of Returns are NaN or infinite"),
        (lambda x: x * float("nan"), rs.MeasurementError, "NaN or infinite"),
        (lambda x: (x - x.detach()).abs().sqrt() + x, rs.MeasurementError, "Jacobian of Returns are NaN"),
        (torch.ones_like, rs.MeasurementError, "the Jacobian of Returns is zero at 1 of 1 points"),
        (lambda x: x.detach(), rs.MeasurementError, "is zero at"),
    ],
)
def test_components_that_cannot_be_measured(how: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probe(Returns(how))


def test_a_wrong_input_shape_names_it() -> None:
    with pytest.raises(rs.ModelError, match=r"Conv2d failed on features of shape \(4, 4, 4\).*input_shape"):
        probe(nn.Conv2d(3, 3, 1))


def test_a_module_that_cannot_be_copied() -> None:
    module = nn.Identity()
    module.cache = torch.ones(2, requires_grad=True) * 2
    with pytest.raises(rs.ModelError, match="Identity cannot be copied"):
        probe(module)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"samples": 1}, rs.UsageError, "samples is 1; it must be a whole number of at least 2"),
        ({"samples": 0}, rs.UsageError, "samples is 0"),
        ({"samples": 2.5}, rs.UsageError, "samples is 2.5"),
        ({"input_shape": ()}, rs.UsageError, "input_shape is"),
        ({"input_shape": (4, -1)}, rs.UsageError, r"input_shape is \(4, -1\)"),
        ({"input_shape": "abc"}, rs.UsageError, "input_shape is 'abc'"),
        ({"seed": -1}, rs.UsageError, "seed is -1"),
        ({"dtype": "float16"}, rs.UsageError, "dtype 'float16' cannot be used to measure"),
        ({"tolerance": "papr"}, rs.UsageError, "papr"),
        ({"front": "gausian"}, rs.UsageError, "did you mean 'gaussian'"),
        ({"jacobian_points": 0}, rs.UsageError, "jacobian_points is 0"),
        ({"jacobian_points": 25}, rs.UsageError, "jacobian_points is 25 with 24 samples"),
        ({"context": 1}, rs.UsageError, "context is 1"),
        ({"memory_budget": -1}, rs.UsageError, "memory_budget is -1"),
        ({"memory_budget": 1e6}, rs.DeviceError, "memory budget is 0.0 GB; choose a smaller input_shape"),
        ({"device": "mps"}, rs.RankscopeError, "mps"),
        ({"device": "gpu"}, rs.UsageError, "'gpu' is unknown"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        probe("relu", **options)


def test_things_that_are_no_component() -> None:
    with pytest.raises(rs.UsageError, match="this is a int"):
        probe(3)
    with pytest.raises(rs.UsageError, match="did you mean 'dropout'"):
        probe("dropuot")
    with pytest.raises(rs.UsageError, match="components is empty"):
        rs.probe_all([], **SMALL)
    with pytest.raises(rs.UsageError, match="unknown scale 'smal'; did you mean 'small'"):
        rs.probe_all(scale="smal")  # type: ignore[arg-type]
    with pytest.raises(rs.UsageError, match="no option 'tolerence'; did you mean 'tolerance'"):
        rs.probe_all(["relu"], tolerence=1.0)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu() -> None:
    here = rs.probe_all(input_shape=(8, 4, 4), samples=100, device="cpu", progress=False)
    there = rs.probe_all(input_shape=(8, 4, 4), samples=100, device="cuda", progress=False)
    for a, b in zip(here, there, strict=True):
        sigma = a.jacobian_after[0].singular_values
        np.testing.assert_allclose(b.jacobian_after[0].singular_values, sigma, atol=1e-11 * sigma[0], rtol=0)
        assert b.rank_after.certified
    assert there.peak_memory is not None


def test_the_point_has_storage_of_its_own(monkeypatch):
    """A tangent of a view can be allocated as large as what it views: at full size 312 GiB for a chunk of 1,024."""
    seen = []
    push = LinearMap.push

    def watched(jacobian, tangents, rows=None):
        seen.append(jacobian.sample.x.untyped_storage().nbytes() == jacobian.sample.x.nbytes)
        return push(jacobian, tangents, rows)

    monkeypatch.setattr(LinearMap, "push", watched)
    rs.probe(nn.ReLU(), input_shape=(4, 2, 2), samples=40)
    assert seen
    assert all(seen)


class CastsDown(nn.Module):
    """LayerNorm in float32 whatever comes in, as many models write it."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x.flatten(1).float(), (64,)).to(x.dtype).view_as(x)


def test_the_bounds_of_a_component_that_casts_down_cover_what_it_rounds_off():
    """Its 63 exact dimensions become 64 by rounding, in both precisions alike: no bound may say that they are 64."""
    found = rs.probe(CastsDown().eval(), input_shape=(4, 4, 4), samples=100, front="orthogonal")
    assert found.exact_rank_at_least == 63
    assert found.rank_after.certified
    assert found.rank_after.lower <= 62 <= found.rank_after.upper  # LayerNorm takes the mean and the length
    x = found.jacobian_after[0]
    exact = rs.probe(
        Returns(lambda v: nn.functional.layer_norm(v.flatten(1), (64,)).view_as(v)),
        input_shape=(4, 4, 4),
        samples=100,
        front="orthogonal",
    ).jacobian_after[0]
    gap = np.abs(x.singular_values - exact.singular_values).max()
    assert 1e-9 < gap <= x.error_bound < 1e-4
    assert found.dimension_after.certified
    assert found.facts == (Fact(FactKind.CASTS_DOWN, {"to": "float32"}),)


def test_named_conventions_read_feature_dimensions_alike():
    """The reference's √(eps32·K) is a threshold on singular values of J; eigenvalues keep eps32·d."""
    paper = rs.probe("conv3x3", input_shape=(4, 4, 4), samples=300)
    reference = paper.with_tolerance("reference")
    assert reference.dimension_after.value == paper.dimension_after.value
    assert reference.dimension_before.threshold == paper.dimension_before.threshold
    assert reference.rank_after.threshold > paper.rank_after.threshold
    assert paper.with_tolerance(1e-1).dimension_after.value < paper.dimension_after.value


def test_rare_masks_are_seen_and_differ_from_point_to_point():
    class DropRow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(len(x), 1, 1, 1) > 0.1).to(x.dtype)

    for seed in range(4):
        given: dict[str, Any] = {"input_shape": (2, 4, 4), "samples": 80, "jacobian_points": 20, "device": "cpu"}
        found = rs.probe(DropRow().eval(), seed=seed, **given)
        assert found.facts == (Fact(FactKind.RANDOM_MASKS),)
        ranks = {s.rank("paper").value for s in found.jacobian_after}
        assert 0 in ranks  # of twenty points some lose their whole row; all keep it for one seed in eight
        assert max(ranks) > 20
