"""Weight files: what is unwrapped, what is refused, what does not fit."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rankscope._base.errors import ModelError
from rankscope.loading import check_finite, load_weights, read_weights


def network(classes: int = 2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, classes))


SOURCE = network()
STATE = {k: v + 1 if v.is_floating_point() else v for k, v in SOURCE.state_dict().items()}


def same(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


NESTS: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"epoch": 3, "state_dict": STATE, "best": torch.tensor(0.5)},
    "model": {"model": STATE, "optimizer": {"state": {}}},
    "twice": {"model": {"state_dict": STATE}},
    "parallel": {f"module.{k}": v for k, v in STATE.items()},
    "compiled and parallel": {"state_dict": {f"_orig_mod.module.{k}": v for k, v in STATE.items()}},
    "lightning": {"state_dict": {f"model.{k}": v for k, v in STATE.items()}, "pytorch-lightning_version": "2"},
    "without counters": {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("nest", NESTS)
def test_usual_nestings_are_unwrapped(tmp_path: Path, nest: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(NESTS[nest], path)
    model = network()
    assert load_weights(model, path).description.startswith("file w.pth (")
    assert same(model, STATE)


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "safetensors"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(STATE, path)
    model = network()
    load_weights(model, path)
    assert same(model, STATE)


def test_half_precision_is_said(tmp_path: Path) -> None:
    save_file({k: v.half() if v.is_floating_point() else v for k, v in STATE.items()}, tmp_path / "w.safetensors")
    model = network()
    assert (
        load_weights(model, tmp_path / "w.safetensors").description
        == "file w.safetensors (9 tensors, stored as float16)"
    )
    assert next(model.parameters()).dtype == torch.float32


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    content = {"weight": torch.zeros(2) if writer != "pickle" else 0, "x": Malicious(mark)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ModelError, match=r"evil\.pt' is refused: it (would call posix\.mkdir|holds Python objects)"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [5, 60, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(
        ModelError, match=rf"'{re.escape(str(path))}' .*truncated or of another type: fetch or save it again"
    ):
        read_weights(path)


def test_text_in_a_weights_file(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text("<html>404 Not Found</html>")
    with pytest.raises(ModelError, match=r"cannot be read .*of another type"):
        read_weights(tmp_path / "w.pth")


def test_wrong_file_type_missing_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"is of type '\.onnx'; weights are read from \.safetensors, \.pt"):
        read_weights(tmp_path / "w.onnx")
    with pytest.raises(ModelError, match=r"nothing\.pt' does not exist"):
        read_weights(tmp_path / "nothing.pt")


def test_file_without_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "loss": 0.5}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"holds no state dict \(keys epoch, loss\); save model\.state_dict\(\)"):
        read_weights(tmp_path / "w.pt")
    torch.save(torch.zeros(3), tmp_path / "t.pt")
    with pytest.raises(ModelError, match=r"holds no state dict \(a Tensor\)"):
        read_weights(tmp_path / "t.pt")


def test_misfits_are_named_and_change_nothing(tmp_path: Path) -> None:
    state = {k: v for k, v in STATE.items() if not k.startswith("1.")}
    state["0.weight"] = torch.zeros(3, 1, 5, 5)
    state["head.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pt")
    model = network()
    with pytest.raises(ModelError, match="1 of another shape") as caught:
        load_weights(model, tmp_path / "w.pt")
    text = str(caught.value)
    assert "1 of another shape: 0.weight is (3, 1, 5, 5) in the file, (3, 1, 3, 3) in the model" in text
    assert "4 missing from the file: 1.weight, 1.bias, 1.running_mean, 1.running_var" in text
    assert "1 unknown to the model: head.weight" in text
    assert same(model, SOURCE.state_dict())


def test_long_lists_are_cut(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"8 missing from the file: 0\.weight, 0\.bias, 1\.weight, 1\.bias and 4 more"):
        load_weights(network(), tmp_path / "w.pt")


def test_another_number_of_classes_has_its_own_remedy(tmp_path: Path) -> None:
    torch.save(network(7).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="for another number of classes give num_classes=7"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    state = {k: v.clone() for k, v in STATE.items()}
    state["3.weight"][0, 1] = value
    torch.save(state, tmp_path / "w.pt")
    model = network()
    with pytest.raises(
        ModelError,
        match=rf"file '{re.escape(str(tmp_path))}/w\.pt' holds NaN or infinite values in '3\.weight' \(1 of 6\)",
    ):
        load_weights(model, tmp_path / "w.pt")
    assert same(model, SOURCE.state_dict())
    check_finite(model.named_parameters(), "model")


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"cannot be read \(its end is missing\); it is truncated"):
        read_weights(file)
    torch.save({"weight": torch.zeros(1000)}, file, _use_new_zipfile_serialization=False)
    for size, why in ((5, ".*"), (40, "EOFError"), (1000, ".*")):
        whole = file.read_bytes()
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=rf"cannot be read \({why}\); it is truncated"):
            read_weights(file)
        file.write_bytes(whole)
    file.write_bytes(b"no pickle at all")
    with pytest.raises(ModelError, match=r"cannot be read \(it is no whole pickle\); it is truncated"):
        read_weights(file)


def test_a_record_with_another_checksum_is_refused_where_there_are_checksums(tmp_path: Path) -> None:
    """torch itself reads it without a word."""
    state = {"a": torch.arange(64.0), "b": torch.ones(3)}
    torch.save(state, tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    at = bytes(content).index(state["a"].numpy().tobytes())
    content[at + 6] ^= 1
    (tmp_path / "w.pt").write_bytes(content)
    assert not torch.equal(torch.load(tmp_path / "w.pt")["a"], state["a"])
    with pytest.raises(ModelError, match=r"w\.pt' is damaged \(w/data/0 does not have its checksum\)"):
        read_weights(tmp_path / "w.pt")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "without.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(tmp_path / "without.pt")["a"], state["a"])
