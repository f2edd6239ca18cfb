"""What ``collect``, ``feature_rank`` and ``local_feature_rank`` take: the same as ``jacobian_rank``, read alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset, get_worker_info

from rankscope._base.errors import DataError, ModelError, UsageError
from rankscope.features import classification_dimension, collect, feature_rank, local_feature_rank


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def data(n: int = 100) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(n, 6, generator=generator), torch.arange(n) % 3)


class Two(nn.Module):
    """Its second argument is added; one row per sample, or one for all."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x, shift):
        return self.fc(self.first(x) + shift)


class Records(Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i):
        return {k: v[i] for k, v in self.columns.items()}


def eigenvalues(layer) -> np.ndarray:
    return np.array(layer.to_dict()["eigenvalues"])


def pca(rows: torch.Tensor) -> np.ndarray:
    """Eigenvalues of the covariance by NumPy."""
    return np.linalg.eigvalsh(np.cov(rows.detach().double().numpy().T))[::-1]


CHOSEN = [3, 1, 4, 15, 9, 2, 6, 5, 35, 8, 97, 93, 23, 84, 62, 64, 33, 83, 27, 95]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"batch_sampler": [CHOSEN[:7], CHOSEN[7:]]}, CHOSEN),
        ({"batch_sampler": BatchSampler(CHOSEN, 6, drop_last=False)}, CHOSEN),
        ({"batch_sampler": BatchSampler(CHOSEN, 6, drop_last=True)}, CHOSEN[:18]),
        ({"sampler": CHOSEN, "batch_size": 6}, CHOSEN),
        ({"sampler": range(20), "batch_size": None}, list(range(20))),
        ({"batch_size": 30, "drop_last": True}, list(range(90))),
    ],
    ids=["batches", "sampler in batches", "drop_last", "sampler", "no batches", "whole data, drop_last"],
)
def test_f6_a_loader_gives_the_samples_that_it_names(tmp_path, options, kept):
    dataset = data()
    loader = DataLoader(dataset, **options)
    found = collect(network(), loader, out=tmp_path)
    x, y = dataset.tensors
    assert found.labels.tolist() == y[kept].tolist()
    hidden = network()[:2](x[kept])
    torch.testing.assert_close(found.features, hidden.detach())
    layer = feature_rank(network(), loader, cut_points=["1"])["1"]
    assert layer.samples == len(kept)
    np.testing.assert_allclose(eigenvalues(layer), pca(hidden), rtol=1e-4)


@pytest.mark.parametrize(
    "drawn",
    [BatchSampler(RandomSampler(range(100)), 5, drop_last=False), iter([[1, 2], [3]])],
    ids=["random batches", "an iterator that is used up"],
)
def test_f6_an_order_that_may_change_is_refused(tmp_path, drawn):
    with pytest.raises(UsageError, match=r"draws with .*Subset\(dataset, indices\)"):
        collect(network(), DataLoader(data(), batch_sampler=drawn), out=tmp_path)


class OpenedInWorkers(Dataset):
    """As those that keep a file of HDF5: it can be read where a worker has opened it."""

    def __init__(self):
        self.opened = None

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.opened[index]


def open_there(_):
    get_worker_info().dataset.opened = data()


@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_a_loaders_workers_are_started_as_it_starts_them(tmp_path, context):
    loader = DataLoader(
        OpenedInWorkers(), batch_size=4, num_workers=2, multiprocessing_context=context, worker_init_fn=open_there
    )
    x, y = data().tensors
    for resumed in (0, 12):
        found = collect(network(), loader, out=tmp_path, cut_points=["1"], progress=False)
        assert found.resumed == resumed
        assert found.labels.tolist() == y[:12].tolist()
        torch.testing.assert_close(found.features, network()[:2](x[:12]).detach())


@pytest.mark.parametrize("context", ["fork", "forkserver"])
@pytest.mark.parametrize("drawn", [{"drop_last": True}, {"sampler": range(0, 12, 2)}], ids=["whole", "every other"])
def test_workers_of_a_loader_that_draws_some_have_its_own_dataset(tmp_path, drawn, context):
    options = {"batch_size": 5, "num_workers": 1, "multiprocessing_context": context, "worker_init_fn": open_there}
    loader = DataLoader(OpenedInWorkers(), **options, **drawn)
    places = list(range(10)) if "drop_last" in drawn else list(range(0, 12, 2))
    x, y = data().tensors
    found = collect(network(), loader, out=tmp_path, cut_points=["1"], progress=False)
    assert found.labels.tolist() == y[places].tolist()
    torch.testing.assert_close(found.features, network()[:2](x[places]).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_f17_models_of_any_floating_dtype(tmp_path, dtype):
    net, dataset = network().to(dtype), data()
    x = dataset.tensors[0]
    truth = net[:2](x.to(dtype)).detach()
    layer = feature_rank(net, dataset, cut_points=["1"])["1"]
    low, high = layer.pca_bounds
    assert low <= 5 <= high
    np.testing.assert_allclose(eigenvalues(layer), pca(truth), rtol=1e-3, atol=1e-6)
    found = collect(net, dataset, out=tmp_path)
    assert found.features.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found.features.to(dtype), truth)
    assert local_feature_rank(net, x[:1], cut_points=["1"], samples=20, noise=0.1)["1"].samples == 20
    assert {p.dtype for p in net.parameters()} == {dtype}


