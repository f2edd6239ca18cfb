"""Samples that share a pass give what each gives alone: beside plain calls of the model, in float64, one at a time."""

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
from rankscope.features.shared_pass import _patterns


class Net(nn.Module):
    """One layer whose features depend on the batch in the way that ``kind`` names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.mixed, self.head = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 4)
        self.norm = nn.BatchNorm2d(6, track_running_stats=False)
        self.steps = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        match self.kind:
            case "mean":
                h = h - 0.5 * h.mean(0)
            case "statistics":
                maps = h[:, :, None, None] * torch.arange(4, dtype=h.dtype).reshape(2, 2).sin()
                h = h + self.norm(maps)[:, :, 0, 1]
            case "steps":  # two dimensions are one sequence to it
                h = self.steps(h)[0]
            case "directions":  # whatever the lengths of the rows
                unit = nn.functional.normalize(h, dim=1)
                h = h + (unit @ unit.T).softmax(1) @ h
            case "earlier":
                h = h.cumsum(0)
            case "halves":
                h = h + h.roll(len(h) // 2, 0)
            case "largest":
                h = h / h.abs().max()
            case "own":
                h = torch.tanh(h)
            case "noisy":
                h = h + 1e-3 * torch.randn_like(h)
        return self.head(torch.tanh(self.mixed(h)))


COUPLED = ["mean", "statistics", "steps", "directions", "earlier", "halves", "largest"]


def rows_alone(net: nn.Module, x: Tensor, name: str) -> np.ndarray[Any, Any]:
    exact = copy.deepcopy(net).double()
    found: list[Tensor] = []
    exact.get_submodule(name).register_forward_hook(lambda _m, _a, out: found.append(out.detach()))
    for one in x:
        exact(one[None].double())
    return torch.cat(found).numpy()


def covariance(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2 / (len(rows) - 1)


@pytest.mark.parametrize("cut_points", ["all", ["mixed", "head"]])
@pytest.mark.parametrize("kind", [*COUPLED, "own"])
def test_samples_that_change_each_other_are_called_alone(kind: str, cut_points: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net(kind).eval(), torch.randn(24, 6)
    profile = rs.feature_rank(net, x, cut_points=cut_points, batch_size=12)
    collected = rs.collect(net, (x, torch.arange(24) % 4), out=tmp_path / "a", cut_points=cut_points, head="head")
    for facts in (profile.facts, collected.facts):
        assert [fact["coupled"] for fact in of_kind(facts, FactKind.CALLED_ALONE)] == [True] * (kind != "own")
    for name in ("mixed", "head"):
        rows = rows_alone(net, x, name)
        # float32 layers of width six
        wanted = covariance(rows)
        atol = 1e-5 * wanted[0]
        found = profile[name].covariance.singular_values[: len(wanted)] * profile[name].scale ** 2
        np.testing.assert_allclose(found / found.sum(), (wanted / wanted.sum())[: len(found)], atol=1e-5)
        scatter = np.cov(rows.T, bias=True) * len(rows)
        np.testing.assert_allclose(collected.moments[name].scatter.numpy(), scatter, atol=max(atol, 1e-4))
    np.testing.assert_allclose(collected.logits.numpy(), rows_alone(net, x, "head"), atol=1e-5)


class Embedded(nn.Module):
    """Ids or numbers whose features depend on the sum over the batch, also where all samples are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.stem, self.mixed = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x) if x.is_floating_point() else self.table(x.long()).mean(1)
        return self.mixed(h - 0.5 * h.sum(0))


def equal_at_first(kind: str) -> Tensor:
    """Two batches of eight: samples that are all alike, then others."""
    generator = torch.Generator().manual_seed(3)
    if kind == "zeros":
        return torch.cat([torch.zeros(8, 6), torch.randn(8, 6, generator=generator)])
    if kind == "switches":
        return torch.cat([torch.zeros(8, 5), torch.randint(0, 2, (8, 5), generator=generator)]).bool()
    ids = torch.randint(0, 9, (8, 5), generator=generator)
    first = torch.zeros(8, 5, dtype=torch.int64) if kind == "one id" else torch.tensor([1, 2, 3, 2, 1]).expand(8, 5)
    return torch.cat([first, ids])


