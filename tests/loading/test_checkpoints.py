"""Checkpoints as people have them (rows C1 to C9 and R9): torch's own loading is the oracle, value by value."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from rankscope._base.errors import ModelError, UsageError
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.loading import load_model, load_weights, read_weights
from rankscope.loading.weights import MisfitError

State = dict[str, torch.Tensor]


def network(seed: int = 0, classes: int | None = 2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential()
        model.add_module("conv", nn.Conv2d(1, 3, 3))
        model.add_module("norm", nn.BatchNorm2d(3))
        model.add_module("flat", nn.Flatten())
        model.add_module("head", nn.Identity() if classes is None else nn.Linear(3, classes))
        return model


STATE: State = network(1).state_dict()
OTHER: State = network(2).state_dict()


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def under(prefix: str, state: State) -> State:
    return {prefix + k: v for k, v in state.items()}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_c1_what_is_left_over_is_named(tmp_path: Path) -> None:
    file = save(
        tmp_path / "w.ckpt",
        {
            "state_dict": {**under("model.", STATE), "criterion.pos_weight": torch.ones(2)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
            "epoch": 3,
        },
    )
    model = network()
    found = load_weights(model, file)
    assert same(model, STATE)
    assert found.description == "file w.ckpt (9 tensors, from 'state_dict.model')"
    left = {"file": "w.ckpt", "names": ("state_dict.criterion.pos_weight",)}
    assert found.facts == (Fact(FactKind.FILE_LEFT_OVER, left),)


# neighbours of C1: one wrapper more, the parts of a GAN, a model that wraps the network of the file
NESTED: dict[str, Any] = {
    "parallel inside": {"state_dict": {**under("model.module.", STATE), "loss.weight": torch.ones(2)}},
    "compiled part": {k.replace("conv.", "conv._orig_mod."): v for k, v in STATE.items()},
    "deep": {"a": {"b": {"c": {"d": STATE}}}},
    "own wrapper": {"ema_decay": torch.tensor(0.9), "net_state": STATE},
    "encoder beside decoder": {"encoder": STATE, "decoder": {"fc.weight": torch.ones(4, 4)}},
    "g_ema alone": {"g_ema": STATE},
    "twice the same": {"model": STATE, "best": {k: v.clone() for k, v in STATE.items()}},
}


@pytest.mark.parametrize("case", NESTED)
def test_c6_nested_weights_that_fit_alone(tmp_path: Path, case: str) -> None:
    model = network()
    load_weights(model, save(tmp_path / "w.pth", NESTED[case]))
    assert same(model, STATE)


def test_a_model_that_wraps_the_network_of_the_file(tmp_path: Path) -> None:
    model = nn.Module()
    model.add_module("backbone", network())
    load_weights(model, save(tmp_path / "w.pth", {"state_dict": STATE}))
    assert same(model.backbone, STATE)  # type: ignore[arg-type]


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "g_ema", "swa_model"])
def test_c6_averaged_weights_beside_the_plain_ones(tmp_path: Path, average: str) -> None:
    file = save(tmp_path / "w.pth", {average: OTHER, "weights": STATE})
    model = network()
    fact = load_weights(model, file).facts[0]
    assert same(model, STATE)
    assert (fact.kind, fact["file"]) == (FactKind.FILE_ALSO_FITS, "w.pth")
    assert fact["names"] == (average,)
    model = network()
    assert load_weights(model, file, key=average).description.endswith(f"from {average!r})")
    assert same(model, OTHER)


def test_c6_two_sets_are_ambiguous_and_the_key_chooses(tmp_path: Path) -> None:
    content = {"student": under("module.backbone.", STATE), "teacher": under("backbone.", OTHER)}
    file = save(tmp_path / "w.pth", content)
    model = network()
    with pytest.raises(UsageError, match=r"2 sets of weights that fit the model: '(student|teacher)\.backbone'"):
        load_weights(model, file)
    assert same(model, network().state_dict())
    for key, expected in (("student", STATE), ("teacher", OTHER), ("teacher.backbone", OTHER)):
        load_weights(model, file, key=key)
        assert same(model, expected)
    with pytest.raises(UsageError, match=r'weights_key="techer": .* has no tensors under it; did you mean .teacher.'):
        load_weights(model, file, key="techer")


def test_names_that_are_the_models_own_win_over_a_copy_inside(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", {"state_dict": {**STATE, **under("momentum.", OTHER)}})
    model = network()
    fact = load_weights(model, file).facts[0]
    assert same(model, STATE)
    assert fact["names"] == ("state_dict.momentum",)


class Tied(nn.Module):
    def __init__(self, tie: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        if tie:
            self.out.weight = self.embed.weight


def test_c2_tied_weights(tmp_path: Path) -> None:
    source = Tied(seed=1)
    save_model(source, str(tmp_path / "w.safetensors"))
    # without the note that save_model leaves, as Hugging Face saves
    save_file({"embed.weight": source.embed.weight.detach().clone()}, tmp_path / "bare.safetensors")
    for name in ("w", "bare"):
        model = Tied()
        load_weights(model, tmp_path / f"{name}.safetensors")
        assert torch.equal(model.out.weight, source.embed.weight)
        assert model.out.weight is model.embed.weight
    model = Tied(tie=False)
    load_weights(model, tmp_path / "w.safetensors")  # the file says which tensor the other one was
    assert torch.equal(model.out.weight, source.embed.weight)
    with pytest.raises(MisfitError, match=r"1 missing from the file: out\.weight"):
        load_weights(Tied(tie=False), tmp_path / "bare.safetensors")


def test_c2_different_tensors_for_tied_weights_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", Tied(tie=False, seed=3).state_dict())
    with pytest.raises(MisfitError, match=r"different tensors for 'embed\.weight' and 'out\.weight', which are one"):
        load_weights(Tied(), file)


def normed(kind: Callable[[nn.Module], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(kind(nn.Linear(4, 3)), nn.ReLU(), kind(nn.Conv1d(3, 2, 1, bias=False)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("reverse", [False, True])
def test_c3_both_spellings_of_weight_normalisation(tmp_path: Path, reverse: bool) -> None:
    old, new = nn.utils.weight_norm, nn.utils.parametrizations.weight_norm
    source, target = (normed(new, 1), normed(old, 0)) if reverse else (normed(old, 1), normed(new, 0))
    load_weights(target, save(tmp_path / "w.pth", source.state_dict()))
    x = torch.randn(5, 3, 4)
    for one, other in zip(source, target, strict=True):
        assert torch.equal(one(x), other(x))


class Renames(nn.Module):
    """Takes an older name of its weight itself, as torch's loading lets a module do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        if prefix + "w" in state:
            state[prefix + "weight"] = state.pop(prefix + "w")
        super()._load_from_state_dict(state, prefix, *rest)


