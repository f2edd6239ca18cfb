"""Features of models whose path depends on the sample, beside NumPy on what hooks keep of each sample alone."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rankscope as rs
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.features.path_layers import ChosenLayers, Entry
from rankscope.slicing.value_reads import reads_values


class Routed(nn.Module):
    """One of two experts for a whole call, by the sign of its first value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(6, 5)
        self.right, self.left = nn.Linear(6, 6), nn.Linear(6, 4)
        self.back = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.head(torch.tanh(self.right(h) if bool(x.flatten()[0] > 0) else self.back(self.left(h))))


class EachRouted(Routed):
    """The same for every row by itself."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        out = torch.zeros_like(h)
        for chosen, way in ((x[:, 0] > 0, self.right), (x[:, 0] <= 0, lambda rows: self.back(self.left(rows)))):
            if bool(chosen.any()):
                out = out.index_put((chosen.nonzero().flatten(),), way(h[chosen]))
        return self.head(torch.tanh(out))


class Exits(nn.Module):
    """Leaves early where the features are large: the last layer is one that only few samples call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        if h.norm().item() < 2.0:
            h = torch.tanh(self.deep(h))
        return self.head(h)


class ByLength(nn.Module):
    """A path that hangs on the shape, not on the values: texts of more than three tokens take another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.long, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.long if x.shape[1] > 3 else self.short)(x).mean(1))


def alone(model: nn.Module, samples: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What every layer returns for each sample alone, in float64, by layer."""
    model = copy.deepcopy(model).double().eval()
    rows: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, _a, out, n=name: rows.setdefault(n, []).append(out.detach()))
    for x in samples:
        model(x[None].double())
    return {name: torch.cat([r.flatten(0, -2) for r in found]).numpy() for name, found in rows.items()}


def dimension(rows: np.ndarray[Any, Any]) -> int:
    """PCA dimension of §6.1: λ ≥ eps·N·λ₁ over the N eigenvalues of the centred covariance."""
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    return int((values >= 2.0**-23 * min(rows.shape) * values[0]).sum())


