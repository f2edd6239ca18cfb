"""Every file that a run left or a model is loaded from, damaged in every way: it is named, or the answer is the same.

The files are found by listing the folders, so that a file that a later version writes is damaged too.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from rankscope import Lanczos
from rankscope._base.errors import RankscopeError
from rankscope.cli.array_files import read_arrays, read_labels
from rankscope.features import Collection, collect, feature_rank
from rankscope.features.feature_profile import FeatureProfile
from rankscope.jacobian import JacobianProfile, jacobian_rank
from rankscope.loading import load_model
from rankscope.loading.texts import load_tokenizer
from rankscope.monitor.history import Entry, History, Moment
from rankscope.spectra.density import SpectralDensity

FLIPS = 3  # of each file


class Net(nn.Sequential):
    """Small, with ranks that differ between layers."""


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)).eval()


X = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
DATA = X, torch.arange(6) % 3
WHOLE: dict[str, Any] = {"columns": "all", "method": Lanczos(2, 4), "cut_points": "all"}


class StoppedError(Exception):
    """The run ends here."""


def stops(after: int) -> Callable[[int, int | None, str], None]:
    def report(done: int, total: int | None, text: str) -> None:
        if done >= after:
            raise StoppedError

    return report


@dataclass(frozen=True)
class Place:
    """A folder with files: how it is made (for one seed), and what is read of it, as numbers that can be compared.

    ``sealed`` files carry checksums: no change of them may give other numbers. ``single`` files are results in
    themselves: another run's in their place is that result. ``each`` damages every file in every way, where reading
    takes no time, and else a file drawn for each way.
    """

    make: Callable[[Path, int], object]
    read: Callable[[Path], list[np.ndarray]]
    sealed: bool = True
    single: bool = False
    each: bool = True


def _spectra(profile: JacobianProfile) -> list[np.ndarray]:
    spectra = [s for layer in profile.layers for s in layer.spectra]
    return [s.alpha if isinstance(s, SpectralDensity) else np.asarray(s.singular_values) for s in spectra]


def _numbers(found: Collection) -> list[np.ndarray]:
    moments = [t.numpy() for m in found.moments.values() for t in (m.mean, m.scatter)]
    return [*(t.numpy() for t in (found.features, found.logits, found.labels, *found.head)), *moments]


def _profile(folder: Path, seed: int) -> None:
    jacobian_rank(net(seed), X[:2], progress=False).save(folder)


def _features(folder: Path, seed: int) -> None:
    feature_rank(net(seed), X, cut_points="all").save(folder / "features.json")


def _partial(folder: Path, seed: int) -> None:
    with contextlib.suppress(StoppedError):
        for images in (X[:1], X[:2]):
            jacobian_rank(net(seed), images, checkpoint=folder, progress=False)


def _partial_full(folder: Path, seed: int) -> None:
    report = _stop_at("sample 1: 2")
    with contextlib.suppress(StoppedError):
        jacobian_rank(net(seed), X[:2], checkpoint=folder, progress=report, **WHOLE)


def _stop_at(text: str) -> Callable[[int, int | None, str], None]:
    def report(done: int, total: int | None, said: str) -> None:
        if said.startswith(text):
            raise StoppedError

    return report


def _collect(folder: Path, seed: int = 0, **options: Any) -> Collection:
    given = {"shard_size": 2, "batch_size": 2, "cut_points": ["0", "2"], "progress": False}
    return collect(net(seed), DATA, out=folder, **{**given, **options})


def _stopped_collection(folder: Path, seed: int) -> None:
    with contextlib.suppress(StoppedError):
        _collect(folder, seed, progress=stops(6))


def _history(folder: Path, seed: int) -> None:
    history = History(folder / "history.jsonl")
    for step in range(4):
        history.add(Moment(step, (Entry("fc", "effective_rank", 2.5 + step + seed, 6),)))
    history.close()


def _history_read(folder: Path) -> list[np.ndarray]:
    return [History(folder / "history.jsonl", write=False).table()[["step", "value"]].to_numpy(np.float64)]


def _resumed(folder: Path) -> list[np.ndarray]:
    return _spectra(jacobian_rank(net(), X[:2], checkpoint=folder, progress=False))


def _resumed_full(folder: Path) -> list[np.ndarray]:
    return _spectra(jacobian_rank(net(), X[:2], checkpoint=folder, progress=False, **WHOLE))


def _of_features(folder: Path) -> list[np.ndarray]:
    found = FeatureProfile.load(folder / "features.json")
    return [np.array([layer.effective_rank for layer in found]), np.array([layer.pca_dimension for layer in found])]


FACTORY = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
"""


def _state(model: nn.Module) -> list[np.ndarray]:
    return [value.numpy() for _, value in sorted(model.state_dict().items())]


def _loaded(folder: Path, name: str = "") -> list[np.ndarray]:
    (folder.parent / "net.py").write_text(FACTORY)
    return _state(load_model(f"{folder.parent / 'net.py'}:net", weights=str(folder / name)).model)


def _weights(name: str, save: Callable[[Any, Path], object]) -> Place:
    def make(folder: Path, seed: int) -> None:
        save(net(seed).state_dict(), folder / name)

    return Place(make, lambda folder: _loaded(folder, name), sealed=False)