def test_modules_that_rename_are_asked(tmp_path: Path) -> None:
    model = nn.Sequential(Renames(), nn.Linear(3, 1))
    given = {"0.w": torch.arange(3.0), "1.weight": torch.ones(1, 3), "1.bias": torch.ones(1)}
    load_weights(model, save(tmp_path / "w.pth", given))
    assert torch.equal(model[0].weight, torch.arange(3.0))  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(MisfitError, match=r"2 missing from the file: 0\.weight, 1\.bias"):
        load_weights(model, save(tmp_path / "v.pth", {"0.w": torch.zeros(3), "1.weight": torch.zeros(1, 3)}))
    assert same(model, before)


class Config:
    def __init__(self) -> None:
        self.rate = 0.1


@pytest.mark.parametrize("legacy", [False, True])
def test_c4_a_checkpoint_of_timms_saver(tmp_path: Path, legacy: bool) -> None:
    content = {
        "epoch": 3,
        "arch": "small",
        "state_dict": STATE,
        "state_dict_ema": OTHER,
        "optimizer": {"state": {}},
        "version": 2,
        "args": argparse.Namespace(lr=0.1, data=PosixPath("/data")),
    }
    if not legacy:
        import numpy as np

        content |= {"metric": np.float64(0.7), "config": Config(), "space": SimpleNamespace(a=1)}
    torch.save(content, tmp_path / "model_best.pth.tar", _use_new_zipfile_serialization=not legacy)
    model = network()
    load_weights(model, tmp_path / "model_best.pth.tar")
    assert same(model, STATE)


