"""Collections that are taken up again, damaged or shared: the same question, or refused, or measured again and said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset

from rankscope._base.errors import OutputError
from rankscope._base.facts import FactKind, of_kind
from rankscope.features import Collection, collect

GOLDEN = Path(__file__).parent.parent / "golden-old"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc, self.factor = nn.Linear(4, 5), nn.Linear(5, 3), 2.0
        self.register_buffer("mask", torch.ones(5), persistent=False)

    def forward(self, x):
        return self.fc(torch.tanh(self.body(x) * self.factor) * self.mask)


class Cifar(Dataset):
    """Holds arrays, as torchvision's CIFAR10 does."""

    def __init__(self, transform=None, target_transform=None):
        self.data = torch.randn(24, 4, generator=torch.Generator().manual_seed(1)).numpy()
        self.targets = [i % 3 for i in range(24)]
        self.transform, self.target_transform = transform, target_transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = torch.from_numpy(self.data[i]), self.targets[i]
        return x if self.transform is None else self.transform(x), (
            y if self.target_transform is None else self.target_transform(y)
        )


def network():
    torch.manual_seed(0)
    return Net().eval()


OPTIONS = {"cut_points": ["body"], "shard_size": 8, "batch_size": 4}


def run(folder, model=None, data=None, **options):
    return collect(
        network() if model is None else model,
        Cifar(lambda x: x + 1) if data is None else data,
        out=folder,
        **{**OPTIONS, **options},
    )


def stopped(folder, after, **options):
    def stop(done, *_):
        if done == after:
            raise KeyboardInterrupt("stopped here")

    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        run(folder, progress=stop, **options)


def kinds(found):
    return {fact.kind for fact in found.facts}


def other_pixel(data, model):
    data.data[23, 3] += 1e-6


def other_label(data, model):
    data.targets[20] = 0


def other_labels_of_targets(data, model):
    data.target_transform = lambda y: (y + 1) % 3


def other_buffer(data, model):
    model.mask[4] = 0


def other_attribute(data, model):
    model.factor = 2.5


def other_forward(data, model):
    model.forward = lambda x: model.fc(model.body(x))


@pytest.mark.parametrize(
    ("change", "owner"),
    [
        (other_pixel, "data set"),
        (other_label, "data set"),
        (other_labels_of_targets, "data set"),
        (other_buffer, "model"),
        (other_attribute, "model"),
        (other_forward, "model"),
    ],
)
def test_f3_r1_another_question_is_refused(tmp_path, change, owner):
    run(tmp_path)
    data, model = Cifar(lambda x: x + 1), network()
    change(data, model)
    with pytest.raises(OutputError, match=f"holds shards of another {owner} "):
        run(tmp_path, model, data)
    assert len(run(tmp_path)) == 24


def test_f3_changed_content_of_a_listed_file_is_refused(tmp_path):
    class Listed(Dataset):
        def __init__(self, folder):
            self.samples = [(str(folder / f"{i}.npy"), i % 3) for i in range(12)]

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return torch.from_numpy(np.load(self.samples[i][0])), self.samples[i][1]

    files = tmp_path / "files"
    files.mkdir()
    for i in range(12):
        np.save(files / f"{i}.npy", np.full(4, i / 12, np.float32))
    run(tmp_path / "out", data=Listed(files))
    assert FactKind.READ_BACK in kinds(run(tmp_path / "out", data=Listed(files)))
    np.save(files / "11.npy", np.full(4, 2, np.float32))
    with pytest.raises(OutputError, match="shards of another data set"):
        run(tmp_path / "out", data=Listed(files))


@pytest.mark.parametrize("after", [4, 8, 16, 20, 24])
def test_f4_a_data_set_with_a_lambda_resumes_and_says_so(tmp_path, after):
    stopped(tmp_path / "a", after)
    found, whole = run(tmp_path / "a"), run(tmp_path / "whole")
    assert found == whole == Collection.load(tmp_path / "a")
    kept = (after // 8 - (after % 8 == 0)) * 8  # the callback comes before the shard is written
    assert found.resumed == kept
    if kept:
        (fact,) = of_kind(found.facts, FactKind.READ_BACK)
        assert (fact["kept"], fact["total"]) == (kept, 24)
        assert f"The results of {kept} of 24 samples were read back from an earlier run." in str(found)
        assert found.to_dict()["facts"] == [fact.to_dict()]
    else:
        assert found.facts == ()


def damage(folder, name, change):
    file = folder / name
    with safe_open(file, "pt") as stored:
        about = stored.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, about)


