"""Models whose path depends on the values of a sample; against float64 reverse-mode rows of each sample alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind

EPS32 = 2.0**-23


class Routed(nn.Module):
    """One of two experts for the whole sample, by the sign of its first value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 5)
        self.right, self.left = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.head(torch.tanh(self.right(h) if bool(x.flatten()[0] > 0) else self.left(h)))


class EachRouted(Routed):
    """The same for every row by itself: an expert that no row chooses is not called."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        out = torch.zeros_like(h)
        for expert, chosen in ((self.right, x[:, 0] > 0), (self.left, x[:, 0] <= 0)):
            if bool(chosen.any()):
                out = out.index_put((chosen.nonzero().flatten(),), expert(h[chosen]))
        return self.head(torch.tanh(out))


class Looped(nn.Module):
    """As many steps as the first value says."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(int(x.flatten()[0].abs())):
            h = torch.tanh(self.cell(h))
        return self.head(h)


FIRST = {Routed: (1.0, -1.0, 2.0, -2.0), EachRouted: (1.0, -1.0, 2.0, -2.0), Looped: (3.5, 1.5, 2.5, 3.2)}


def samples_of(kind: type[nn.Module], count: int) -> Tensor:
    x = torch.randn(count, 6)
    x[:, 0] = torch.tensor(FIRST[kind][:count])
    return x


def rows_alone(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Each linear layer's Jacobian at one sample in float64, by reverse mode, by module and number of the call."""
    model = model.double()
    x = x[None].double().requires_grad_()
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        m.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, []).append(out))
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        model(x)
        made = {}
        for name, outs in seen.items():
            for call, out in enumerate(outs, 1):
                rows = [torch.autograd.grad(v, x, retain_graph=True)[0].flatten() for v in out.flatten()]
                made[f"{name}#{call}"] = torch.stack(rows)
            made[name] = made[f"{name}#1"]  # its name where no sample calls it twice
        return made
    finally:
        for hook in hooks:
            hook.remove()
        model.float()


def check(profile: Any, model: nn.Module, x: Tensor) -> dict[str, int]:
    """Every spectrum beside the oracle's; returns how many samples do not call each cut point."""
    missed: dict[str, int] = {}
    for i, one in enumerate(x):
        expected = rows_alone(model, one)
        for layer in profile.layers:
            found = layer.spectra[i]
            if layer.name not in expected:
                assert found is None, (layer.name, i)
                assert i in layer.uncalled
                missed[layer.name] = missed.get(layer.name, 0) + 1
                continue
            assert found is not None, (layer.name, i)
            assert i not in layer.uncalled
            sigma = torch.linalg.svdvals(expected[layer.name]).numpy()
            # σ come from squares of float32 rows, whose error is a few roundings a layer, of at most eight here
            bound = 64 * EPS32 * sigma[0] + (found.error_bound if np.isfinite(found.error_bound) else 0.0)
            assert np.abs(np.asarray(found.singular_values)[: len(sigma)] - sigma).max() <= bound, (layer.name, i)
    return missed


@pytest.mark.parametrize("certify", [True, False])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", [Routed, EachRouted, Looped])
def test_a_sample_that_does_not_call_a_cut_point_has_no_spectrum_there(
    kind: type[nn.Module], count: int, certify: bool
) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), samples_of(kind, count)
    profile = rs.jacobian_rank(model, x, cut_points="all", certify=certify)
    missed = check(profile, model, x)
    assert bool(missed) == (count > 1)
    facts = of_kind(profile.facts, FactKind.NOT_CALLED)
    assert [dict(zip(f["names"], f["counts"], strict=True)) for f in facts] == ([missed] if missed else [])
    assert all(f["total"] == count for f in facts)
    for layer in profile.layers:
        row = profile.summary(layer)
        assert (row["uncalled_images"], row["not_finite_images"]) == (missed.get(layer.name, 0), 0)
        assert row["certified"] == certify  # of the samples that call it
    if missed:
        assert f"not called on {max(missed.values())}" in str(profile)
        assert "not finite" not in str(profile)


