"""``columns="all"`` with a method: the full Jacobian's rank beside float64 autograd rows and NumPy's SVD."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
import rankscope.spectra.matrix_free
from rankscope._base.facts import FactKind, of_kind
from rankscope.jacobian.products import products_of
from rankscope.jacobian.shared_passes import SharedPasses
from rankscope.linear.derivative import Derivative, Settings
from rankscope.report import profile_page
from rankscope.slicing import ColumnsByShape, Sample, measuring, select, trace

WAYS = ["exact", rs.Lanczos(probes=4, steps=14), rs.Lanczos(probes=2, steps=30, seed=3)]
OPTIONS = {"columns": "all", "progress": False}
TOLERANCES = ["paper", "reference", "torch", 1e-2]


class Attention(nn.Module):
    """One pre-norm transformer block on 25 tokens of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        mixed = self.out(nn.functional.softmax(q @ k.mT, -1) @ v) + x
        out: Tensor = self.head(mixed.mean(1))
        return out


def _conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 30),
    ).eval()  # fmt: skip


def _attention() -> nn.Module:
    torch.manual_seed(1)
    return Attention().eval()


NETWORKS = {"conv": (_conv, (2, 8, 8)), "attention": (_attention, (25, 8))}


def _jacobian(model: nn.Module, x: Tensor, name: str, make=_conv) -> np.ndarray:
    """Rows by autograd in float64, one at a time."""
    made = []
    modules = dict(model.named_modules())
    double = type(model)() if isinstance(model, Attention) else make()
    double.load_state_dict(model.state_dict())
    double = double.double().eval()
    modules = dict(double.named_modules())
    handle = modules[name].register_forward_hook(lambda m, a, out: made.append(out))
    point = x.double().requires_grad_()
    double(point)
    handle.remove()
    flat = made[0].reshape(-1)
    rows = [torch.autograd.grad(v, point, retain_graph=True)[0].reshape(-1) for v in flat]
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module", params=NETWORKS)
def measured(request: pytest.FixtureRequest):
    make, shape = NETWORKS[request.param]
    model = make()
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(5))
    found = [rs.jacobian_rank(model, x, cut_points="all", method=way, **OPTIONS) for way in WAYS]
    truth = {layer.name: np.linalg.svd(_jacobian(model, x, layer.name), compute_uv=False) for layer in found[0].layers}
    return found, truth


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_the_count_is_inside_the_bounds(measured, tolerance):
    found, truth = measured
    for result in found:
        for layer in result.layers:
            spectrum, rank = layer.spectra[0], layer.spectra[0].rank(tolerance)
            sigma = truth[layer.name]
            rtol = rs.Spectrum(sigma, spectrum.shape, "float32").rank(tolerance).threshold / sigma[0]
            count = int((sigma >= rtol * sigma[0]).sum())
            assert rank.certified
            assert rank.lower <= count <= rank.upper, (layer.name, tolerance)
            assert rank.lower <= rank.value <= rank.upper


def _wide() -> nn.Module:
    """1,152 inputs, which are too many for a sweep of all columns to be the rule."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(108, 30),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(("name", "budget"), [("5", "1GB"), ("0", "48MB")])
def test_the_exact_way_gives_the_singular_values(name: str, budget: str):
    """Fewer rows than inputs by pull; and columns by push, where the budget holds one matrix of 1,152² but not four."""
    model, x = _wide(), torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(5))
    found = rs.jacobian_rank(model, x, cut_points=[name], method="exact", memory_budget=budget, **OPTIONS)
    (fact,) = of_kind(found.facts, FactKind.FULL_PLAN)
    assert (fact["exact"], fact["lanczos"]) == (1, 0)
    spectrum = found.layers[0].spectra[0]
    assert isinstance(spectrum, rs.Spectrum)
    sigma = np.linalg.svd(_jacobian(model, x, name, _wide), compute_uv=False)
    # float64 products err by some 1e-15 of σ₁²; the weights are float32 numbers in both
    assert np.abs(spectrum.singular_values**2 - sigma**2).max() <= 1e-13 * sigma[0] ** 2
    rank = spectrum.rank("paper")
    assert rank.lower == rank.upper == int((sigma >= rank.threshold).sum())
    assert spectrum.dtype == "float32"
    assert spectrum.square_error > 0, "the error of the products is bounded"


@pytest.mark.parametrize(
    ("method", "double"), [("auto", False), (rs.Lanczos(probes=2, steps=50), False), ("exact", True)]
)
def test_float32_serves_unless_the_exact_way_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, method: rs.Lanczos | str, double: bool
):
    """One spectrum of 30 logits' rows: in float32 where that decides the rank, as here."""
    asked = []
    plain = rankscope.spectra.matrix_free.exact_spectrum

    def counted(operator, **options):
        asked.append(operator.dtype)
        return plain(operator, **options)

    monkeypatch.setattr("rankscope.spectra.matrix_free.exact_spectrum", counted)
    model, x = _wide(), torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(5))
    found = rs.jacobian_rank(model, x, cut_points=["5"], method=method, **OPTIONS)
    assert asked == [torch.float64 if double else torch.float32]
    sigma = np.linalg.svd(_jacobian(model, x, "5", _wide), compute_uv=False)
    rank = found["5"].spectra[0].rank("paper")
    assert rank.lower == rank.upper == int((sigma >= rank.threshold).sum())


