"""Images of one call are measured as if each came alone: against reverse-mode rows of each image, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.jacobian.batch import BatchMeasurer

EPS32 = 2.0**-23


def rows_alone(model: nn.Module, x: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """The Jacobian of one image, one reverse pass per row. Nothing of the package."""
    leaf = x[None].double().requires_grad_()
    out = read(model, leaf).reshape(-1)
    return torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0].reshape(-1) for v in out])


def sigma_alone(model: nn.Module, x: Tensor, read: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    return torch.linalg.svdvals(rows_alone(model, x, read))


def whole(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def held_to_truth(model: nn.Module, x: Tensor, layer: str = "last", **options: Any) -> rs.JacobianProfile:
    """Every image's singular values lie within the certified bound of the truth, and so does every rank."""
    profile = rs.jacobian_rank(model, x, cut_points=[layer], progress=False, **options)
    for image, spectrum in enumerate(profile[layer].spectra):
        assert spectrum is not None
        double = copy.deepcopy(model).double()  # a new one each: it may keep state
        truth = sigma_alone(double, x[image], whole)
        # float64 rows err by 1e-15 of σ₁, the certificate's own Gram matrix by less than 1e-7 of it
        slack = (0 if spectrum.error_bound != spectrum.error_bound else spectrum.error_bound) + 2e-6 * float(truth[0])
        found = torch.from_numpy(spectrum.singular_values.copy())[: len(truth)]
        assert float((found - truth[: len(found)]).abs().max()) <= slack, (image, found, truth)
        estimate = spectrum.rank("paper")
        exact = int((truth >= EPS32 * min(spectrum.shape) * truth[0]).sum())
        assert estimate.lower <= exact <= estimate.upper, (image, str(estimate), exact)
    return profile


class Net(nn.Module):
    """Two layers of width eight with something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))

    def between(self, h: Tensor) -> Tensor:
        return h.relu()


class Branch(Net):
    """Row J1: a branch on a sum over the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 0], dtype=x.dtype)
        return self.last(x if x.sum() > 0 else x * keep)


class Clipped(Net):
    """Row J2: clipped by the norm of the whole batch."""

    def between(self, h: Tensor) -> Tensor:
        h = 10 * h
        return h * torch.clamp(10 / h.norm(), max=1)


class ClippedDetached(Net):
    def between(self, h: Tensor) -> Tensor:
        h = 10 * h
        return h * torch.clamp(10 / h.norm(), max=1).detach()


class Statistics(Net):
    """Normalised by the batch's own statistics where there is more than one image."""

    def between(self, h: Tensor) -> Tensor:
        return h - h.mean(0) if len(h) > 1 else h


class Weak(Net):
    """The neighbour's image at weight 1e-5: too weak for the values, not for a singular value near τ."""

    def between(self, h: Tensor) -> Tensor:
        return h + 1e-5 * h.roll(1, 0) if len(h) > 1 else h


class WeakDetached(Net):
    def between(self, h: Tensor) -> Tensor:
        return h + 1e-5 * h.roll(1, 0).detach() if len(h) > 1 else h


class Routed(Net):
    """Each of two experts takes half of the batch at most, as routing with capacity does; the rest is dropped."""

    def between(self, h: Tensor) -> Tensor:
        capacity = (len(h) + 1) // 2
        to_first = h[:, 0] > 0
        kept = torch.zeros_like(to_first)
        for chosen in (to_first, ~to_first):
            kept |= chosen & (chosen.long().cumsum(0) <= capacity)
        return h * torch.where(to_first, 2.0, 1.0)[:, None].to(h.dtype) * kept[:, None].to(h.dtype)


class Gated(Net):
    """A gate decided by the batch's mean."""

    def between(self, h: Tensor) -> Tensor:
        return h * (h > h.mean()).to(h.dtype)


class Numbered(Net):
    """The place in the batch as data."""

    def between(self, h: Tensor) -> Tensor:
        return h * (1 + torch.arange(len(h)).to(h))[:, None]


COUPLED = [Branch, Clipped, ClippedDetached, Statistics, Weak, WeakDetached, Routed, Gated, Numbered]


@pytest.mark.parametrize("kind", COUPLED, ids=lambda k: k.__name__)
@pytest.mark.parametrize("images", [2, 8])
def test_j1_j2_images_that_change_each_other_are_measured_alone(kind: type[Net], images: int) -> None:
    torch.manual_seed(3)
    held_to_truth(kind().eval(), torch.randn(images, 8))


def test_j1_ranks_of_a_branch_on_the_batch() -> None:
    torch.manual_seed(0)
    model, x = Branch().eval(), torch.randn(8, 8)
    profile = rs.jacobian_rank(model, x, cut_points=["last"], progress=False)
    ranks = [e.value for e in profile["last"].estimates(profile.tolerance)]
    assert ranks == [8 if float(image.sum()) > 0 else 3 for image in x]
    assert {3, 8} == set(ranks)


