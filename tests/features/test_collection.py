"""Collecting: one pass, taken up again after an interruption, never mixed, nothing lost on a full disk."""

from __future__ import annotations

import json
import resource
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rankscope._base.errors import CutPointError, DataError, ModelError, OutputError, UsageError
from rankscope.features import Collection, classification_dimension, collect, feature_rank
from rankscope.features.reduction import reduce_output
from rankscope.loading import ensure_torchvision


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3))


def data(n=50):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.arange(n) % 3)


def expected(net, dataset):
    net = network().eval()
    with torch.no_grad():
        features = net[:4](dataset.tensors[0])
        return features, net[4](features)


def test_a_collection_says_how_its_rows_were_made(tmp_path):
    found = collect(network(), data(), cut_points=["0"], reduce="positions", out=tmp_path)
    for one in (found, Collection.load(tmp_path)):
        layer = feature_rank(one)["0"]
        assert layer.reduce == one.reduce == "positions"
        assert layer.samples > 50


def test_one_pass_keeps_features_logits_labels_and_moments(tmp_path):
    net, dataset = network().train(), data()
    found = collect(net, dataset, cut_points=["0"], out=tmp_path, shard_size=16, batch_size=8)
    features, logits = expected(net, dataset)
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.logits, logits)
    assert found.labels.tolist() == dataset.tensors[1].tolist()
    assert found.indices.tolist() == list(range(50))
    assert len(found) == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "manifest.json",
        "moments-00003.safetensors",
        *[f"shard-0000{k}.safetensors" for k in range(4)],
    ]
    with torch.no_grad():
        pooled = network()[0](dataset.tensors[0]).mean((2, 3))
    np.testing.assert_allclose(found.moments["0"].compute().numpy(), np.cov(pooled.double().numpy().T), rtol=1e-4)
    assert feature_rank(found)["0"].samples == 50
    assert feature_rank(found)["0"].reduce == "pool"
    assert all(m.training for m in net.modules())
    assert not net[0]._forward_hooks
    clsdim = classification_dimension(found.features, found.labels, found.head, logits=found.logits, bootstrap=0)
    assert clsdim.ambient == 144
    assert json.loads(json.dumps(found.to_dict()))["samples"] == 50
    assert "50 samples, features of width 144, 3 classes" in str(found)


class Counting(Dataset):
    """What is read, and where reading stops, is state of the run: two of these are the same data set."""

    def __init__(self, inner, stop=None):
        self.inner, self.run = inner, threading.local()
        self.run.stop, self.run.read = stop, []

    @property
    def read(self):
        return self.run.read

    @property
    def stop(self):
        return self.run.stop

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        if i == self.stop:
            raise KeyboardInterrupt("stopped here")
        self.read.append(i)
        return self.inner[i]


@pytest.mark.parametrize("stop", [3, 17, 33, 49])
def test_it_goes_on_after_the_last_whole_shard(tmp_path, stop):
    whole = collect(network(), Counting(data()), cut_points=["0"], out=tmp_path / "whole", shard_size=16, batch_size=8)
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        collect(network(), Counting(data(), stop), cut_points=["0"], out=tmp_path / "a", shard_size=16, batch_size=8)
    rest = Counting(data())
    found = collect(network(), rest, cut_points=["0"], out=tmp_path / "a", shard_size=16, batch_size=8)
    assert found.resumed == stop // 16 * 16
    first = [*range(8)] * 2  # a kept batch is computed again, and read twice to see whether the data vary
    assert rest.read == [*(first if found.resumed else ()), *range(found.resumed, 50)]
    assert torch.equal(found.features, whole.features)
    assert torch.equal(found.labels, whole.labels)
    torch.testing.assert_close(found.moments["0"].compute(), whole.moments["0"].compute(), rtol=1e-12, atol=1e-15)
    again = Counting(data())
    kept = collect(network(), again, cut_points=["0"], out=tmp_path / "a", batch_size=8)
    assert torch.equal(kept.logits, whole.logits)
    assert again.read == first