def test_c4_the_remedy_for_an_old_file_works_when_pasted(tmp_path: Path) -> None:
    file = tmp_path / "old net.pth"
    (tmp_path / "thing.py").write_text("class Thing:\n    pass\n")
    writer = (
        "import torch, thing; torch.save({'state_dict': {'weight': torch.ones(1, 2)}, 'x': thing.Thing()}, "
        f"{str(file)!r}, _use_new_zipfile_serialization=False)"
    )
    subprocess.run([sys.executable, "-c", writer], check=True, cwd=tmp_path)
    model = nn.Linear(2, 1, bias=False)
    with pytest.raises(ModelError, match="running code of the file") as caught:
        load_weights(model, file)
    command = shlex.split(str(caught.value).partition("run ")[2].rpartition(" and give")[0])
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=tmp_path)
    load_weights(model, tmp_path / "weights.pth")
    assert torch.equal(model.weight, torch.ones(1, 2))


def test_a_pickled_model_is_read_without_building_it(tmp_path: Path) -> None:
    source = network(1)
    source.norm.register_buffer("passing", torch.ones(2), persistent=False)  # type: ignore[operator]
    for content in (source, {"model": source, "epoch": 1}):
        model = network()
        load_weights(model, save(tmp_path / "whole.pt", content))
        assert same(model, STATE)