def test_one_sweep_where_that_is_cheaper(monkeypatch: pytest.MonkeyPatch):
    """All singular values of 1,152 columns at both cut points: one sweep, and the same ranks."""
    model, x = _wide(), torch.randn(1, 2, 24, 24, generator=torch.Generator().manual_seed(5))
    by_products = rs.jacobian_rank(model, x, cut_points=["0", "2"], memory_budget="48MB", **OPTIONS)
    monkeypatch.setattr("rankscope.jacobian.full_measurer.products_of", None)
    swept = rs.jacobian_rank(model, x, cut_points=["0", "2"], memory_budget="1GB", **OPTIONS)
    assert not of_kind(swept.facts, FactKind.FULL_PLAN)
    for one, other in zip(swept.layers, by_products.layers, strict=True):
        a, b = one.spectra[0].rank("paper"), other.spectra[0].rank("paper")
        assert max(a.lower, b.lower) <= min(a.upper, b.upper)


def test_probes_are_used_and_say_so(measured):
    found, _ = measured
    table = found[1].per_image()
    assert "Lanczos" in table["method"].tolist()
    probed = table["method"] == "Lanczos"
    assert (table["bracket"][probed] >= 0).all()
    assert (table["standard_error"][probed] >= 0).all()
    assert (table["lower"] <= table["rank"]).all()
    assert (table["rank"] <= table["upper"]).all()
    assert {"method", "standard_error", "bracket"} <= set(found[1].table().columns)
    text = str(found[1])
    assert "std. error" in text
    assert "bracket" in text
    assert "Lanczos" in text
    (plan,) = of_kind(found[1].facts, FactKind.FULL_PLAN)
    assert plan["seconds"] > 0
    assert plan["bytes"] > 0
    assert plan["exact"] + plan["lanczos"] == len(found[1].layers)


def test_records_survive_a_file(measured, tmp_path: Path):
    for result in measured[0]:
        loaded = rs.JacobianProfile.load(result.save(tmp_path / "full"))
        assert loaded == result
        assert str(loaded) == str(result)
        # a tolerance that nobody asked for at the time
        assert loaded.with_tolerance(3e-2).reading.rows == result.with_tolerance(3e-2).reading.rows
    assert "<pre" in measured[0][1]._repr_html_()
    probed = measured[0][1]
    axes = probed.plot()
    assert axes.get_ylabel() == "Jacobian rank"
    (band,) = [c for c in axes.collections if c.get_gid() == "bounds"]
    highest = max(row["function_rank"]["upper"] for row in probed.reading.rows)
    assert band.get_paths()[0].vertices[:, 1].max() == highest
    assert "Lanczos" in profile_page(measured[0][1]).html()


@pytest.mark.parametrize("name", NETWORKS)
def test_pull_is_the_adjoint_of_push(name: str):
    make, shape = NETWORKS[name]
    model, x = make(), torch.randn(1, *shape, generator=torch.Generator().manual_seed(5))
    sample = Sample(x, "input 0")
    calls = [c for c in select(model, trace(model, sample), "all") if c.depends]
    truth = [_jacobian(model, x, call.name) for call in calls]
    settings = Settings("auto", 2**28, True, torch.device("cpu"), torch.float32, ColumnsByShape("all"))
    with measuring(model, torch.device("cpu")):
        derivative = Derivative(model, calls, settings)
        with derivative.runner.hooked():
            derivative.prepare(sample)
        passes = SharedPasses(derivative, sample, 2**28, range(len(calls)))
        for place, call in enumerate(calls):
            pair = products_of(passes, place)
            assert pair.certified
            for each, eps in ((pair.work, 2.0**-23), (pair.exact, 2.0**-52)):
                rows, columns = each.shape
                unit = torch.eye(columns, dtype=each.dtype)
                down = torch.eye(rows, dtype=each.dtype)
                J = each.push(unit)
                assert J.shape == each.shape
                other = each.pull(down).T
                assert float((J - other).abs().max()) <= 256 * eps * float(J.norm()), call.name
            assert np.abs(J.numpy() - truth[place]).max() <= 1e-12 * np.abs(truth[place]).max()