@pytest.mark.parametrize("name", ["shard-00000", "shard-00002", "moments-00002"])
def test_r4_changed_values_are_measured_again(tmp_path, name):
    whole = run(tmp_path)
    damage(tmp_path, f"{name}.safetensors", lambda t: next(iter(t.values())).view(-1)[0].add_(1))
    with pytest.raises(OutputError, match="does not have the checksum"):
        Collection.load(tmp_path)
    found = run(tmp_path)
    assert found == whole
    assert kinds(found) == {FactKind.KEPT_DAMAGED}
    assert Collection.load(tmp_path) == whole


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["shard-00001", "moments-00002"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_r4_any_flipped_bit_is_mended(finished, tmp_path, name, where, bit):
    folder, whole = finished
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    file.write_bytes(content)
    assert run(tmp_path / "copy") == whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


def test_r8_empty_files_are_measured_again(tmp_path):
    whole = run(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    assert run(tmp_path) == whole


@pytest.mark.parametrize(
    "names",
    [
        ["shard-00000"],
        ["shard-00001"],
        ["shard-00002"],
        ["shard-00000", "shard-00002"],
        ["moments-00002"],
        ["shard-00000", "shard-00001", "shard-00002"],
    ],
)
def test_a_file_that_was_deleted_is_collected_again_and_named(finished, tmp_path, names):
    folder, whole = finished
    shutil.copytree(folder, tmp_path / "copy")
    for name in names:
        (tmp_path / "copy" / f"{name}.safetensors").unlink()
    found = run(tmp_path / "copy")
    assert found == whole
    assert Collection.load(tmp_path / "copy") == whole
    (fact,) = found.facts
    assert fact.kind is FactKind.KEPT_MISSING
    assert fact["names"] == tuple(f"{name}.safetensors" for name in names)
    assert f"The folder no longer held {', '.join(fact['names'])}. Therefore all samples were measured again." in str(
        found
    )
    assert not kinds(run(tmp_path / "copy")) - {FactKind.READ_BACK}


def test_a_deleted_shard_whose_earlier_moments_are_there(finished, tmp_path):
    """As after a run that was killed before it removed them: they serve in place of the last."""
    whole = finished[1]
    stopped(tmp_path / "copy", 20)
    kept = (tmp_path / "copy" / "moments-00001.safetensors").read_bytes()
    run(tmp_path / "copy")
    (tmp_path / "copy" / "moments-00001.safetensors").write_bytes(kept)
    (tmp_path / "copy" / "shard-00002.safetensors").unlink()
    found = run(tmp_path / "copy")
    assert found == whole
    assert kinds(found) == {FactKind.KEPT_MISSING, FactKind.READ_BACK}
    said = "The folder no longer held shard-00002.safetensors. Therefore all samples after the first 16 were measured"
    assert said in str(found)


def test_moments_without_a_manifest_are_no_empty_folder(finished, tmp_path):
    folder, _ = finished
    shutil.copy(folder / "moments-00002.safetensors", tmp_path)
    with pytest.raises(OutputError, match="holds shards without a manifest"):
        run(tmp_path)


def test_shards_of_another_folder_do_not_mix_in(tmp_path):
    run(tmp_path / "a")
    model = network()
    model.factor = 3.0
    run(tmp_path / "b", model)
    shutil.copy(tmp_path / "b" / "shard-00001.safetensors", tmp_path / "a" / "shard-00001.safetensors")
    with pytest.raises(OutputError, match=r"belongs to another run than the manifest.json"):
        Collection.load(tmp_path / "a")
    assert kinds(run(tmp_path / "a")) == {FactKind.KEPT_DAMAGED}


def test_a_kept_batch_that_does_not_repeat_is_measured_again(tmp_path, monkeypatch):
    """As after a change that the identity cannot see: a variable whose name is made as it runs."""

    class Hidden(Net):
        def forward(self, x):
            import os

            return super().forward(x * float(os.environ["factor".upper()]))

    def again():
        torch.manual_seed(0)
        return run(tmp_path, Hidden().eval())

    monkeypatch.setenv("FACTOR", "1")
    first = again()
    monkeypatch.setenv("FACTOR", "1.1")
    found = again()
    assert kinds(found) == {FactKind.KEPT_DIFFERS}
    assert found != first
    assert kinds(again()) == {FactKind.READ_BACK}


def test_data_that_vary_are_taken_up_and_that_is_said(tmp_path):
    data = Cifar(lambda x: x + torch.randn(4))
    stopped(tmp_path, 20, data=data)
    found = run(tmp_path, data=Cifar(lambda x: x + torch.randn(4)))
    assert len(found) == 24
    assert FactKind.KEPT_DIFFERS not in kinds(found)


def test_what_cannot_be_compared_is_refused_with_its_type(tmp_path):
    data = Cifar()
    data.stream = (i for i in range(3))
    run(tmp_path, data=data)
    with pytest.raises(OutputError, match=r"data set holds objects that cannot be compared .*builtins.generator"):
        run(tmp_path, data=data)


RUNNER = """
import sys, torch
from torch import nn
from rankscope.features import collect
def wait(done, *_):
    if done == 4:
        print("collecting", flush=True)
        sys.stdin.readline()
torch.manual_seed(0)
found = collect(nn.Sequential(nn.Linear(4, 3)), (torch.randn(12, 4), torch.arange(12) % 3), out=sys.argv[1],
                batch_size=4, shard_size=4, progress=wait)
print(len(found), flush=True)
"""


def test_f5_two_collections_keep_out_of_each_others_folder(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "collecting\n"
    with pytest.raises(OutputError, match=rf"in use by another run \(process {other.pid}\)"):
        run(tmp_path)
    assert other.communicate("\n")[0] == "12\n"
    assert len(Collection.load(tmp_path)) == 12
    assert not (tmp_path / ".rankscope-lock").exists()


def test_a_shard_that_appears_is_refused(tmp_path):
    def intrude(done, *_):
        (tmp_path / "shard-00001.safetensors").write_bytes(b"x")

    with pytest.raises(OutputError, match=r"shard-00001.safetensors appeared while .* a folder of its own"):
        run(tmp_path, progress=intrude)


def test_a_collection_of_an_earlier_version_loads_and_is_not_continued(tmp_path):
    found = Collection.load(GOLDEN / "collection")
    assert found.features.shape == (12, 5)
    assert float(found.features.double().sum()) == pytest.approx(-5.7829, abs=1e-3)
    assert float(found.logits.double().sum()) == pytest.approx(-11.8408, abs=1e-3)
    assert int(found.moments["0"].count) == 12
    shutil.copytree(GOLDEN / "collection", tmp_path / "c")
    with pytest.raises(OutputError, match=r"collected by an earlier version of rankscope, .* give another folder"):
        run(tmp_path / "c")


def test_settings_that_are_no_settings_and_a_folder_in_a_shards_place(tmp_path):
    folder = tmp_path / "run"
    run(folder)
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('\\"channels\\":', '\\"channels\\";'))
    assert manifest.read_text() != whole
    with pytest.raises(OutputError, match=r"manifest.json' is damaged.*; collect again into another folder"):
        Collection.load(folder)
    plain = json.loads(whole)
    plain["fingerprint"]["setting"] = plain["fingerprint"]["setting"].replace('"channels":', '"channels";')
    del plain["checksum"], plain["key"]  # as an earlier version wrote it
    manifest.write_text(json.dumps(plain))
    with pytest.raises(OutputError, match=r"manifest.json cannot be read .*; collect again into another folder"):
        Collection.load(folder)
    manifest.write_text(whole)
    shard = next(folder.glob("shard-*"))
    shard.unlink()
    shard.mkdir()
    with pytest.raises(OutputError, match=r"cannot be removed \(.*\); give another folder, or delete this one"):
        run(folder)