def test_uncalled_cut_points_come_back_from_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Routed().eval(), samples_of(Routed, 4)
    whole = rs.jacobian_rank(model, x, cut_points="all")
    assert rs.JacobianProfile.load(whole.save(tmp_path / "saved")) == whole

    folder = tmp_path / "kept"
    rs.jacobian_rank(model, x, cut_points="all", limit=2, checkpoint=folder)
    resumed = rs.jacobian_rank(model, x, cut_points="all", checkpoint=folder)
    assert check(resumed, model, x) == {"left": 2, "right": 2}
    again = rs.jacobian_rank(model, x, cut_points="all", checkpoint=folder)
    assert check(again, model, x) == {"left": 2, "right": 2}
    assert again["right"].uncalled == (1, 3)
    assert of_kind(again.facts, FactKind.NOT_CALLED) == of_kind(whole.facts, FactKind.NOT_CALLED)


def test_the_other_samples_of_one_that_calls_nothing_are_measured() -> None:
    torch.manual_seed(0)
    model, x = Routed().eval(), samples_of(Routed, 4)
    profile = rs.jacobian_rank(model, x, cut_points=["right"])
    assert check(profile, model, x) == {"right": 2}
    assert profile["right"].spectra[1] is None


def test_a_cut_that_some_samples_go_around_makes_no_rise() -> None:
    torch.manual_seed(0)
    model, x = Routed().eval(), samples_of(Routed, 2)
    with torch.no_grad():
        model.right.weight[1:] = 0  # rank 1 on the first sample, while the other keeps its rank
    profile = rs.jacobian_rank(model, x, cut_points="all")
    assert check(profile, model, x) == {"left": 1, "right": 1}
    assert dict(zip([layer.name for layer in profile.layers], profile.function_rank, strict=True))["right"] == 1
    assert profile["head"].true_cut
    assert profile.rises() == {}


class Remembers(nn.Module):
    """What the last call left behind moves the next, then one of two layers by the sign of the first value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.back = nn.Linear(6, 6), nn.Linear(6, 6)
        self.right, self.left = nn.Linear(6, 4), nn.Linear(6, 5)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if self.state is not None:
            out = out + self.back(self.state.mean(0, keepdim=True).mean(-2, keepdim=True))
        self.state = torch.tanh(3 * out)
        return self.right(self.state) if bool(x.flatten()[0] > 0) else self.left(self.state)


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1), (1, 2, 1, 3)], ids=["one shape", "several shapes"])
def test_what_an_earlier_sample_left_behind_reaches_no_later_one(lengths: tuple[int, ...]) -> None:
    """In another dtype than the model's: the weights and attributes that are converted are those of the first call."""
    torch.manual_seed(3)
    model = Remembers()
    samples = [torch.randn(n, 6) * 2 for n in lengths]
    for sample, sign in zip(samples, (1, -1, 1, -1), strict=True):
        sample[0, 0] = sign * sample[0, 0].abs()

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, i: int) -> Tensor:
            return samples[i]

    profile = rs.jacobian_rank(model, Rows(), cut_points="all", dtype=torch.float64, progress=False)
    assert model.state is None
    exact = Remembers().double()
    exact.load_state_dict(model.state_dict())
    for name, taken in (("right", (0, 2)), ("left", (1, 3)), ("inner", (0, 1, 2, 3))):
        spectra = profile[name].spectra
        for i in range(4):
            if i not in taken:
                assert spectra[i] is None
                continue

            def of_layer(x: Tensor, name: str = name) -> Tensor:
                h = exact.inner(x)
                return h if name == "inner" else getattr(exact, name)(torch.tanh(3 * h))

            x = samples[i].double()
            truth = torch.autograd.functional.jacobian(of_layer, x).reshape(-1, x.numel())
            sigma = np.linalg.svd(truth.numpy(), compute_uv=False)
            assert spectra[i] is not None
            found = np.asarray(spectra[i].singular_values)[: len(sigma)]
            # both float64, sums of a few tens of products
            np.testing.assert_allclose(found, sigma[: len(found)], atol=1e-7 * sigma[0])


class NearTie(nn.Module):
    """Which expert a sample takes hangs on a sum that half precision rounds to zero."""

    def __init__(self, step: float = 2.0**-12) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 5)
        self.right, self.left = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = torch.tanh(self.stem(x))
        # 1 + 2⁻¹² is 1 in bfloat16 and in float16, and 1 + 2⁻⁴⁰ in float32
        return self.head(self.right(h) if bool(x.flatten()[0] + self.step > 1) else self.left(h))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("first", [-1.0, 1.0])
