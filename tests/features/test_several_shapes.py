"""Samples of several shapes, whole mappings and data without labels, beside plain loops over single samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Ragged
from torch import nn
from torch.utils.data import DataLoader, Dataset, StackDataset

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.features import Collection, collect, feature_rank
from rankscope.loading.texts import Texts


@pytest.fixture
def net() -> Ragged:
    torch.manual_seed(0)
    return Ragged(4, 6, 3).double().eval()


LENGTHS = [3, 3, 5, 2, 2, 2, 3, 5, 1, 4, 4, 3]


def ragged() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in LENGTHS]


class Labelled(Dataset[Any]):
    """(x, label); the samples in ``broken`` cannot be read."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.inputs, self.broken = ragged(), broken

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        if index in self.broken:
            raise OSError("cut off")
        return {"x": self.inputs[index], "label": index % 3}


def hidden(net: Ragged, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Each sample alone, in plain torch."""
    with torch.no_grad():
        return torch.stack([torch.tanh(x @ net.inner.weight.T + net.inner.bias).mean(0) for x in inputs])


def covariance(rows: torch.Tensor) -> np.ndarray:
    return np.cov(rows.numpy().T)


def test_collect_takes_each_sample_at_its_own_length(net: Ragged, tmp_path: Path) -> None:
    found = collect(net, Labelled(), out=tmp_path, cut_points=["inner"], batch_size=5, shard_size=4)
    inputs = ragged()
    assert found.indices.tolist() == list(range(12))
    assert found.labels.tolist() == [i % 3 for i in range(12)]
    expected = hidden(net, inputs)
    # float64 sums of at most 5 terms near one: far below 1e-12
    torch.testing.assert_close(found.features, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logits, expected @ net.fc.weight.T.detach() + net.fc.bias.detach())
    with torch.no_grad():
        pooled = torch.stack([net.inner(x).mean(0) for x in inputs])
    moments = found.moments["inner"]
    np.testing.assert_allclose(moments.scatter.numpy() / 11, covariance(pooled), atol=1e-12)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_goes_on_between_two_shapes_and_unreadable_samples(net: Ragged, tmp_path: Path, stop: int) -> None:
    dataset = Labelled(broken=(1, 4, 11))
    options: dict[str, Any] = {"cut_points": ["inner"], "batch_size": 6, "shard_size": 1}
    calls = 0

    def interrupt(_done: int, _total: int | None, _text: str) -> None:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise KeyboardInterrupt("stopped")

    with pytest.raises(KeyboardInterrupt, match="stopped"):
        collect(net, dataset, out=tmp_path / "a", progress=interrupt, **options)
    found = collect(net, dataset, out=tmp_path / "a", **options)
    whole = collect(net, dataset, out=tmp_path / "b", **options)
    assert found.indices.tolist() == whole.indices.tolist() == [0, 2, 3, 5, 6, 7, 8, 9, 10]
    assert [one.index for one in found.skipped] == [one.index for one in whole.skipped] == [1, 4, 11]
    expected = hidden(net, [ragged()[i] for i in found.indices.tolist()])
    torch.testing.assert_close(found.features, expected, rtol=0, atol=1e-12)
    assert int(found.moments["inner"].count) == 9


@pytest.mark.parametrize("loaded", [False, True])
def test_feature_rank_takes_each_sample_at_its_own_length(net: Ragged, loaded: bool) -> None:
    dataset: Any = StackDataset(x=ragged())
    data = DataLoader(dataset, batch_size=1) if loaded else dataset
    with torch.no_grad():
        maps = [net.inner(x) for x in ragged()]
    for reduce, rows in (("pool", torch.stack([m.mean(0) for m in maps])), ("positions", torch.cat(maps))):
        layer = feature_rank(net, data, cut_points=["inner"], reduce=reduce, batch_size=4)["inner"]
        assert layer.samples == len(rows)
        found = np.array(layer.to_dict()["eigenvalues"])
        expected = np.linalg.eigvalsh(covariance(rows))[::-1]
        # features have width 6 and inputs 4: the last two are rounding, relative to the largest
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-10 * expected[0])


def test_rows_of_several_widths_are_refused(net: Ragged, tmp_path: Path) -> None:
    with pytest.raises(rs.DataError, match=r"inner: 30 dimensions for one sample and 18 for another.*reduce=\"pool\""):
        feature_rank(net, StackDataset(x=ragged()), cut_points=["inner"], reduce="flatten")
    with pytest.raises(rs.DataError, match=r"inner: 30 dimensions for sample 2 and 18 before.*reduce=\"pool\""):
        collect(net, Labelled(), out=tmp_path, cut_points=["inner"], reduce="flatten")


def test_the_axis_of_channels_is_that_of_each_sample(tmp_path: Path) -> None:
    """Square maps may be channels-last by their shape, others are not: each sample's own shape decides."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 3, 3), (1, 4, 6), (1, 5, 5), (1, 4, 7), (1, 6, 6)]
    images = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    with torch.no_grad():
        rows = torch.stack([net[0](x[None])[0].flatten(1).mean(1) for x in images])
    layer = feature_rank(net, StackDataset(images), cut_points=["0"], reduce="pool")["0"]
    expected = np.linalg.eigvalsh(covariance(rows))[::-1]
    found = np.array(layer.to_dict()["eigenvalues"])
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-10 * expected[0])


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.inner(x) @ mask) + t[:, None])


