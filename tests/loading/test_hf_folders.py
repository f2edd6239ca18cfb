"""Folders of Hugging Face whose files are JSON and yet wrong: the file that is wrong is named, in one line."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rankscope._base.errors import ModelError
from rankscope.loading import ensure_torchvision, load_model


class Calls:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    ensure_torchvision()
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))
    model.save_pretrained(tmp_path)
    return tmp_path


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "content",
    [
        3,
        [],
        "vit",
        {"model_type": 3},
        {"model_type": "vit", "hidden_size": "x"},
        {"model_type": "vit", "id2label": [1]},
        {"model_type": "vit", "architectures": 3},
        {"model_type": "vit", "architectures": [3]},
    ],
    ids=str,
)
def test_a_configuration_of_other_types(content: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"config\.json cannot be used: .") as caught:
        load_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("named", ["logging", "Trainer", "ViTImageProcessor"])  # a module, and classes of no model
def test_an_architecture_that_is_no_model(named: str, weights: str, folder: Path) -> None:
    change(folder / "config.json", architectures=[named])
    if named == "logging":
        assert type(load_model(f"hf:{folder}", weights=weights).model).__name__ == "ViTForImageClassification"
    else:
        with pytest.raises(ModelError, match=r"weights in folder .* cannot be loaded|cannot be built"):
            load_model(f"hf:{folder}", weights=weights)


@pytest.mark.parametrize(
    "fields", [{"image_mean": "x"}, {"image_mean": [1, 2]}, {"size": 3, "image_std": "x"}], ids=str
)
def test_preprocessing_of_other_types(fields: dict[str, Any], folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **fields})
    )
    with pytest.raises(ModelError, match=r"preprocessor_config\.json' cannot be used \(.*\); fetch or save it again"):
        load_model(f"hf:{folder}")


def test_another_damaged_file_is_not_the_preprocessing(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuch"}')
    (folder / "trainer_state.json").write_text("{")
    with pytest.raises(ModelError, match="preprocessor_config") as caught:
        load_model(f"hf:{folder}")
    assert "no whole JSON file" not in str(caught.value)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="it is no whole JSON file"):
        load_model(f"hf:{folder}")


def test_weights_that_only_misfit_are_not_called_damaged(folder: Path) -> None:
    torch.save(argparse.Namespace(lr=1.0), folder / "training_args.bin")
    torch.save(Calls(), folder / "scheduler.bin")
    (folder / "trainer_state.json").write_text("{")
    change(folder / "config.json", hidden_size=12)
    with pytest.raises(ModelError, match=r"weights in folder .* that fits its config") as caught:
        load_model(f"hf:{folder}")
    assert not re.search(r"damaged|training_args|scheduler|trainer_state|refused", str(caught.value))


def test_the_reason_why_weights_cannot_be_read_is_kept(folder: Path) -> None:
    torch.save(argparse.Namespace(lr=1.0), folder / "training_args.bin")
    kept = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors' is no readable safetensors file"):
        load_model(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    torch.save(Calls(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin' is refused: it would call"):
        load_model(f"hf:{folder}")