def test_half_written_files_are_dropped(tmp_path):
    options = {"cut_points": ["0"], "out": tmp_path, "shard_size": 16, "batch_size": 8}
    whole = collect(network(), Counting(data()), **options)
    (tmp_path / "moments-00003.safetensors").rename(tmp_path / "moments-00002.safetensors")
    (tmp_path / ".part-shard-00004.safetensors").write_bytes(b"x")
    # as if stopped between a shard and its moments: what counts are the moments after shard 2
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        collect(network(), Counting(data(), 49), cut_points=["0"], out=tmp_path / "c", shard_size=16, batch_size=8)
    (tmp_path / "moments-00002.safetensors").write_bytes((tmp_path / "c" / "moments-00002.safetensors").read_bytes())
    manifest = (tmp_path / "c" / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(manifest)
    found = collect(network(), Counting(data()), **options)
    assert found.resumed == 48
    assert int(found.moments["0"].count) == 50
    assert torch.equal(found.features, whole.features)
    assert not (tmp_path / ".part-shard-00004.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": network(5)}, "model"),
        ({"data": data(49)}, "data set"),
        ({"cut_points": ["1"]}, "setting"),
        ({"reduce": "flatten"}, "setting"),
    ],
)
def test_shards_of_another_run_are_refused(tmp_path, change, part):
    options = {"model": network(), "data": data(), "cut_points": ["0"], "reduce": "pool"}
    collect(**options, out=tmp_path)
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    with pytest.raises(OutputError, match=f"holds shards of another {part} .*give another folder"):
        collect(**{**options, **change}, out=tmp_path)
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


def test_changed_values_are_another_data_set(tmp_path):
    collect(network(), data(), out=tmp_path)
    other = data()
    other.tensors[0][30, 0, 0, 0] += 1
    with pytest.raises(OutputError, match="another data set"):
        collect(network(), other, out=tmp_path)


def test_full_disk_costs_the_open_shard_alone(tmp_path):
    options = {"cut_points": ["0"], "out": tmp_path, "shard_size": 16, "batch_size": 8}
    whole = collect(network(), data(), cut_points=["0"], out=tmp_path / "whole", shard_size=16, batch_size=8)

    class Shrinking(Counting):
        def __getitem__(self, i):
            if i == 32 and self.stop:  # from here on no file may grow beyond a kilobyte
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            return self.inner[i]

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OutputError, match=r"no space left .* writing shard 2; the 2 shards before it are complete"):
            collect(network(), Shrinking(data(), stop=99), **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".part")]
    found = collect(network(), Shrinking(data()), **options)
    assert found.resumed == 32
    assert torch.equal(found.features, whole.features)