class Later(Net):
    """Images change each other only where one of them is marked, which none of the first ones is."""

    def between(self, h: Tensor) -> Tensor:
        marked = (h[:, 0].abs() > 50).any()
        return torch.where(marked & torch.tensor(len(h) > 1), h * h.mean(0), h)


def test_a_coupling_that_only_later_images_show() -> None:
    torch.manual_seed(1)
    model = Later().eval()
    x = torch.randn(150, 8)  # batches of 64
    x[140] *= 500
    held_to_truth(model, x)


class Plain(Net):
    pass


class WeightedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.max_pool2d(self.norm(self.conv(x.view(-1, 1, 6, 6))).relu(), 2).mean((2, 3)))


@pytest.mark.parametrize(("model", "shape"), [(Plain(), (8,)), (WeightedConv(), (36,))], ids=["linear", "convolution"])
def test_images_that_leave_each_other_alone_share_a_sweep(
    model: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check costs no speed where there is nothing to find: one sweep for all."""
    sizes = []
    original = BatchMeasurer._submit

    def counted(self: BatchMeasurer, sample: Any, *rest: Any) -> Any:
        sizes.append(len(sample.x))
        return original(self, sample, *rest)

    monkeypatch.setattr(BatchMeasurer, "_submit", counted)
    torch.manual_seed(0)
    held_to_truth(model.eval(), torch.randn(10, *shape))
    assert sizes == [10]
    sizes.clear()
    rs.jacobian_rank(model, torch.randn(10, *shape), certify=False, progress=False)
    assert sizes == [1] * 10, "what no certificate watches over is swept alone"


# ---- rule 3: sizes, values and branches that depend on the data ----------------------------------------------------


class Kept(nn.Module):
    """Row J5: tokens kept by a score, each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.last = nn.Linear(3, 5), nn.Linear(5, 5)

    def choose(self, t: Tensor) -> Tensor:
        return t[t[:, 0] > 0]

    def forward(self, x: Tensor) -> Tensor:
        kept = self.choose(x[0])
        return self.last(torch.stack([self.embed(kept[i]) for i in range(kept.shape[0])])[None])


class KeptByMaskedSelect(Kept):
    def choose(self, t: Tensor) -> Tensor:
        return t.masked_select(t[:, :1] > 0).view(-1, 3)


class KeptByNonzero(Kept):
    def choose(self, t: Tensor) -> Tensor:
        return t.index_select(0, torch.nonzero(t[:, 0] > 0)[:, 0])


class KeptByCount(Kept):
    def choose(self, t: Tensor) -> Tensor:
        count = int((t[:, 0] > 0).sum())
        return t[t[:, 0].topk(count).indices]


class KeptByRepeat(Kept):
    def choose(self, t: Tensor) -> Tensor:
        return torch.repeat_interleave(t, (t[:, 0] > 0).long(), dim=0)


class KeptByNumpy(Kept):
    def choose(self, t: Tensor) -> Tensor:
        return t[: int(torch.unique(t[:, 0].detach() > 0, return_counts=True)[1][-1])]


@pytest.mark.parametrize("certify", [True, False])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "kind", [Kept, KeptByMaskedSelect, KeptByNonzero, KeptByCount, KeptByRepeat, KeptByNumpy], ids=lambda k: k.__name__
)
def test_j5_sizes_that_depend_on_the_image(kind: type[Kept], order: int, certify: bool) -> None:
    """Each image has rows of its own: n kept tokens of rank three."""
    torch.manual_seed(2)
    model, x = kind().eval(), torch.randn(4, 4, 3)
    x[:, :, 0] = -x[:, :, 0].abs()
    for image in range(4):
        x[image, : image + 1, 0] *= -1
    x = x if order == 1 else x.flip(0)
    profile = rs.jacobian_rank(model, x, cut_points=["last"], certify=certify, progress=False)
    kept = [1, 2, 3, 4][::order]
    spectra = [s for s in profile["last"].spectra if s is not None]
    assert [s.rank("paper").value for s in spectra] == [3 * n for n in kept]
    assert [s.shape for s in spectra] == [(5 * n, 12) for n in kept]
    assert profile.method.kind is not FactKind.LINEARISED, str(profile.method)
    str(profile), profile.table(), profile.to_dict()


class StraightThrough(Net):
    """One value everywhere, and one derivative or another, decided by the data."""

    def between(self, h: Tensor) -> Tensor:
        gate = (h.detach().sum(1, keepdim=True) > 0).to(h.dtype)
        return h.detach() + gate * (h - h.detach())