@pytest.mark.parametrize("kind", ["zeros", "one id", "palindrome", "switches"])
def test_a_first_batch_of_equal_samples_decides_nothing_wrong(kind: str) -> None:
    torch.manual_seed(0)
    net, x = Embedded().eval(), equal_at_first(kind)
    found: list[Tensor] = []
    handle = net.mixed.register_forward_hook(lambda _m, _a, out: found.append(out.detach().double()))
    for one in x:
        net(one[None])
    handle.remove()
    rows = torch.cat(found).numpy()
    profile = rs.feature_rank(net, x, cut_points=["mixed"], batch_size=8)
    assert [fact["coupled"] for fact in of_kind(profile.facts, FactKind.CALLED_ALONE)] == [True]
    wanted = covariance(rows)
    measured = profile["mixed"].covariance.singular_values[: len(wanted)]
    # float32 layers of width six
    np.testing.assert_allclose(measured / measured.sum(), (wanted / wanted.sum())[: len(measured)], atol=1e-5)


def test_samples_that_are_all_alike_say_nothing_of_a_model_that_mixes_none() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 4)).eval()
    profile = rs.feature_rank(net, equal_at_first("one id"), cut_points=["2"], batch_size=8)
    assert not of_kind(profile.facts, FactKind.CALLED_ALONE)


def test_noise_of_the_model_couples_nothing() -> None:
    torch.manual_seed(0)
    profile = rs.feature_rank(Net("noisy").eval(), torch.randn(24, 6), cut_points="all")
    assert not of_kind(profile.facts, FactKind.CALLED_ALONE)


def test_a_neighbourhood_of_a_model_that_mixes_samples() -> None:
    """The noisy copies are samples of their own."""
    torch.manual_seed(0)
    net, x = Net("largest").eval(), torch.randn(1, 6)
    profile = rs.local_feature_rank(net, x, cut_points=["mixed"], samples=30, noise=1e-2, seed=2)
    generator = torch.Generator().manual_seed(2)
    rows = rows_alone(net, x + 1e-2 * torch.stack([torch.randn(6, generator=generator) for _ in range(30)]), "mixed")
    wanted = covariance(rows)
    found = profile["mixed"].covariance.singular_values[: len(wanted)]
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=1e-4)  # float32 beside noise of 1%


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)), (3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.ReLU()), (3, 8, 8)),  # no channel sees another
        (nn.Sequential(nn.Conv1d(12, 12, 1)), (12, 4)),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.InstanceNorm2d(4)), (4, 5, 5)),
    ],
    ids=["convolution", "depthwise", "one dimension", "transposed"],
)
def test_channels_of_an_image_without_its_batch_dimension_are_no_samples(
    net: nn.Module, shape: tuple[int, ...]
) -> None:
    with pytest.raises(rs.ModelError, match=r"give x\[None\] if it is one sample"):
        rs.feature_rank(net.eval(), torch.randn(shape), cut_points=["0"])


@pytest.mark.parametrize("batch_size", [4, 64])
def test_a_dynamically_quantised_layer_scales_by_its_batch(batch_size: int) -> None:
    """Its scale is that of the largest entry in a pass, so that a sample's own answer needs a pass of its own."""
    torch.manual_seed(0)

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            step = x.abs().max() / 7
            return self.layer((x / step).round() * step)

    net, x = Quantised().eval(), torch.randn(24, 6)
    profile = rs.feature_rank(net, x, cut_points=["layer"], batch_size=batch_size)
    wanted = covariance(rows_alone(net, x, "layer"))
    found = profile["layer"].covariance.singular_values[: len(wanted)]
    np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=1e-5)