def test_later_calls_are_looked_for_in_the_precision_that_is_measured(dtype: torch.dtype, first: float) -> None:
    """In half precision both samples take the same expert; in float32, which is measured, another each."""
    torch.manual_seed(4)
    net = NearTie().eval().to(dtype)
    x = torch.randn(2, 6).to(dtype).float()
    x[:, 0] = torch.tensor([first, -first])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    profile = rs.jacobian_rank(net, x, cut_points="all")
    taken = ("left", "right") if first < 0 else ("right", "left")
    assert [profile[name].uncalled for name in taken] == [(1,), (0,)]
    check(profile, copy.deepcopy(net).float(), x)
    for name, value in net.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])


def test_later_calls_are_looked_for_in_float64() -> None:
    """In float32, the model's own precision, both samples take the left expert."""
    torch.manual_seed(4)
    net = NearTie(2.0**-40).eval()
    x = torch.randn(2, 6)
    x[:, 0] = torch.tensor([-1.0, 1.0])
    profile = rs.jacobian_rank(net, x, cut_points=["left", "right"], dtype="float64", certify=False)
    assert (profile["left"].uncalled, profile["right"].uncalled) == ((1,), (0,))
    profile = rs.jacobian_rank(net, x, cut_points=["left", "right"], certify=False)
    assert profile["left"].uncalled == ()
    assert profile.unmeasured == {"right": "no sample calls it"}


@pytest.mark.parametrize("wanted", ["all", "blocks", ["left", "right"]])
@pytest.mark.parametrize("tied", [0, 1, 2])
def test_a_sample_that_only_rounding_routes_is_measured_and_not_certified(wanted: Any, tied: int) -> None:
    """float32 rounds 1 + 2⁻⁴⁰ to 1, float64 does not: the certificate's pass would be of the other expert."""
    torch.manual_seed(4)
    net, x = NearTie(2.0**-40).eval(), torch.randn(3, 6)
    x[:, 0] = -1.0
    x[tied, 0] = 1.0
    profile = rs.jacobian_rank(net, x, cut_points=wanted)
    (fact,) = of_kind(profile.facts, FactKind.OTHER_PATH)
    assert fact.caution
    assert fact["dtype"] == "float32"
    exact = copy.deepcopy(net)
    exact.step = 0.0  # in float64 this takes the path that float32 took: 1 is not more than 1
    check(profile, exact, x)
    for layer in profile.layers:
        assert [spectrum.rank("paper").certified for spectrum in layer.spectra] == [i != tied for i in range(3)]


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_full_jacobian_that_only_rounding_routes_is_not_certified(method: str) -> None:
    torch.manual_seed(4)
    net, x = NearTie(2.0**-40).eval(), torch.randn(2, 6)
    x[:, 0] = torch.tensor([1.0, -1.0])
    profile = rs.jacobian_rank(net, x, cut_points=["left"], columns="all", method=method)
    assert len(of_kind(profile.facts, FactKind.OTHER_PATH)) == 1
    tied, clear = profile["left"].spectra
    assert tied is not None
    assert clear is not None
    assert not tied.rank("paper").certified
    assert clear.rank("paper").certified
    assert (clear.rank("paper").lower, clear.rank("paper").upper) == (6, 6)


def test_where_rounding_routes_every_sample_nothing_is_certified() -> None:
    torch.manual_seed(4)
    net, x = NearTie(2.0**-40).eval(), torch.randn(2, 6)
    x[:, 0] = 1.0
    profile = rs.jacobian_rank(net, x, cut_points="all")
    assert profile.certificate.kind is FactKind.NO_COMMON_PATH
    assert profile.method.kind in (FactKind.LINEARISED, FactKind.PUSHED)
    for layer in profile.layers:
        assert [s.rank("paper").certified for s in layer.spectra if s is not None] == [False, False]