def test_a_whole_mapping_is_read_by_the_one_reader(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Shifted().double().eval()
    generator = torch.Generator().manual_seed(2)
    x, mask, t = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((6, 4), (6, 6), (6,)))
    labels = torch.arange(6) % 3
    with torch.no_grad():
        expected = torch.stack([torch.tanh(net.inner(x[i]) @ mask) + t[i] for i in range(6)])
    inputs = {"x": x, "mask": mask, "t": t}
    with pytest.raises(rs.UsageError, match=r"'mask' has shape \(6, 6\) beside 6 samples.*shared=\(\"mask\",\)"):
        collect(net, (inputs, labels), out=tmp_path / "open", per_sample="t")
    named: dict[str, Any] = {"shared": "mask", "per_sample": "t"}
    for k, data in enumerate(({**inputs, "label": labels}, (inputs, labels))):
        found = collect(net, data, out=tmp_path / str(k), batch_size=4, cut_points=[], **named)
        torch.testing.assert_close(found.features, expected, rtol=0, atol=1e-12)
        assert found.labels.tolist() == labels.tolist()
        counted = Fact(FactKind.COUNTED, {"name": "x", "per_sample": ("t",), "shared": ("mask",)})
        assert counted in found.facts
        assert counted in Collection.load(tmp_path / str(k)).facts
        assert "Each row of x is a sample. Each sample has its own t. All samples share mask." in str(found)
    profile = feature_rank(net, inputs, cut_points=["fc"], **named)
    assert counted in profile.facts
    with torch.no_grad():
        wanted = np.linalg.eigvalsh(covariance(net.fc(expected)))[::-1]
    found_values = np.array(profile["fc"].to_dict()["eigenvalues"])
    np.testing.assert_allclose(found_values, wanted[: len(found_values)], atol=1e-10 * wanted[0])
    # what is said of the names belongs to the question
    with pytest.raises(rs.OutputError, match="another"):
        collect(net, (inputs, labels + 1), out=tmp_path / "1", cut_points=[], **named)


def test_the_input_that_counts_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.fc(a + b)

    net = Both().eval()
    inputs = {"a": torch.randn(5, 4), "b": torch.randn(5, 4)}
    with pytest.raises(rs.UsageError, match=r'2 inputs could count the samples.*differentiate="a"'):
        collect(net, (inputs, None), out=tmp_path)
    found = collect(net, (inputs, None), out=tmp_path, differentiate="a", per_sample="b")
    torch.testing.assert_close(found.features, inputs["a"] + inputs["b"])


def test_no_label_is_said_and_not_made_up(net: Ragged, tmp_path: Path) -> None:
    x = torch.stack(ragged()[:2]).repeat(3, 1, 1)
    for k, inputs in enumerate((x, {"x": x})):
        found = collect(net, (inputs, None), out=tmp_path / str(k), cut_points=[])
        assert found.labels.tolist() == [-1] * 6
        torch.testing.assert_close(found.features, hidden(net, list(x)), rtol=0, atol=1e-12)
        with pytest.raises(rs.DataError, match="samples have no class"):
            rs.classification_dimension(found.features, found.labels, head=found.head)
    with pytest.raises(rs.UsageError, match=r"a dict of x, species, so no label; .*None for no labels"):
        collect(net, {"x": x, "species": torch.arange(6)}, out=tmp_path / "x")


def test_texts_are_passed_one_by_one(net: Ragged, tmp_path: Path) -> None:
    lengths: list[int] = []
    net.register_forward_pre_hook(lambda _m, _a, kwargs: lengths.append(len(kwargs["x"])), with_kwargs=True)
    texts = Texts([str(i) for i in range(12)], [{"x": x} for x in ragged()])
    for k, data in enumerate((texts, DataLoader(texts, batch_size=4))):
        found = collect(net, data, out=tmp_path / str(k), cut_points=[])
        assert set(found.labels.tolist()) == {-1}
        torch.testing.assert_close(found.features, hidden(net, ragged()), rtol=0, atol=1e-12)
    feature_rank(net, texts, cut_points=["inner"], reduce="pool")
    assert set(lengths) == {1}


@pytest.mark.parametrize("training", [False, True])
def test_what_is_loaded_keeps_the_mode_of_the_model(net: Ragged, tmp_path: Path, training: bool) -> None:
    found = collect(net.train(training), Labelled(), out=tmp_path, cut_points=[])
    fact = Fact(FactKind.TRAINING_MODE)
    assert (fact in found.facts) is training
    assert (fact in Collection.load(tmp_path).facts) is training
    assert Collection.load(tmp_path).facts.count(fact) == int(training)
    copied = found.save(tmp_path / "copy")
    assert Collection.load(copied).facts == Collection.load(tmp_path).facts
    assert json.dumps(found.to_dict())