class OneOf(nn.Module):
    """A stem, what one kind of mixing leaves of it, and a head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.mixed, self.head = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 4)

    def mixing(self, h: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mixed(self.mixing(self.stem(x)))))


class FarApart(OneOf):
    """Samples that change each other where few look: two of a hundred, those of a group, or those beyond a capacity."""

    def mixing(self, h: Tensor) -> Tensor:
        if self.kind == "two samples" and len(h) > 90:
            h = h.index_add(0, torch.tensor([1]), h[90:91])
        elif self.kind == "the other two" and len(h) > 90:
            h = h.index_add(0, torch.tensor([90]), h[1:2])
        elif self.kind == "large batches" and len(h) > 20:  # statistics over groups of twenty
            h = torch.cat([part - part.mean(0) for part in h.split(20)])
        elif self.kind == "capacity":  # the first forty of those that one expert wants
            wants = h[:, 0] > 0
            h = torch.where((wants & (wants.cumsum(0) > 40))[:, None], h, 2 * h)
        return h


@pytest.mark.parametrize("kind", ["two samples", "the other two", "large batches", "capacity", "none"])
def test_samples_that_change_each_other_far_apart(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net, x = FarApart(kind).eval(), torch.randn(100, 6)
    rows = rows_alone(net, x, "mixed")
    profile = rs.feature_rank(net, x, cut_points=["mixed"], batch_size=100)
    collected = rs.collect(net, (x, torch.arange(100) % 4), out=tmp_path, cut_points=["mixed"], batch_size=100)
    for facts in (profile.facts, collected.facts):
        assert [fact["coupled"] for fact in of_kind(facts, FactKind.CALLED_ALONE)] == [True] * (kind != "none")
    wanted = covariance(rows)
    # a sample that another changed would be off by as much as the samples differ
    np.testing.assert_allclose(profile["mixed"].covariance.singular_values, wanted, rtol=1e-5)
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(collected.moments["mixed"].scatter.numpy(), centred.T @ centred, atol=1e-4 * wanted[0])
    np.testing.assert_allclose(collected.logits.numpy(), rows_alone(net, x, "head"), atol=1e-5)


def test_a_larger_batch_is_looked_at_again() -> None:
    torch.manual_seed(2)
    net, x = FarApart("large batches").eval(), torch.randn(60, 6)
    batches = [list(range(10)), list(range(10, 60))]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_sampler=batches)
    profile = rs.feature_rank(net, loader, cut_points=["mixed"])
    assert of_kind(profile.facts, FactKind.CALLED_ALONE)
    wanted = covariance(rows_alone(net, x, "mixed"))
    np.testing.assert_allclose(profile["mixed"].covariance.singular_values, wanted, rtol=1e-5)


@pytest.mark.parametrize("count", [*range(2, 40), 64, 128, 1000])
def test_of_any_two_samples_one_pass_changes_the_first_alone(count: int) -> None:
    changed = torch.stack(_patterns(count)).double()
    assert bool(((changed.T @ (1 - changed)) > 0).logical_or(torch.eye(count, dtype=torch.bool)).all())
    assert len(changed) <= 2 * int(np.ceil(np.log2(count)))


class Crossed(OneOf):
    """The sum of a batch, or another number of it, is compared with a threshold that few samples cross."""

    def mixing(self, h: Tensor) -> Tensor:
        match self.kind:
            case "sum":
                h = h + (h.sum() > 99)
            case "any":
                h = h * (1 + (h > 20).any())
            case "sort":
                h = h + (h.sort(0).values - 20).relu()
            case "earlier":
                h = h + (h - 20).relu().cumsum(0)
            case "array":
                h = h + torch.from_numpy((h.detach().numpy().max(0) > 20).astype("float32"))
            case "read in a batch":
                h = h if len(h) == 1 or h.max() < 20 else h.flip(1)
            case "number of samples":
                h = h * (h < 4 * len(h))
            case "smaller batch":
                h = h if len(h) in (1, 8) else h - h.mean(0)
            case "own":
                h = h + (h.sum(1, keepdim=True) > 99)
        return h


CROSSED = ["sum", "any", "sort", "earlier", "array", "read in a batch", "number of samples", "smaller batch"]


@pytest.mark.parametrize("kind", [*CROSSED, "own"])
def test_a_threshold_that_only_later_samples_cross(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Crossed(kind).eval(), torch.randn(30, 6)
    x[20] *= 60
    rows = rows_alone(net, x, "mixed")
    profile = rs.feature_rank(net, x, cut_points=["mixed"], batch_size=8)
    collected = rs.collect(net, (x, torch.arange(30) % 4), out=tmp_path, cut_points=["mixed"], batch_size=8)
    for facts in (profile.facts, collected.facts):
        assert len(of_kind(facts, FactKind.CALLED_ALONE)) == (kind != "own")
    wanted = covariance(rows)
    # float32 layers of width six, and one sample sixty times as large as the others
    np.testing.assert_allclose(profile["mixed"].covariance.singular_values, wanted, rtol=1e-4)
    np.testing.assert_allclose(collected.logits.numpy(), rows_alone(net, x, "head"), atol=1e-4)