class Counting(Net):
    """Counts its calls in an attribute and takes another way at every second one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def between(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h.relu() if self.calls % 2 else h[:, :1].expand_as(h)


def test_a_straight_through_derivative_is_each_images_own() -> None:
    torch.manual_seed(4)
    model, x = StraightThrough().eval(), torch.randn(9, 8)
    profile = rs.jacobian_rank(model, x, cut_points=["last"], progress=False)
    with torch.no_grad():
        expected = [8 if float(model.first(image).sum()) > 0 else 0 for image in x]
    assert [e.value for e in profile["last"].estimates(profile.tolerance)] == expected
    assert {0, 8} == set(expected)


def test_each_call_starts_from_the_saved_state() -> None:
    torch.manual_seed(5)
    model, x = Counting().eval(), torch.randn(3, 8)
    held_to_truth(model, x)
    assert model.calls == 0


class Carried(nn.Module):
    """Row K2: a hidden state in an attribute, None at first."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.last = nn.GRUCell(6, 6), nn.Linear(6, 6)
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.r(x, self.h)
        return self.last(self.h)


class CarriedInList(nn.Module):
    """The same in a list that grows, of plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.last = nn.RNNCell(6, 6), nn.Linear(6, 6)
        self.past: dict[str, list[Tensor]] = {"h": []}

    def forward(self, x: Tensor) -> Tensor:
        h = self.r(x, self.past["h"][-1] if self.past["h"] else None)
        self.past["h"].append(h)
        return self.last(h)


@pytest.mark.parametrize("kind", [Carried, CarriedInList], ids=lambda k: k.__name__)
def test_k2_state_in_an_attribute(kind: type[nn.Module]) -> None:
    torch.manual_seed(6)
    model = kind().eval()
    held_to_truth(model, torch.randn(4, 6))
    state = model.h if isinstance(model, Carried) else model.past["h"]
    assert not state, "the model is left without a state, as it came"


# ---- a seeded fuzz of both rules -------------------------------------------------------------------------------------

PIECES: dict[str, Callable[[Tensor, nn.Linear], Tensor]] = {
    "linear": lambda h, lin: lin(h),
    "tanh": lambda h, lin: lin(h).tanh(),
    "relu": lambda h, lin: lin(h).relu(),
    "softmax": lambda h, lin: lin(h.softmax(1)),
    "branch": lambda h, lin: lin(h) if h.sum() > 0 else lin(h)[:, :2].repeat(1, 4),
    "batch mean": lambda h, lin: lin(h - h.mean(0)) if len(h) > 1 else lin(h),
    "weak neighbour": lambda h, lin: lin(h + 1e-5 * h.flip(0)) if len(h) > 1 else lin(h),
    "norm": lambda h, lin: lin(h) / (1 + h.norm().detach()),
    "sorted": lambda h, lin: lin(h) * (1 + torch.argsort(torch.argsort(h[:, 0])).to(h))[:, None],
    "mask": lambda h, lin: lin(torch.zeros_like(h).masked_scatter(h > 0, h[h > 0])),
    "first": lambda h, lin: lin(h) + h[:1].mean(),
}


class Random(nn.Module):
    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in self.names])
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in zip(self.names, self.layers, strict=True):
            x = PIECES[name](x, layer)
        return self.last(x)


@pytest.mark.parametrize("seed", range(16))
def test_fuzz_one_call_equals_each_image_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    names = list(PIECES)
    chosen = [names[int(i)] for i in torch.randint(len(names), (int(torch.randint(1, 4, (1,), generator=generator)),),
                                                   generator=generator)]  # fmt: skip
    kind = type("Random", (Random,), {"names": tuple(chosen)})
    images = int(torch.randint(1, 13, (1,), generator=generator))
    held_to_truth(kind().eval(), torch.randn(images, 8, generator=generator))


# ---- the float64 passes of several images at once --------------------------------------------------------------------


class BranchAlone(Net):
    """A branch that each image decides for itself, which no transform of several images can take."""

    def between(self, h: Tensor) -> Tensor:
        return torch.cat([row.relu() if row.sum() > 0 else row.tanh() for row in h.split(1)])


@pytest.mark.parametrize("kind", [Plain, WeightedConv, BranchAlone], ids=lambda k: k.__name__)
def test_float64_passes_side_by_side_find_what_each_alone_finds(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side where that runs, one at a time elsewhere; the model sees one image in either case."""
    from rankscope.jacobian import reference

    shapes = []
    original = reference.Reference._compute

    def counted(self: Any, x: Tensor, *rest: Tensor) -> Any:
        shapes.append(tuple(x.shape))
        return original(self, x, *rest)

    monkeypatch.setattr(reference.Reference, "_compute", counted)
    torch.manual_seed(7)
    model = kind().eval()
    width = 36 if kind is WeightedConv else 8
    x = torch.randn(10, width)
    together = held_to_truth(model, x)
    assert set(shapes) == {(1, width)}, "the model never sees a second image"
    assert len(shapes) == 1 or kind is BranchAlone
    monkeypatch.setattr(reference, "vmap", lambda *_, **__: 1 / 0)
    shapes.clear()
    alone = held_to_truth(model, x)
    assert len(shapes) == 10
    for a, b in zip(together["last"].spectra, alone["last"].spectra, strict=True):
        assert a is not None
        assert b is not None
        # both bounds are of float32's rounding, which float64's own (1e-16 of σ₁) does not reach
        assert abs(a.error_bound - b.error_bound) <= 1e-13 * float(a.singular_values[0])