def _sharded(folder: Path, seed: int) -> None:
    state = net(seed).state_dict()
    names = sorted(state)
    places = {name: f"model-0000{1 + (k > 2)}-of-00002.safetensors" for k, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _arrays(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs, labels = rng.standard_normal((6, 6)).astype(np.float32), np.arange(6) % 3
    np.savez(folder / "both.npz", inputs=inputs, labels=labels)
    np.save(folder / "inputs.npy", inputs)
    np.save(folder / "labels.npy", labels)


def _arrays_read(folder: Path) -> list[np.ndarray]:
    found = read_arrays(folder / "both.npz")
    both = [found["inputs"], found["labels"]]
    return [t.numpy() for t in (*both, read_arrays(folder / "inputs.npy")[""], read_labels(folder / "labels.npy"))]


def _vit(folder: Path, seed: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(folder, max_shard_size="2KB")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def _vit_read(folder: Path) -> list[np.ndarray]:
    found = load_model(f"hf:{folder}")
    assert found.preprocessing is not None
    return [*_state(found.model), found.preprocessing(Image.new("RGB", (9, 9), (10, 80, 200))).numpy()]


def _tokenizer(folder: Path, seed: int) -> None:
    transformers, tokenizers = (pytest.importorskip(name) for name in ("transformers", "tokenizers"))
    words = ["the", "cat", "sat", "mat", "[UNK]"]
    known = {word: k for k, word in enumerate(words[seed:] + words[:seed])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)


def _tokens(folder: Path) -> list[np.ndarray]:
    return [np.array(load_tokenizer(str(folder))("the cat sat under the mat")["input_ids"])]


def _finished(folder: Path) -> list[np.ndarray]:
    return _numbers(Collection.load(folder))


def _collected(folder: Path) -> list[np.ndarray]:
    return _numbers(_collect(folder))


PLACES = {
    "profile": Place(_profile, lambda folder: _spectra(JacobianProfile.load(folder))),
    "features": Place(_features, _of_features, single=True),
    "collection": Place(_collect, _finished),
    "history": Place(_history, _history_read, single=True),
    "stopped profile": Place(_partial, _resumed, each=False),
    "stopped whole Jacobian": Place(_partial_full, _resumed_full, each=False),
    "stopped collection": Place(_stopped_collection, _collected, each=False),
    "collection again": Place(_collect, _collected, each=False),
    "weights of torch": _weights("weights.pt", torch.save),
    "old weights of torch": _weights("w.pth", lambda s, f: torch.save(s, f, _use_new_zipfile_serialization=False)),
    "safetensors": _weights("weights.safetensors", save_file),
    "shards": Place(_sharded, _loaded, sealed=False),
    "vision transformer": Place(_vit, _vit_read, sealed=False),
    "tokenizer": Place(_tokenizer, _tokens, sealed=False),
    "arrays": Place(_arrays, _arrays_read, sealed=False),
}
WAYS = ("half", "empty", "flipped", "another run's", "folder", "deleted", "link to nowhere", "link to itself", "noise")
# what no reader can see in a file without a checksum; a file that is absent may be one that nobody needs
UNSEEN = ("flipped", "another run's", "deleted")


def damage(file: Path, way: str, rng: random.Random, other: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    if way == "half":
        file.write_bytes(content[: len(content) // 2])
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "flipped":
        at = rng.randrange(len(content))
        file.write_bytes(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
    elif way == "another run's":
        shutil.copy(other, file)
    elif way == "folder":
        file.mkdir()
        (file / "inside").write_bytes(content)
    elif way == "link to nowhere":
        file.symlink_to(file.with_name("nowhere"))
    elif way == "link to itself":  # which nobody can read, not even who may read everything
        file.symlink_to(file)
    elif way == "noise":
        file.write_bytes(rng.randbytes(len(content)))


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    # a resumed run measures again what was damaged: equal up to the products' rounding in another batch
    return len(one) == len(other) and all(
        a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name", PLACES)
def test_a_damaged_file_is_named_or_changes_nothing(name: str, tmp_path: Path) -> None:
    place, rng = PLACES[name], random.Random(name)
    for seed in (0, 1):
        (tmp_path / f"{seed}").mkdir()
        place.make(tmp_path / f"{seed}", seed)
    files, others = _files(tmp_path / "0"), _files(tmp_path / "1")
    assert files

    def copied(seed: int = 0) -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / f"{seed}", tmp_path / "run")
        return tmp_path / "run"

    truth = place.read(copied())
    refused = 0
    for way in WAYS:
        for file in files if place.each else [rng.choice(files)]:
            alike = [other for other in others if other.name[:5] == file.name[:5]]  # names may hold a digest
            other = file if file in others else alike[0]
            for _ in range(FLIPS if way == "flipped" and place.each else 1):
                folder = copied()
                damage(folder / file, way, rng, tmp_path / "1" / other)
                try:
                    found = place.read(folder)
                except RankscopeError as error:
                    text = str(error)
                    assert "\n" not in text
                    # what is absent, and what fits no model, is told by the folder or by what it was looked for in
                    assert file.name in text or "run" in text or way in UNSEEN, (way, text)
                    refused += 1
                    continue
                if way in UNSEEN and not place.sealed:
                    continue
                allowed = [truth] + ([place.read(copied(1))] if place.single and way == "another run's" else [])
                if name == "history" and way in ("half", "empty"):  # a kill may cut the last lines
                    allowed.append([truth[0][: len(found[0])]])
                assert any(_same(found, one) for one in allowed), (file, way)
    assert refused or not place.each