def test_unreadable_images_are_named_skipped_and_counted(tmp_path):
    image = pytest.importorskip("PIL.Image")
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Grayscale, ToTensor

    g = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            pixels = g.integers(0, 255, (8, 8), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    bad = tmp_path / "data" / "a" / "4.png"
    bad.write_bytes(bad.read_bytes()[:60])
    (tmp_path / "data" / "b" / "0.png").write_bytes(b"no image")
    dataset = ImageFolder(tmp_path / "data", Compose([Grayscale(), ToTensor()]))
    found = collect(network(), dataset, out=tmp_path / "out", shard_size=4, batch_size=2)
    assert [(one.index, one.name) for one in found.skipped] == [
        (4, str(bad)),
        (6, str(tmp_path / "data" / "b" / "0.png")),
    ]
    assert "UnidentifiedImageError" in found.skipped[1].reason
    assert found.indices.tolist() == [0, 1, 2, 3, 5, 7, 8, 9, 10, 11]
    assert "2 unreadable samples skipped" in str(found)
    again = collect(network(), dataset, out=tmp_path / "out", shard_size=4, batch_size=2)
    assert again.skipped == found.skipped
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable sample \(12 skipped; the first: .*0.png: Unidentified"):
        collect(network(), dataset, out=tmp_path / "none")


def test_loaders_arrays_and_dictionaries_give_the_same(tmp_path):
    dataset = data()
    x, y = dataset.tensors

    class Records(Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, i):
            return {"pixel_values": x[i], "label": int(y[i])}

    whole = collect(network(), dataset, out=tmp_path / "0")
    sources = [DataLoader(dataset, 7), (x.numpy(), y.numpy()), Records()]
    for i, source in enumerate(sources, 1):
        found = collect(network(), source, out=tmp_path / str(i))
        torch.testing.assert_close(found.features, whole.features)
        assert torch.equal(found.labels, whole.labels)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return 2 * self.fc(self.stem(x))


def test_bad_input_is_named(tmp_path):
    net, dataset = network(), data()
    x, y = dataset.tensors

    def attempt(*args, **options):
        return collect(*args, **{"out": tmp_path / "out", **options})

    bad = x.clone()
    bad[19, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="final features: sample 19 holds a NaN"):
        attempt(net, (bad, y), out=tmp_path / "nan")
    with pytest.raises(ModelError, match="the output of 'fc' is not what the model returns"):
        attempt(Inner(), (torch.randn(6, 4), torch.arange(6)))
    with pytest.raises(ModelError, match="has no layer 'nope' to be the head"):
        attempt(net, dataset, head="nope")
    with pytest.raises(ModelError, match="head '0' is a Conv2d"):
        attempt(net, dataset, head="0", out=tmp_path / "conv")
    with pytest.raises(CutPointError, match="no layer '7'"):
        attempt(net, dataset, cut_points=["7"], out=tmp_path / "cut")
    with pytest.raises(UsageError, match=r"draws with RandomSampler; .*shuffle=False"):
        attempt(net, DataLoader(dataset, shuffle=True))
    with pytest.raises(UsageError, match="data is a int"):
        attempt(net, 3)
    with pytest.raises(DataError, match="49 labels for 50 inputs"):
        attempt(net, (x, y[1:]))
    with pytest.raises(DataError, match=r"labels are torch.float32 of shape \(50,\)"):
        attempt(net, (x, y.float()), out=tmp_path / "float")
    with pytest.raises(UsageError, match="shard_size is 0"):
        attempt(net, dataset, shard_size=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into"):
        attempt(net, dataset, out=tmp_path / "file")


class Poison(nn.Module):
    """Sample 13's map is not finite, what leaves the block is."""

    def forward(self, x):
        return torch.where(x.isfinite(), x, 0)


@pytest.mark.parametrize("reduce", ["pool", "flatten", "positions"])
def test_a_layer_that_is_not_finite_is_named_with_its_sample(tmp_path, reduce):
    x, y = data().tensors
    x = x.clone()
    x[13, 0, 2, 2] = torch.inf
    net = nn.Sequential(nn.Identity(), Poison(), *network())
    with pytest.raises(DataError, match=r"^0: sample 13 holds a NaN or infinite"):
        collect(net, (x, y), cut_points=["0"], reduce=reduce, out=tmp_path, batch_size=8)


def test_damaged_folders_are_named(tmp_path):
    collect(network(), data(), out=tmp_path / "a")
    (tmp_path / "a" / "shard-00000.safetensors").write_bytes(b"damaged")
    with pytest.raises(OutputError, match=r"shard-00000.safetensors' cannot be read .*delete the folder and collect"):
        Collection.load(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match=r"manifest.json' cannot be read .*; collect again into another folder"):
        collect(network(), data(), out=tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text('{"schema_version": 9, "fingerprint": {}}')
    with pytest.raises(OutputError, match="has schema_version 9; this release reads 1"):
        collect(network(), data(), out=tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(OutputError, match="shards without a manifest"):
        collect(network(), data(), out=tmp_path / "a")


def test_default_cut_points_are_the_narrow_blocks(tmp_path):
    wide = nn.Sequential(nn.Linear(4, 20_000), nn.ReLU(), nn.Linear(20_000, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(9, 4), torch.arange(9) % 3
    found = collect(wide, (x, y), out=tmp_path / "a")
    assert [m.width for m in found.moments.values()]
    assert max(m.width for m in found.moments.values()) < 20_000
    assert list(collect(wide, (x, y), cut_points=[], out=tmp_path / "b").moments) == []
    assert list(collect(wide, (x, y), cut_points="[34]", out=tmp_path / "c").moments) == ["3", "4"]


def test_a_collection_is_read_back_without_model_or_data(tmp_path):
    made = collect(network(), data(), cut_points=["4", "0"], out=tmp_path, shard_size=16, batch_size=8)
    found = Collection.load(tmp_path)
    for name in ("features", "logits", "labels", "indices"):
        assert torch.equal(getattr(found, name), getattr(made, name))
    assert list(found.moments) == ["4", "0"]
    assert torch.equal(found.moments["0"].compute(), made.moments["0"].compute())
    assert all(torch.equal(a, b) for a, b in zip(found.head, made.head, strict=True))
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        collect(network(), Counting(data(), 40), cut_points=["0"], out=tmp_path / "part", shard_size=16, batch_size=8)
    with pytest.raises(OutputError, match=r"is not finished \(32 of 50 samples\)"):
        Collection.load(tmp_path / "part")


class Unreadable(Counting):
    def __getitem__(self, i):
        if i >= 48:
            raise OSError("gone")
        return self.inner[i]


def test_unreadable_last_samples_leave_a_finished_collection(tmp_path):
    made = collect(network(), Unreadable(data()), cut_points=["0"], out=tmp_path, shard_size=16, batch_size=8)
    found = Collection.load(tmp_path)
    assert [one.index for one in found.skipped] == [one.index for one in made.skipped] == [48, 49]
    assert torch.equal(found.features, made.features)
    assert len(found) == 48


def test_nothing_is_copied_that_is_not_kept(tmp_path, monkeypatch):
    """Feature maps are reduced as they come; of arrays not one sample is read alone."""
    seen = []

    def reduced(output, *args, **kwargs):
        made = reduce_output(output, *args, **kwargs)
        seen.append((output.shape, made.shape))
        return made

    monkeypatch.setattr("rankscope.features.passes.reduce_output", reduced)
    dataset = data()
    dataset_type = type(dataset)
    monkeypatch.setattr(dataset_type, "__getitem__", lambda self, i: pytest.fail("a sample was read alone"))
    collect(network(), dataset, cut_points=["0"], out=tmp_path, batch_size=25)
    # one sample shows what a call leaves, whether it is random, whether its values decide what is computed, and that it
    # is a sample; one pass as they come, and two whose operators are followed, of all and of one; seven changed ones
    # show that no two of 25 change each other (seven is the least n with C(n, n // 2) of 25 or more), and one more, and
    # seven of one sample, that their places change nothing
    sizes = [1] * 4 + [25] * 2 + [1] + [25] * 7 + [1] * 7 + [25] + [25] * 2
    assert seen == [((n, 4, 6, 6), (n, 4)) for n in sizes]


def test_rows_that_share_memory_with_the_map_are_kept_apart(tmp_path):
    # the ReLU after it works in place
    found = collect(network(), data(), cut_points=["0"], reduce="flatten", out=tmp_path)
    with torch.no_grad():
        rows = network()[0](data().tensors[0]).flatten(1)
    np.testing.assert_allclose(
        found.moments["0"].compute().numpy(), np.cov(rows.double().numpy().T), rtol=1e-3, atol=1e-6
    )


def test_finite_values_whose_sum_overflows_are_no_error(tmp_path):
    class Huge(nn.Module):
        def forward(self, x):
            return 0 * x + 1e308

    net = nn.Sequential(nn.Linear(4, 3), Huge(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        net[2].weight.zero_()
    x, y = torch.randn(40, 4, dtype=torch.float64), torch.arange(40) % 3
    found = collect(net, (x, y), cut_points=["0"], out=tmp_path)
    assert torch.equal(found.features, torch.full((40, 3), 1e308, dtype=torch.float64))
    assert bool(found.logits.isfinite().all())


@pytest.mark.cuda
@pytest.mark.parametrize("reduce", ["pool", "positions", "flatten"])
def test_a_gpu_gives_what_the_cpu_gives(tmp_path, reduce):
    options = {"cut_points": ["0"], "reduce": reduce, "shard_size": 16, "batch_size": 8}
    here = collect(network(), data(), out=tmp_path / "cpu", **options)
    there = collect(network().cuda(), data(), out=tmp_path / "cuda", **options)
    torch.testing.assert_close(there.features, here.features, rtol=1e-3, atol=1e-3)
    assert torch.equal(there.labels, here.labels)
    assert torch.equal(there.indices, here.indices)
    torch.testing.assert_close(there.moments["0"].compute().cpu(), here.moments["0"].compute(), rtol=1e-2, atol=1e-3)
    assert torch.equal(Collection.load(tmp_path / "cuda").features, there.features)
    x, y = data().tensors
    x = x.clone()
    x[19] = torch.nan
    with pytest.raises(DataError, match="sample 19 holds a NaN"):
        collect(network().cuda(), (x, y), out=tmp_path / "nan", **options)


@pytest.mark.parametrize("stop", [None, 33])
def test_working_beside_a_device_changes_nothing(tmp_path, monkeypatch, stop):
    options = {"cut_points": ["0"], "shard_size": 16, "batch_size": 8}
    whole = collect(network(), Counting(data()), out=tmp_path / "whole", **options)
    monkeypatch.setattr("rankscope.features.collecting._works_beside", lambda device: True)
    if stop is not None:
        with pytest.raises(KeyboardInterrupt, match="stopped here"):
            collect(network(), Counting(data(), stop), out=tmp_path / "a", **options)
    found = collect(network(), Counting(data()), out=tmp_path / "a", **options)
    assert found.resumed == (0 if stop is None else 32)
    for name in ("features", "logits", "labels", "indices"):
        assert torch.equal(getattr(found, name), getattr(whole, name))
    torch.testing.assert_close(found.moments["0"].compute(), whole.moments["0"].compute(), rtol=1e-12, atol=1e-15)
    assert Collection.load(tmp_path / "a").moments["0"].count == 50
    x, y = data().tensors
    x = x.clone()
    x[49] = torch.nan
    with pytest.raises(DataError, match="final features: sample 49 holds a NaN"):
        collect(network(), (x, y), out=tmp_path / "nan", **options)


def test_tokens_have_no_default_cut_points(tmp_path):
    net = nn.Sequential(nn.Embedding(7, 5), nn.Flatten(), nn.Linear(20, 3))
    tokens, labels = torch.arange(48).reshape(12, 4) % 7, torch.arange(12) % 3
    assert list(collect(net, (tokens, labels), out=tmp_path / "a").moments) == []
    assert list(collect(net, (tokens, labels), cut_points=["1"], out=tmp_path / "b").moments) == ["1"]
    with pytest.raises(CutPointError, match=r"int64 inputs do not have; name layers"):
        collect(net, (tokens, labels), cut_points="blocks", out=tmp_path / "c")


SEEN = []  # beside the module, whose own attributes are given back as they were


class Spy(nn.Module):
    """Counts its calls in a buffer and a list, draws a random number, and notes the arithmetic that it runs under."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.linear = nn.Linear(3, 2)
        self.seen = []

    def forward(self, x):
        self.calls += 1
        torch.rand(1)
        self.seen.append(1)
        SEEN.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return self.linear(x)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("what", ["collect", "feature_rank", "local_feature_rank"])
def test_the_caller_finds_model_flags_and_random_state_as_they_were(tmp_path, what, broken):
    from rankscope.features import local_feature_rank

    SEEN.clear()
    net, inputs = Spy().train(), torch.randn(12, 3)
    pairs = [(x, i % 2) for i, x in enumerate(inputs)]
    if broken:
        inputs[5] = torch.nan
    torch.set_float32_matmul_precision("high")
    state, tf32 = torch.get_rng_state(), torch.backends.cudnn.allow_tf32
    run = {
        "collect": lambda: collect(net, pairs, out=tmp_path, cut_points=["linear"]),
        "feature_rank": lambda: feature_rank(net, inputs, cut_points=["linear"]),
        "local_feature_rank": lambda: local_feature_rank(net, inputs[5:6], cut_points=["linear"], samples=20),
    }[what]
    try:
        if broken:
            with pytest.raises(DataError, match="NaN"):
                run()
        else:
            run()
        assert torch.equal(torch.get_rng_state(), state)
        assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == (tf32, "high")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert net.seen == []
    assert set(SEEN) <= {(False, "highest")}
    assert SEEN or (broken and what == "local_feature_rank")  # one bad input is refused before the model runs
    assert float(net.calls) == 0
    assert net.training


def test_channels_last_maps_are_pooled_over_their_positions(tmp_path):
    """Swin's maps are n × H × W × C: pooled by themselves to C, as the model's own pooling does."""
    ensure_torchvision()
    import timm

    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=3, embed_dim=12, depths=(1, 1), num_heads=(2, 2), img_size=56
    ).eval()
    inputs, labels = torch.randn(6, 3, 56, 56), torch.tensor([0, 1, 2] * 2)
    found = collect(model, (inputs, labels), cut_points=["layers.0", "norm"], out=tmp_path / "square")
    assert {name: m.width for name, m in found.moments.items()} == {"layers.0": 12, "norm": 24}
    # what the network itself pools is what goes into its head
    torch.testing.assert_close(found.moments["norm"].state()[1].float(), found.features.mean(0), rtol=1e-4, atol=1e-5)
    profile = feature_rank(model, inputs, cut_points=["layers.0", "norm"], reduce="pool")
    assert [layer.width for layer in profile] == [12, 24]


def test_maps_of_images_that_are_not_square_are_taken_channels_first(tmp_path):
    """Eight channels of 8 × 12 from an image of 8 × 12: by its shape alone this could be channels last."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 96, 2)).eval()
    inputs, labels = torch.randn(6, 1, 8, 12), torch.tensor([0, 1] * 3)
    found = collect(model, (inputs, labels), cut_points=["0"], out=tmp_path / "wide")
    with torch.no_grad():
        expected = model[0](inputs).mean((2, 3)).mean(0)
    torch.testing.assert_close(found.moments["0"].state()[1].float(), expected, rtol=1e-5, atol=1e-6)
    assert feature_rank(model, inputs, cut_points=["0"], reduce="pool")["0"].width == 8


class Level(nn.Module):
    def __init__(self, level, dtype):
        super().__init__()
        self.level, self.fc = level, nn.Linear(6, 3).to(dtype)

    def forward(self, x):
        return self.fc(x + self.level)


def test_f8_a_collected_run_of_a_float64_network_keeps_its_digits(tmp_path):
    """Mean 1e6 and spread 0.05: in float32 one unit in the last place is 0.06, and the accuracy was that of noise."""
    torch.manual_seed(0)
    n, level = 240, 1e6
    y = torch.arange(n) % 3
    x = 0.05 * (torch.eye(3, 6)[y] + 0.05 * torch.randn(n, 6)).double()
    net = Level(level, torch.float64)
    with torch.no_grad():
        net.fc.weight.copy_(torch.eye(3, 6))
        net.fc.bias.zero_()
    for found in (collect(net, (x, y), out=tmp_path, shard_size=100), Collection.load(tmp_path)):
        assert {found.features.dtype, found.logits.dtype, found.head[0].dtype} == {torch.float64}
        assert torch.equal(found.features, x + level)
        result = classification_dimension(
            found.features, found.labels, found.head, projection="centred", logits=found.logits, bootstrap=0
        )
        assert result.full_accuracy == 1.0
        assert result.curve[-1] == 1.0
        assert result.dimension < 6


def test_f8_shards_cut_to_float32_by_an_earlier_run_are_measured_again(tmp_path, monkeypatch):
    from rankscope.features import collection_run, resuming

    x, y = torch.randn(40, 6).double(), torch.arange(40) % 3
    net = Level(0.0, torch.float64).eval()
    with monkeypatch.context() as patch:
        patch.setattr(collection_run, "kept_whole", lambda values: values.float())
        assert collect(net, (x, y), out=tmp_path).features.dtype == torch.float32
    assert Collection.load(tmp_path).features.dtype == torch.float32
    found = collect(net, (x, y), out=tmp_path)
    assert found.features.dtype == torch.float64
    assert found.resumed == 0
    assert [fact.kind for fact in found.facts] == [resuming.FactKind.KEPT_DIFFERS]


@pytest.mark.parametrize("reduce", ["pool", "positions", "flatten"])
def test_half_precision_maps_keep_their_rounding_in_a_collection(tmp_path, reduce):
    """The bounds of a collection are those of the features themselves, also when it is resumed and read back."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net[0].bias.fill_(100.0)
    net = net.to(torch.bfloat16)
    x, y = torch.randn(60, 1, 5, 5).to(torch.bfloat16), torch.arange(60) % 3
    direct = feature_rank(net, x, cut_points=["0"], reduce=reduce)["0"]

    def stop(done, total, text):
        if done >= 32:
            raise InterruptedError("stopped")

    with pytest.raises(InterruptedError, match="stopped"):
        collect(net, (x, y), cut_points=["0"], reduce=reduce, out=tmp_path, shard_size=16, batch_size=8, progress=stop)
    found = collect(net, (x, y), cut_points=["0"], reduce=reduce, out=tmp_path, shard_size=16, batch_size=8)
    assert found.resumed
    for one in (found, Collection.load(tmp_path)):
        layer = feature_rank(one)["0"]
        assert direct.limited_by == layer.limited_by == "precision"
        assert layer.pca_bounds == direct.pca_bounds
        assert layer.pca_bounds[0] < layer.pca_bounds[1]