class Quotient(NearTie):
    """As many steps as a rounded quotient says."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        for _ in range(int((x.flatten()[0] / 0.1).floor()) - 4):
            h = torch.tanh(self.right(h))
        return self.head(h)


@pytest.mark.parametrize("tied", [0, 1])
def test_a_loop_whose_length_only_rounding_decides(tied: int) -> None:
    """The float32 number nearest to 0.7, divided by 0.1, is 7 in float32 and less in float64."""
    torch.manual_seed(4)
    net, x = Quotient().eval(), torch.randn(2, 6)
    x[:, 0] = 0.65
    x[tied, 0] = 0.7
    assert [int((x[tied, 0].to(dtype) / 0.1).floor()) for dtype in (torch.float32, torch.float64)] == [7, 6]
    profile = rs.jacobian_rank(net, x, cut_points="all")
    third = next(layer for layer in profile.layers if layer.name == "right#3")
    assert third.uncalled == (1 - tied,)
    exact = copy.deepcopy(net)
    x[tied, 0] += 1e-6  # a step across which float64 takes the path of float32; what that moves is within rounding
    check(profile, exact, x)
    assert third.spectra[tied] is not None
    assert not third.spectra[tied].rank("paper").certified
    assert profile["stem"].spectra[1 - tied].rank("paper").certified


@pytest.mark.parametrize("wanted", [["right", "head"], ["head", "right"], "right", ["ri*"]])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_named_layer_that_only_some_samples_call(wanted: Any, where: int, tmp_path: Path) -> None:
    """A name is measured on the samples that call it, whichever these are, as a glob is."""
    torch.manual_seed(0)
    net, x = Routed().eval(), torch.randn(4, 6)
    x[:, 0] = -x[:, 0].abs()
    x[where, 0] = 1.0
    profile = rs.jacobian_rank(net, x, cut_points=wanted, checkpoint=tmp_path)
    assert {layer.name for layer in profile.layers} == {"right", "head"} & {"right", *wanted}
    assert profile["right"].uncalled == tuple(i for i in range(4) if i != where)
    assert not profile.unmeasured
    check(profile, net, x)
    again = rs.jacobian_rank(net, x, cut_points=wanted, checkpoint=tmp_path)
    np.testing.assert_array_equal(again.reading.rank, profile.reading.rank)


def test_a_named_layer_that_a_later_sample_calls_more_often() -> None:
    """The name of a module stands for all its calls, also for those that the first sample does not make."""
    torch.manual_seed(0)
    net, x = Looped().eval(), samples_of(Looped, 4)[[1, 2, 0]]  # one call, two, three
    profile = rs.jacobian_rank(net, x, cut_points="cell")
    assert [(layer.name, layer.uncalled) for layer in profile.layers] == [
        ("cell#1", ()),
        ("cell#2", (0,)),
        ("cell#3", (0, 1)),
    ]
    check(profile, net, x)
    by_number = rs.jacobian_rank(net, x, cut_points=["cell#3"])
    assert [(layer.name, layer.uncalled) for layer in by_number.layers] == [("cell#3", (0, 1))]
    check(by_number, net, x)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("cell", {"cell#1", "cell#2", "cell#3"}),
        ("?el?", {"cell#1", "cell#2", "cell#3"}),  # speaks of the module
        (["*l#[13]", "head"], {"cell#1", "cell#3", "head"}),  # speaks of its calls
        (["cell#1", "head"], {"cell#1", "head"}),
        ("*#1", {"cell#1", "head"}),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 2, 0, 3], [2, 0, 3, 1], [1, 0, 2, 3]])
def test_names_do_not_depend_on_the_order_of_samples(wanted: Any, names: set[str], order: list[int]) -> None:
    """Four samples call ``cell`` three times, once, twice and three times."""
    torch.manual_seed(0)
    net, x = Looped().eval(), samples_of(Looped, 4)
    expected = [sum(name.startswith("cell#") for name in rows_alone(net, one)) for one in x]
    profile = rs.jacobian_rank(net, x[order], cut_points=wanted)
    assert {layer.name for layer in profile.layers} == names
    for layer in profile.layers:
        least = int(layer.name[-1]) if "#" in layer.name else 0
        assert set(layer.uncalled) == {i for i, sample in enumerate(order) if expected[sample] < least}
    check(profile, net, x[order])
    once = x[[k for k, times in enumerate(expected) if times == 1]]
    if len(once) and wanted in ("cell", "?el?"):
        assert [layer.name for layer in rs.jacobian_rank(net, once, cut_points=wanted).layers] == ["cell"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("left", "module 'left' is never called in a forward pass"),  # no sample calls it
        (["head", "lft"], "there is no module 'lft'"),  # no module has the name
        (["head", "cell.weight"], r"there is no module 'cell\.weight'"),
        ("left#2", "there is no module 'left#2'"),
        ("lef*", r"no called module matches 'lef\*'"),
    ],
)
def test_what_no_sample_calls_is_an_error(wanted: Any, message: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    x[:, 0] = x[:, 0].abs()
    with pytest.raises(rs.CutPointError, match=message):
        rs.jacobian_rank(Routed().eval(), x, cut_points=wanted)