def test_torchscript_and_its_remedy(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    source = nn.Linear(2, 1)
    torch.jit.trace(source, torch.ones(1, 2)).save(str(file))
    with pytest.raises(ModelError, match="is a TorchScript program; run python -c") as caught:
        read_weights(file)
    command = shlex.split(str(caught.value).partition("run ")[2].rpartition(" and give")[0])
    subprocess.run([sys.executable, "-W", "ignore", *command[1:]], check=True, cwd=tmp_path)
    model = nn.Linear(2, 1)
    load_weights(model, tmp_path / "weights.pth")
    assert torch.equal(model.weight, source.weight)


@pytest.mark.parametrize("held", [2, None])
def test_c5_a_backbone_without_its_head(tmp_path: Path, held: int | None) -> None:
    state = network(1, held).state_dict()
    model = network(0, None)
    facts = load_weights(model, save(tmp_path / "w.pth", state)).facts
    assert same(model, state)
    left = {"file": "w.pth", "names": ("head.weight", "head.bias")}
    assert facts == (() if held is None else (Fact(FactKind.FILE_LEFT_OVER, left),))


def test_c5_a_backbone_in_a_file_names_the_way_on(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", network(0, None).state_dict())
    with pytest.raises(MisfitError, match=r"head\.bias; for a backbone without 'head' give num_classes=0"):
        load_weights(network(0, 2), file)
    state = network(0, 2).state_dict()
    del state["head.bias"]
    with pytest.raises(MisfitError, match="is it the right model"):
        load_weights(network(0, 2), save(file, state))


@pytest.mark.parametrize(
    "spec", ["timm:test_resnet", "timm:test_convnext", "torchvision:squeezenet1_1", "hf:mobilevit"]
)
def test_c5_num_classes_zero(spec: str, tmp_path: Path) -> None:
    whole = load_model(spec, weights="random", seed=1)
    bare = load_model(spec, weights="random", num_classes=0)
    assert len(bare.model.state_dict()) < len(whole.model.state_dict())
    file = save(tmp_path / "w.pth", whole.model.state_dict())
    loaded = load_model(spec, weights=file, num_classes=0)
    assert same(loaded.model, whole.model.state_dict())
    assert [len(f["names"]) for f in of_kind(loaded.facts, FactKind.FILE_LEFT_OVER)] == [2]


def test_c5_negative_class_counts() -> None:
    with pytest.raises(UsageError, match=r"num_classes is -1; give the number of classes, or 0 for the model without"):
        load_model("timm:test_resnet", weights="random", num_classes=-1)


def test_a_deeper_network_is_not_cut_to_fit(tmp_path: Path) -> None:
    """All names and shapes of ResNet-18 are in ResNet-34: its own layers would be lost without a word."""
    file = save(tmp_path / "w.pth", load_model("torchvision:resnet34", weights="random").model.state_dict())
    with pytest.raises(MisfitError, match=r"\d+ unknown to the model: layer1\.2\.conv1\.weight"):
        load_model("torchvision:resnet18", weights=file)
    deep = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(MisfitError, match=r"2 unknown to the model: 1\.weight, 1\.bias"):
        load_weights(nn.Sequential(nn.Linear(2, 2)), save(tmp_path / "d.pth", deep.state_dict()))


def test_a_norm_where_the_model_has_nothing_is_not_dropped(tmp_path: Path) -> None:
    model = network()
    model.norm = nn.Identity()
    with pytest.raises(MisfitError, match=r"unknown to the model: norm\.weight"):
        load_weights(model, save(tmp_path / "w.pth", STATE))


def shards(folder: Path, index: str = "model.safetensors.index.json") -> Path:
    folder.mkdir()
    names = list(STATE)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: STATE[n] for n in names if files[n] == file}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder / index


def test_c7_shards_by_index_and_by_folder(tmp_path: Path) -> None:
    index = shards(tmp_path / "run")
    for path in (index, index.parent):
        model = network()
        load_weights(model, path)
        assert same(model, STATE)
    (index.parent / "part-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names 2 files, of which 1 are missing .*part-1\.safetensors; fetch them"):
        load_weights(network(), index)


def test_c7_damaged_indices(tmp_path: Path) -> None:
    index = shards(tmp_path / "run")
    named = json.loads(index.read_text())
    named["weight_map"]["more.weight"] = "part-0.safetensors"
    index.write_text(json.dumps(named))
    with pytest.raises(ModelError, match=r"names tensors that its files lack: more\.weight"):
        load_weights(network(), index)
    named["weight_map"]["more.weight"] = "../part-0.safetensors"
    index.write_text(json.dumps(named))
    with pytest.raises(ModelError, match=r"names '\.\./part-0\.safetensors', outside its folder"):
        load_weights(network(), index)
    index.write_text("[]")
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(network(), index)


def test_c7_other_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights; weights are read from"):
        read_weights(tmp_path)
    save(tmp_path / "one.pth", STATE)
    model = network()
    load_weights(model, tmp_path)
    assert same(model, STATE)
    save(tmp_path / "two.pth", OTHER)
    with pytest.raises(ModelError, match=r"holds 2 weights files \(one\.pth, two\.pth\); give one of them"):
        read_weights(tmp_path)
    (tmp_path / "one.pth").rename(tmp_path / "__0_0.distcp")
    (tmp_path / "two.pth").unlink()
    with pytest.raises(ModelError, match=r"distributed checkpoint; run python -m torch\.distributed\.checkpoint"):
        read_weights(tmp_path)


def test_c8_swins_original_names(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3)
    original = {}
    for name, value in source.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        original[".".join(parts).replace("head.fc.", "head.")] = value
    original["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    file = save(tmp_path / "w.pth", {"model": original})
    loaded = load_model("timm:swin_tiny_patch4_window7_224", weights=file, num_classes=3)
    assert same(loaded.model, source.state_dict())
    assert [f["by"] for f in of_kind(loaded.facts, FactKind.FILE_TRANSLATED)] == [
        "timm.models.swin_transformer.checkpoint_filter_fn"
    ]
    assert not of_kind(loaded.facts, FactKind.FILE_RESAMPLED)  # another block's tensor had this name in the file


def test_c8_what_timm_resamples_is_said(tmp_path: Path) -> None:
    import timm

    source = timm.create_model("test_vit", num_classes=3, img_size=96)
    file = save(tmp_path / "w.pth", source.state_dict())
    loaded = load_model("timm:test_vit", weights=file, num_classes=3)
    assert [f["names"] for f in of_kind(loaded.facts, FactKind.FILE_RESAMPLED)] == [("pos_embed",)]


LAZY = """
from torch import nn

def unknown():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))

def known():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.LazyBatchNorm1d())
    model.input_size = (1, 4, 4)
    return model

def empty():
    return nn.Linear(2, 2, device="meta")
"""


def test_c9_lazy_layers(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LAZY)
    with pytest.raises(ModelError, match=r"'1' is a LazyLinear .* run it once on an example input in the factory"):
        load_model(f"{tmp_path}/net.py:unknown", weights="random")
    loaded = load_model(f"{tmp_path}/net.py:known", weights="random", seed=1)
    assert loaded.model(torch.ones(1, 1, 4, 4)).shape == (1, 3)
    assert [f["shape"] for f in of_kind(loaded.facts, FactKind.LAZY_SIZED)] == [(1, 4, 4)]
    again = load_model(f"{tmp_path}/net.py:known", weights="random", seed=1)
    assert same(again.model, loaded.model.state_dict())
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).state_dict(), tmp_path / "w.pth")
    assert load_model(f"{tmp_path}/net.py:unknown", weights=tmp_path / "w.pth").model(torch.ones(1, 5)).shape == (1, 3)