def test_a_zero_branch_has_rank_zero():
    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead, self.live = nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(6, 3)
            with torch.no_grad():
                self.dead[0].bias.fill_(-1e3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.cat([self.dead(x), self.live(x)], -1)
            return out

    torch.manual_seed(0)
    for method in ("exact", rs.Lanczos(probes=1, steps=2)):
        found = rs.jacobian_rank(
            Dead().eval(), torch.randn(1, 6), cut_points=["dead", "live"], method=method, **OPTIONS
        )
        dead, live = (found[name].spectra[0].rank() for name in ("dead", "live"))
        assert (dead.value, dead.lower, dead.upper) == (0, 0, 0)
        assert live.lower <= 3 <= live.upper


def test_the_model_leaves_as_it_came_and_the_mode_is_said():
    model = _conv().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = rs.jacobian_rank(model, torch.randn(1, 2, 8, 8), cut_points=["7"], method=rs.Lanczos(2, 5), **OPTIONS)
    assert isinstance(found.layers[0].spectra[0], rs.SpectralDensity)
    assert FactKind.TRAINING_MODE in {f.kind for f in found.facts}
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Wrong(torch.autograd.Function):
    """The identity, whose backward formula is wrong in one entry."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None: ...

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * torch.cat([grad.new_full((1,), 1.001), grad.new_ones(grad.shape[-1] - 1)])

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return tangent.clone()


def test_modes_that_disagree_in_one_unit_are_not_certified():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(40, 40), nn.Linear(40, 40)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(Wrong.apply(self.a(x)))
            return out

    torch.manual_seed(0)
    found = rs.jacobian_rank(
        Net().eval(), torch.randn(1, 40), cut_points=["a", "b"], method=rs.Lanczos(2, 8), **OPTIONS
    )
    assert found["a"].spectra[0].rank().certified
    rank = found["b"].spectra[0].rank()
    assert not rank.certified
    assert (rank.lower, rank.upper) == (0, 40)
    assert "not certified" in str(found)


def test_what_a_sample_does_not_call_and_what_is_not_finite():
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.root = nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if x.sum() > 0:
                x = self.b(x)
            out: Tensor = self.root(x - x.detach()).sqrt()
            return out

    torch.manual_seed(0)
    model = Turn().eval()
    with torch.no_grad():
        model.a.bias.zero_()
        x = torch.randn(1, 4)
        x = x * model.a(x).sum().sign()
    other = -2 * x
    way = rs.Lanczos(1, 2)
    found = rs.jacobian_rank(model, torch.cat([x, other]), cut_points=["a", "b", "output"], method=way, **OPTIONS)
    assert found["b"].uncalled == (1,)
    assert found["b"].spectra[1] is None
    assert FactKind.NOT_CALLED in {f.kind for f in found.facts}
    assert found.unmeasured["output"] == ("its Jacobian has NaN or infinite entries on every image")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "svd"}, "method"),
        ({"method": "exact", "memory_budget": 30_000}, "the exact spectrum of a side of 128 needs"),
        ({"method": rs.Lanczos(2, 5), "memory_budget": 60_000}, "2 Lanczos probes of 128 entries need"),
        ({"cut_points": ["nope"]}, "nope"),
        ({"columns": "auto", "method": "lanczos"}, 'measures the full Jacobian; give columns="all" with it'),
        ({"columns": rs.Patch(2), "method": rs.Lanczos(2, 5)}, 'measures the full Jacobian; give columns="all"'),
    ],
)
def test_bad_options_are_named(options, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 128))
    with pytest.raises(rs.RankscopeError, match=message):
        rs.jacobian_rank(model, torch.zeros(1, 2, 8, 8), **{**OPTIONS, **options})


@pytest.mark.parametrize(("option", "value"), [("probes", 0), ("steps", 0), ("bracket", 0.0), ("seed", -1)])
def test_settings_that_cannot_be_used(option, value):
    with pytest.raises(rs.UsageError, match=option):
        rs.Lanczos(**{option: value})


def test_an_input_without_a_finite_jacobian_is_named():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]])
    found = rs.jacobian_rank(Root(), x, cut_points=["output"], method=rs.Lanczos(1, 2), **OPTIONS)
    assert found.layers[0].spectra[0].rank().value == 3
    assert found.layers[0].spectra[1] is None
    assert "not finite on 1" in str(found)


def test_what_only_a_later_sample_calls_is_measured():
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 30)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            out: Tensor = self.c(self.b(h) if x.sum() > 0 else h)
            return out

    torch.manual_seed(0)
    model, x = Turn().eval(), torch.randn(1, 40).abs()
    found = rs.jacobian_rank(model, torch.cat([-x, x]), cut_points="all", method=rs.Lanczos(2, 7), **OPTIONS)
    assert found["b"].uncalled == (0,)
    for name, weight, image in (("b", model.b.weight @ model.a.weight, 1), ("c", model.c.weight @ model.a.weight, 0)):
        rank, sigma = found[name].spectra[image].rank(0.1), torch.linalg.svdvals(weight.detach().double())
        assert rank.lower <= int((sigma >= 0.1 * sigma[0]).sum()) <= rank.upper
    table = found.per_image().set_index(["layer", "image"])["method"]
    assert table["b", "sample 1"] == "Lanczos"
    assert table.isna()["b", "sample 0"]