def test_f17_samples_in_float64_go_through_a_model_in_float32(tmp_path):
    x, y = data().tensors
    whole = collect(network(), (x, y), out=tmp_path / "a")
    wide = collect(network(), (x.double().numpy(), y.numpy().astype(">i4")), out=tmp_path / "b")
    assert torch.equal(whole.features, wide.features)
    one = feature_rank(network(), x.double(), cut_points=["1"])["1"]
    np.testing.assert_allclose(eigenvalues(one), eigenvalues(feature_rank(network(), x, cut_points=["1"])["1"]))


def test_f17_a_data_set_a_loader_and_records_are_read_alike(tmp_path):
    dataset = data()
    x, y = dataset.tensors
    sources = {
        "tensor": x,
        "data set": dataset,
        "loader": DataLoader(dataset, 7),
        "records": Records(x=x, label=y),
        "mapping": {"input": x, "label": y},
        "pairs": [(row, int(label)) for row, label in zip(x, y, strict=True)],
    }
    expected = pca(network()[0](x))
    for name, source in sources.items():
        layer = feature_rank(network(), source, cut_points=["0"], batch_size=9)["0"]
        assert layer.samples == 100, name
        np.testing.assert_allclose(eigenvalues(layer), expected, rtol=1e-4, err_msg=name)


def test_f17_batches_that_are_mappings(tmp_path):
    generator = torch.Generator().manual_seed(2)
    x, shift, y = torch.randn(40, 6, generator=generator), torch.randn(40, 5, generator=generator), torch.arange(40) % 3
    torch.manual_seed(0)
    net = Two()
    features = (net.first(x) + shift).detach()
    records = Records(x=x, shift=shift, label=y, name=[f"picture {i}" for i in range(40)])
    for number, source in enumerate((records, DataLoader(records, 7), TensorDataset(x, shift, y))):
        found = collect(net, source, out=tmp_path / str(number), batch_size=9)
        torch.testing.assert_close(found.features, features)
        assert found.labels.tolist() == y.tolist()
    layer = feature_rank(net, {"x": x, "shift": shift[:1]}, cut_points=["fc"])["fc"]
    np.testing.assert_allclose(eigenvalues(layer), pca(net(x, shift[:1])), rtol=1e-3, atol=1e-7)
    with pytest.raises(UsageError, match=r'shared=\("shift",\) .* per_sample=\("shift",\)'):
        feature_rank(net, {"x": x[:5], "shift": shift[:5]}, cut_points=["fc"])
    layer = feature_rank(net, {"x": x[:5], "shift": shift[:5]}, cut_points=["first"], per_sample="shift")["first"]
    assert layer.samples == 5
    around = local_feature_rank(net, {"x": x[:1], "shift": shift[:1]}, cut_points=["fc"], samples=30)["fc"]
    assert (around.samples, around.pca_dimension) == (30, 3)


def test_f17_labels_in_words_are_named(tmp_path):
    x, _ = data(6).tensors
    words = ["cat", "dog", "cow"] * 2
    with pytest.raises(DataError, match=r"labels are text \('cat'\); give class indices"):
        collect(network(), list(zip(x, words, strict=True)), out=tmp_path / "a")
    with pytest.raises(DataError, match=r"labels are text \('cat'\)"):
        collect(network(), (x, np.array(words)), out=tmp_path / "b")
    with pytest.raises(DataError, match=r"labels are text \('cat'\)"):
        classification_dimension(x, words, (torch.randn(3, 6), None))


def test_f17_counts_and_empty_arrays_are_refused_in_one_line(tmp_path):
    net, dataset = network(), data()
    x, y = dataset.tensors
    for call in (
        lambda: feature_rank(net, x, batch_size=0),
        lambda: feature_rank({"a": x}, batch_size=0),
        lambda: local_feature_rank(net, x[:1], batch_size=0),
        lambda: collect(net, dataset, out=tmp_path, batch_size=0),
    ):
        with pytest.raises(UsageError, match="batch_size is 0; it must be a whole number of at least 1"):
            call()
    for call in (
        lambda: feature_rank({"a": torch.zeros(0, 4)}),
        lambda: feature_rank(np.zeros((4, 0))),
        lambda: feature_rank(net, torch.zeros(0, 6)),
        lambda: feature_rank(net, TensorDataset(x[:0], y[:0])),
        lambda: local_feature_rank(net, torch.zeros(0, 6)),
        lambda: collect(net, (torch.zeros(0, 6), torch.zeros(0)), out=tmp_path),
        lambda: classification_dimension(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (torch.eye(4), None)),
    ):
        with pytest.raises(DataError, match=r"\(0, [46]\)|\(4, 0\)|no (readable )?sample"):
            call()


def test_inputs_that_the_model_does_not_take_are_its_own_error(tmp_path):
    message = r"Sequential does not take torch.float32 inputs of shape \(1, 7\): mat1 and mat2"
    with pytest.raises(ModelError, match=message):
        feature_rank(network(), torch.randn(40, 7), cut_points=["0"])
    with pytest.raises(ModelError, match=message):
        collect(network(), (torch.randn(40, 7), torch.arange(40) % 3), out=tmp_path, cut_points=["0"])