def test_c9_a_model_on_the_meta_device(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LAZY)
    with pytest.raises(ModelError, match=r"'weight' .*on the meta device.*to_empty"):
        load_model(f"{tmp_path}/net.py:empty", weights="random")


BAD: dict[str, tuple[torch.Tensor, str]] = {
    "complex": (torch.ones(2, 3, dtype=torch.complex64), r"complex numbers \(complex64\) in 'head\.weight'"),
    "int8": (torch.ones(2, 3, dtype=torch.int8), r"quantised or whole numbers \(int8\) in 'head\.weight'"),
    "bool": (torch.ones(2, 3, dtype=torch.bool), r"quantised or whole numbers \(bool\) in 'head\.weight'"),
    "too large": (torch.full((2, 3), 1e200, dtype=torch.float64), r"beyond the range of the model's float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_r9_weights_that_the_model_cannot_hold(tmp_path: Path, case: str) -> None:
    value, message = BAD[case]
    model = network()
    with pytest.raises(ModelError, match=message):
        load_weights(model, save(tmp_path / "w.pth", {**STATE, "head.weight": value}))
    assert same(model, network().state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_r9_quantised_tensors(tmp_path: Path) -> None:
    value = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    with pytest.raises(ModelError, match=r"\(qint8\) in 'head\.weight'"):
        load_weights(network(), save(tmp_path / "w.pth", {**STATE, "head.weight": value}))


def test_r9_rounding_is_said(tmp_path: Path) -> None:
    file = save(tmp_path / "w.pth", {k: v.double() if v.is_floating_point() else v for k, v in STATE.items()})
    assert load_weights(network(), file).facts == (Fact(FactKind.FILE_ROUNDED, {"given": "float64", "own": "float32"}),)
    assert load_weights(network().double(), file).facts == ()


def test_r9_whole_numbers_in_a_buffer(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_buffer("index", torch.zeros(2, dtype=torch.int64))
    load_weights(model, save(tmp_path / "w.pth", {"index": torch.tensor([1.0, 2.0])}))
    assert model.index.tolist() == [1, 2]  # type: ignore[operator,union-attr]
    with pytest.raises(ModelError, match=r"holds float32 in 'index', which the model's int64 cannot represent"):
        load_weights(model, save(tmp_path / "w.pth", {"index": torch.tensor([1.5, 2.0])}))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    cases = {
        "empty.pth": (b"", "is empty; fetch or save it again"),
        "pointer.safetensors": (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS, .*run git lfs pull",
        ),
        "page": (b"<html>", r"is of type ''; weights are read from"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read_weights(tmp_path / name)