def mixed(count: int = 12) -> Tensor:
    torch.manual_seed(3)
    x = torch.randn(count, 6)
    x[:, 0] = x[:, 0].abs() * torch.tensor([1.0, 1.0, -1.0, 1.0]).repeat(count // 4)
    return x


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("wanted", ["all", "blocks", ["left", "right", "head"], ["le*", "r*"], "left"])
@pytest.mark.parametrize("kind", [Routed, EachRouted, Exits])
def test_every_layer_that_some_sample_calls(kind: type[nn.Module], wanted: Any, batch_size: int) -> None:
    torch.manual_seed(0)
    net, x = kind().eval(), mixed()
    if kind is Exits:
        wanted = {"left": "deep"}.get(wanted, wanted) if isinstance(wanted, str) else ["d*", "head"]
        x = x * torch.linspace(0.3, 1.5, 12).flip(0)[:, None]
    profile = rs.feature_rank(net, x, cut_points=wanted, batch_size=batch_size)
    truth = alone(net, x)
    names = {layer.name for layer in profile.layers}
    if wanted == "all":
        assert names == set(truth)
    assert names & {"left", "deep"}
    for layer in profile.layers:
        assert layer.samples == len(truth[layer.name])
        assert layer.pca_dimension == dimension(truth[layer.name])
        # float32 layers of width six, compared by the share of the variance that each direction has
        values = np.linalg.svd(truth[layer.name] - truth[layer.name].mean(0), compute_uv=False) ** 2
        found = np.asarray(layer.covariance.singular_values)[: len(values)]
        np.testing.assert_allclose(found / found.sum(), (values / values.sum())[: len(found)], atol=1e-5)
    (fact,) = of_kind(profile.facts, FactKind.NOT_CALLED)
    missing = {layer.name: len(x) - layer.samples for layer in profile.layers if layer.samples < len(x)}
    assert dict(zip(fact["names"], fact["counts"], strict=True)) == missing
    assert len(of_kind(profile.facts, FactKind.CALLED_ALONE)) == 1


def test_layers_stand_in_order_of_depth() -> None:
    torch.manual_seed(0)
    names = [layer.name for layer in rs.feature_rank(Routed().eval(), mixed(), cut_points="all").layers]
    assert names.index("stem") < names.index("left") < names.index("back") < names.index("head")
    assert names.index("stem") < names.index("right") < names.index("head")


def test_a_path_that_hangs_on_the_shape() -> None:
    torch.manual_seed(0)
    net = ByLength().eval()
    samples = [torch.randn(2 + k % 4, 6) for k in range(16)]
    data = torch.utils.data.StackDataset(x=samples)
    profile = rs.feature_rank(net, data, cut_points="all", reduce="positions")
    truth = alone(net, samples)
    assert {layer.name for layer in profile.layers} == {"short", "long", "head"}
    for layer in profile.layers:
        assert layer.samples == len(truth[layer.name])
        assert layer.pca_dimension == dimension(truth[layer.name])
    assert not of_kind(profile.facts, FactKind.CALLED_ALONE)  # no value decides: one shape shares a pass


class Gated(nn.Module):
    """Values decide, of long texts alone, where they go."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.head = nn.Linear(6, 6), nn.Linear(6, 5)
        self.right, self.left = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        way = self.short if x.shape[1] <= 3 else self.right if bool(x[:, 0, 0].sum() > 0) else self.left
        return self.head(torch.tanh(way(x)).mean(1))


def texts(kind: type[nn.Module], *lengths: int) -> tuple[nn.Module, list[Tensor], dict[str, np.ndarray[Any, Any]]]:
    """A network, texts, and what every layer returns for each of them alone, as one row per text."""
    torch.manual_seed(0)
    net = kind().eval()
    samples = [torch.randn(length, 6) for length in lengths]
    rows: dict[str, list[Tensor]] = {}
    exact = copy.deepcopy(net).double()
    for name, module in exact.named_modules():
        if isinstance(module, nn.Linear):
            pooled = (lambda out: out.mean(1)) if name != "head" else (lambda out: out)
            module.register_forward_hook(
                lambda _m, _a, out, n=name, pool=pooled: rows.setdefault(n, []).append(pool(out.detach()))
            )
    for x in samples:
        exact(x[None].double())
    return net, samples, {name: torch.cat(found).numpy() for name, found in rows.items()}


@pytest.mark.parametrize("lengths", [[2, 4] * 8, [2] * 8 + [4] * 4 + [5] * 4, [2, 2, 5, 2, 4] * 3])
@pytest.mark.parametrize("wanted", ["all", "blocks", ["s*", "[lr]*"], ["head", "short", "l*"], None])
@pytest.mark.parametrize("kind", [ByLength, Gated])
def test_layers_that_longer_texts_alone_call(
    kind: type[nn.Module], wanted: Any, lengths: list[int], tmp_path: Path
) -> None:
    """Whether the long ones come one by one or share a batch; collected, stopped and taken up again likewise."""
    net, samples, truth = texts(kind, *lengths)
    data: Any = [(x, k % 5) for k, x in enumerate(samples)]
    # what the first text does not call and one pattern alone names
    patterns = {"right"} if wanted == ["head", "short", "l*"] else {"head"} if isinstance(wanted, list) else set()
    expected = set(truth) - patterns
    if wanted is not None:
        profile = rs.feature_rank(net, data, cut_points=wanted, reduce="pool", batch_size=4)
        assert {layer.name for layer in profile.layers} == {name for name in expected if len(truth[name]) > 1}
        for layer in profile.layers:
            assert (layer.samples, layer.pca_dimension) == (len(truth[layer.name]), dimension(truth[layer.name]))
    options: dict[str, Any] = {"cut_points": wanted, "batch_size": 4, "head": "head", "shard_size": 4}
    for stop in (0, len(samples) - 3):
        folder = tmp_path / str(stop)
        if stop:
            with pytest.raises(KeyboardInterrupt, match="stopped"):
                rs.collect(net, Until(data, stop), out=folder, **options)
        found = rs.collect(net, Until(data), out=folder, **options)
        assert bool(found.resumed) is bool(stop)
        np.testing.assert_allclose(found.logits.numpy(), truth["head"], atol=1e-5)  # float32, products of width six
        assert rs.Collection.load(folder).moments.keys() == found.moments.keys() == expected
        for name, moments in found.moments.items():
            rows = truth[name]
            assert int(moments.count) == len(rows)
            np.testing.assert_allclose(moments.scatter.numpy(), np.cov(rows.T, bias=True) * len(rows), atol=1e-4)
    with pytest.raises(rs.OutputError, match="holds shards of another setting"):  # a list of names looks no further
        rs.collect(net, Until(data), out=folder, **{**options, "cut_points": ["short", "head"]})


class Until(torch.utils.data.Dataset[Any]):
    """Pairs; reading one of them ends the run, which is no part of the data."""

    def __init__(self, pairs: Any, stop: int | None = None) -> None:
        self.pairs, self.run = pairs, threading.local()
        self.run.stop = stop

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> Any:
        if i == getattr(self.run, "stop", None):
            raise KeyboardInterrupt("stopped")
        return self.pairs[i]


class Detour(nn.Module):
    """Long texts call ``inner`` on a side path and ``last`` behind it; longer ones call ``inner`` on the only path."""

    def __init__(self) -> None:
        super().__init__()
        self.short, self.head = nn.Linear(6, 6), nn.Linear(6, 5)
        self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.short(x)
        if x.shape[1] == 4:
            h = self.last(h + self.inner(h))
        elif x.shape[1] > 4:
            h = self.inner(torch.tanh(h))
        return self.head(h.mean(1))


@pytest.mark.parametrize("lengths", [[2] * 3 + [4] * 3 + [5] * 3, [2] * 3 + [5] * 3 + [4] * 3])
def test_a_layer_that_one_path_chooses_and_another_does_not(lengths: list[int], tmp_path: Path) -> None:
    """It is left out where an earlier sample has passed it unmeasured."""
    net, samples, truth = texts(Detour, *lengths)
    data: Any = [(x, k % 5) for k, x in enumerate(samples)]
    profile = rs.feature_rank(net, data, cut_points="blocks", reduce="pool", batch_size=4)
    found = rs.collect(net, data, out=tmp_path / "a", cut_points="blocks", batch_size=4, shard_size=3, head="head")
    names = {layer.name for layer in profile.layers}
    assert names == set(found.moments)
    assert "last" in names
    assert ("inner" in names) is (lengths[3] == 5)
    for name in names:
        assert int(found.moments[name].count) == profile[name].samples == len(truth[name])


class Further(Detour):
    """The longest texts call one more layer behind ``inner``, so that their path is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 4:
            return self.head(self.more(self.inner(torch.tanh(self.short(x)))).mean(1))
        return super().forward(x)


@pytest.mark.parametrize("lengths", [[2] * 3 + [4] * 3 + [5] * 3, [2] * 3 + [5] * 3 + [4] * 3])
def test_a_layer_that_is_left_out_is_named(lengths: list[int], tmp_path: Path) -> None:
    net, samples, _ = texts(Further, *lengths)
    data: Any = [(x, k % 5) for k, x in enumerate(samples)]
    profile = rs.feature_rank(net, data, cut_points="blocks", reduce="pool", batch_size=4)
    found = rs.collect(net, data, out=tmp_path / "a", cut_points="blocks", batch_size=4, shard_size=2, head="head")
    again = rs.collect(net, data, out=tmp_path / "a", cut_points="blocks", batch_size=4, shard_size=2, head="head")
    late = [Fact(FactKind.CHOSEN_LATE, {"names": ("inner",)})] * (lengths[3] == 4)
    for record in (profile, found, again):
        assert list(of_kind(record.facts, FactKind.CHOSEN_LATE)) == late
    assert ("inner" in {layer.name for layer in profile.layers}) is not bool(late)


def test_layers_of_two_processes_that_one_of_them_did_not_choose_are_named() -> None:
    """Each looks at its own samples: one calls ``m`` and does not choose it, the other does."""
    entry = Entry("m", "m", 1, "m", 1)
    one, other = ChosenLayers((), {"m": 1}), ChosenLayers((entry,), {"m": 1})
    for first, second in ((one, other), (other, one)):
        both = first.joined(second)
        assert (both.names, both.left_out) == ([], (entry,))
        assert both.late == [Fact(FactKind.CHOSEN_LATE, {"names": ("m",)})]
        assert ChosenLayers.from_dict(json.loads(json.dumps(both.to_dict()))) == both
        assert both.joined(other).left_out == (entry,)
    none = ChosenLayers((), {})
    assert other.joined(none).late == none.joined(other).late == []


def test_loaders_bring_their_batches_and_samples_still_go_alone() -> None:
    torch.manual_seed(0)
    net, x = Routed().eval(), mixed()
    loader = DataLoader(TensorDataset(x), batch_size=6)
    given = rs.feature_rank(net, loader, cut_points="all")
    for layer, other in zip(given.layers, rs.feature_rank(net, x, cut_points="all", batch_size=1).layers, strict=True):
        assert (layer.name, layer.samples, layer.pca_dimension) == (other.name, other.samples, other.pca_dimension)


def test_the_neighbourhood_of_a_point_at_a_branch() -> None:
    """About half of the noisy copies take the other branch."""
    torch.manual_seed(0)
    net, x = Routed().eval(), torch.randn(1, 6)
    x[0, 0] = 0.0
    profile = rs.local_feature_rank(net, x, cut_points="all", noise=1e-2, samples=60, seed=5)
    generator = torch.Generator().manual_seed(5)
    step = 1e-2 * torch.stack([torch.randn(6, generator=generator) for _ in range(60)])
    right = int(((x + step)[:, 0] > 0).sum())
    assert 0 < right < 60
    assert (profile["right"].samples, profile["left"].samples, profile["stem"].samples) == (right, 60 - right, 60)


def test_a_layer_that_one_sample_calls_has_no_spread() -> None:
    torch.manual_seed(0)
    net, x = Routed().eval(), mixed()
    x[:, 0] = x[:, 0].abs()
    x[7, 0] = -1.0
    profile = rs.feature_rank(net, x, cut_points="all")
    assert "left" not in {layer.name for layer in profile.layers}
    (fact,) = of_kind(profile.facts, FactKind.CALLED_ONCE)
    assert set(fact["names"]) == {"left", "back"}
    with pytest.raises(rs.DataError, match="left: a covariance needs two samples; it got 1"):
        rs.feature_rank(net, x, cut_points=["left"])


class Stops(torch.utils.data.Dataset[Any]):
    """A data set whose sample 10 stops the run when it is read for the ``stop``-th time, which is no part of it."""

    def __init__(self, x: Tensor, stop: int = 0) -> None:
        self.x, self.run = x, threading.local()
        self.run.left = stop

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == 10:
            self.run.left -= 1
            if self.run.left == 0:
                raise KeyboardInterrupt("stopped")
        return self.x[i], i % 5


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("wanted", ["all", "blocks", ["left", "right"], ["le*", "stem"]])
@pytest.mark.parametrize("kind", [Routed, EachRouted])
def test_a_collection_has_every_layer_that_some_sample_calls(
    kind: type[nn.Module], wanted: Any, batch_size: int, tmp_path: Path
) -> None:
    """Stopped and taken up again, since what a shard holds of such a layer differs from shard to shard."""
    torch.manual_seed(0)
    net, x = kind().eval(), mixed()
    options: dict[str, Any] = {"cut_points": wanted, "batch_size": batch_size, "head": "head", "shard_size": 3}
    truth = alone(net, x)
    rs.collect(net, Stops(x), out=tmp_path / "a", **options)
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        rs.collect(net, Stops(x, 1), out=tmp_path / "b", **options)
    for folder in ("a", "b"):
        found = rs.collect(net, Stops(x), out=tmp_path / folder, **options)
        assert (folder == "b" and batch_size == 64) or found.resumed
        # what a sample gives in float32, by products of width six
        np.testing.assert_allclose(found.logits.numpy(), truth["head"], atol=1e-5)
        assert set(found.moments) >= {"left"}
        for name, moments in found.moments.items():
            if name not in truth:  # the output of the network, under its own name
                continue
            rows = truth[name]
            assert int(moments.count) == len(rows)
            scatter = np.cov(rows.T, bias=True) * len(rows)
            np.testing.assert_allclose(moments.scatter.numpy(), scatter, atol=1e-4)
        (fact,) = of_kind(found.facts, FactKind.NOT_CALLED)
        assert dict(zip(fact["names"], fact["counts"], strict=True))["left"] == 12 - len(truth["left"])
    assert rs.Collection.load(tmp_path / "a").moments.keys() == found.moments.keys()


def test_a_collection_names_what_no_sample_calls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for k, wanted in enumerate((["left"], ["le*"])):
        with pytest.raises(rs.CutPointError, match=r"layer 'le.*' is never called"):
            rs.collect(
                Routed().eval(), (mixed().abs(), torch.arange(12) % 5), out=tmp_path / str(k), cut_points=wanted,
                head="head",
            )  # fmt: skip


@pytest.mark.parametrize("wanted", [["left", "head"], "left", ["le*"], ["head", "le*"]])
def test_what_no_sample_calls_is_an_error(wanted: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(rs.CutPointError, match=r"layer 'le.*' is never called"):
        rs.feature_rank(Routed().eval(), mixed().abs(), cut_points=wanted)


@pytest.mark.parametrize(
    ("run", "reads"),
    [
        (lambda x: x * 2 if x.mean() > 0 else x, True),
        (lambda x: x[: int(x.sum().item())], True),
        (lambda x: x[x > 0].sum(), True),
        (lambda x: x.masked_select(x > 0), True),
        (lambda x: (x > 0).nonzero(), True),
        (lambda x: x.clone().mul_(2).view(-1)[0].item(), True),
        (lambda x: torch.equal(x, x + 1), True),
        (lambda x: torch.where(x > 0, x, -x).topk(2).values, False),
        (lambda x: x[:, torch.tensor([0, 1])].argmax(), False),
        (lambda x: x * torch.ones(3).sum().item(), False),  # a number, and none of the input's
    ],
)
def test_numbers_that_are_read(run: Any, reads: bool) -> None:
    assert reads_values(torch.tensor([[1.0, 2.0, 0.5]]), run) is reads
