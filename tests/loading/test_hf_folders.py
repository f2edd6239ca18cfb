"""Folders of Hugging Face whose files are JSON and yet wrong: the file that is wrong is named, in one line."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from rankscope._base.errors import DataError, ModelError, UsageError
from rankscope._base.facts import FactKind
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
    with pytest.raises(ModelError, match=r"config\.json cannot be used: .|that fits its config\.json") as caught:
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


PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 8, "width": 8},
    "image_mean": [0.5, 0.25, 0.125],
    "image_std": [0.5, 0.25, 0.5],
}
ORANGE = (200, 100, 50)


def shade(folder: Path, size: tuple[int, int] = (20, 12)) -> list[float]:
    """What a picture of one colour becomes: three numbers, one per channel."""
    from PIL import Image

    made = load_model(f"hf:{folder}").preprocessing
    assert made is not None
    tensor = made(Image.new("RGB", size, ORANGE))
    assert tensor.shape == (3, 8, 8)
    assert torch.equal(tensor, tensor[:, :1, :1].expand(3, 8, 8))
    return [float(v) for v in tensor[:, 0, 0]]


# (v/255 - mean)/std, by hand
NORMALISED = [(200 / 255 - 0.5) / 0.5, (100 / 255 - 0.25) / 0.25, (50 / 255 - 0.125) / 0.5]


@pytest.mark.parametrize(
    ("file", "content", "truth"),
    [
        ("preprocessor_config.json", PROCESSOR, NORMALISED),
        ("processor_config.json", {"processor_class": "CLIPProcessor", "image_processor": PROCESSOR}, NORMALISED),
        ("processor_config.json", {"image_processor": PROCESSOR}, NORMALISED),
        ("preprocessor_config.json", PROCESSOR | {"do_normalize": False}, [v / 255 for v in ORANGE]),
        ("preprocessor_config.json", PROCESSOR | {"do_rescale": False, "do_normalize": False}, [*map(float, ORANGE)]),
        (
            "preprocessor_config.json",
            PROCESSOR | {"rescale_factor": 1 / 510, "do_normalize": False},
            [v / 510 for v in ORANGE],
        ),
        (
            "preprocessor_config.json",
            PROCESSOR
            | {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"shortest_edge": 8},
                "crop_size": {"height": 8, "width": 8},
            },
            NORMALISED,
        ),
        (
            "preprocessor_config.json",
            PROCESSOR
            | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 8}, "crop_pct": 0.8},
            NORMALISED,
        ),
    ],
    ids=["own file", "in the processor", "of no class", "not normalised", "not rescaled", "factor", "cropped", "share"],
)
def test_preprocessing_is_read_from_whichever_file_has_it(
    file: str, content: dict[str, Any], truth: list[float], folder: Path
) -> None:
    (folder / file).write_text(json.dumps(content))
    # a resize of one colour may round its last bit of 8
    assert shade(folder) == pytest.approx(truth, abs=1e-5)
    assert FactKind.PLAIN_PREPROCESSING not in {fact.kind for fact in load_model(f"hf:{folder}").facts}


def test_a_folder_of_timm_brings_its_own_preprocessing(folder: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    model = timm.create_model("test_vit", num_classes=3)
    save_for_hf(model, folder / "timm")
    config = json.loads((folder / "timm" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.25, 0.5], "input_size": [3, 8, 8]}
    config["pretrained_cfg"].pop("test_input_size", None)
    (folder / "timm" / "config.json").write_text(json.dumps(config))
    from PIL import Image

    made = load_model(f"hf:{folder / 'timm'}", weights="random").preprocessing
    assert made is not None
    tensor = made(Image.new("RGB", (20, 12), ORANGE))
    assert [float(v) for v in tensor[:, 4, 4]] == pytest.approx(NORMALISED, abs=1e-5)


def saved_by_timm(folder: Path, name: str, config: dict[str, Any], **made: Any) -> torch.nn.Module:
    """A model of timm and its folder, with fields of its configuration changed."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model: torch.nn.Module = timm.create_model(name, **made).eval()
    save_for_hf(model, folder, model_args=made)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return model


@pytest.mark.parametrize(
    ("name", "config", "made", "size"),
    [
        ("test_resnet", {}, {"num_classes": 7}, (3, 160, 160)),
        pytest.param(
            *("test_resnet", {}, {"num_classes": 7, "in_chans": 1}, (1, 160, 160)),
            marks=pytest.mark.skipif(timm.__version__ == "1.0.20", reason="timm asserts three channels there"),
        ),
        ("test_vit", {"label_names": list("abcde")}, {"num_classes": 5, "img_size": 32}, (3, 32, 32)),
        ("test_vit", {}, {"num_classes": 3, "img_size": (32, 48)}, (3, 32, 48)),
        ("test_vit", {"num_classes": 9}, {"num_classes": 4, "pretrained": False}, (3, 160, 160)),
    ],
    ids=["classes", "one channel", "size", "sides", "another number of classes"],
)
def test_a_folder_of_timm_is_made_with_its_own_arguments(
    name: str, config: dict[str, Any], made: dict[str, Any], size: tuple[int, int, int], tmp_path: Path
) -> None:
    from PIL import Image

    own = saved_by_timm(tmp_path, name, config, **made)
    loaded = load_model(f"hf:{tmp_path}")
    assert loaded.input_size == size
    assert loaded.preprocessing is not None
    x = loaded.preprocessing(Image.new("RGB", (90, 70), ORANGE))[None]
    assert tuple(x.shape[1:]) == size
    with torch.no_grad():
        assert torch.equal(loaded.model(x).logits, own(x))
    assert loaded.class_names == (tuple("abcde") if "label_names" in config else None)
    assert load_model(f"hf:{tmp_path}", weights="random", num_classes=6).model(x).logits.shape == (1, 6)


def test_a_folder_of_timm_without_a_head_is_the_model_without_one(tmp_path: Path) -> None:
    own = saved_by_timm(tmp_path, "test_vit", {}, num_classes=0)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_model(f"hf:{tmp_path}").model(x).pooler_output, own(x))


def headed(kind: str) -> torch.nn.Module:
    """A classifier of three classes: one whose class leaves its head out by itself, and one that makes an empty one."""
    import transformers

    ensure_torchvision()
    if kind == "vit":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
        return transformers.ViTForImageClassification(config).eval()
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    return transformers.SegformerForImageClassification(transformers.SegformerConfig(**sizes, num_labels=3)).eval()


@pytest.mark.parametrize("kind", ["vit", "segformer"])
def test_no_classes_leave_the_head_of_trained_weights_out(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model: Any = headed(kind)
    model.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}", num_classes=0)
    entering: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda _, args, __: entering.append(args[0]))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model(x)
        torch.testing.assert_close(loaded.model(x).logits, entering[0])
    assert loaded.class_names is None
    assert FactKind.FRESH_PARAMETERS not in {fact.kind for fact in loaded.facts}


def test_other_sizes_are_refused_without_a_head_too(folder: Path) -> None:
    change(folder / "config.json", intermediate_size=12)
    with pytest.raises(ModelError, match=r"cannot be loaded \(size mismatch for vit"):
        load_model(f"hf:{folder}", num_classes=0)


def test_classes_for_what_has_no_classifier_are_refused() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UsageError, match="num_classes=5 sizes a classifier, and hf:gpt2 is a GPT2Model"):
        load_model("hf:gpt2", weights="random", num_classes=5)


@pytest.mark.parametrize("made", [{}, {"num_classes": 5}], ids=["ImageNet's classes", "five classes"])
def test_no_classes_leave_the_head_of_a_folder_of_timm_out(made: dict[str, Any], tmp_path: Path) -> None:
    own: Any = saved_by_timm(tmp_path, "test_vit", {}, **made)
    own.reset_classifier(0)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    loaded = load_model(f"hf:{tmp_path}", num_classes=0)
    with torch.no_grad():
        assert torch.equal(loaded.model(x).pooler_output, own(x))
    assert loaded.class_names is None
    assert load_model(f"hf:{tmp_path}", num_classes=0, weights="random").model(x).pooler_output.shape == (2, 64)


@pytest.mark.parametrize("content", [None, {"processor_class": "X"}], ids=["no file", "a file without it"])
def test_unknown_preprocessing_of_trained_weights_is_said(content: Any, folder: Path) -> None:
    if content is not None:
        (folder / "processor_config.json").write_text(json.dumps(content))
    assert shade(folder) == pytest.approx([v / 255 for v in ORANGE], abs=1e-6)
    (fact,) = [f for f in load_model(f"hf:{folder}").facts if f.kind is FactKind.PLAIN_PREPROCESSING]
    assert fact.values == {"size": (3, 8, 8)}
    assert fact.caution
    kinds = {fact.kind for fact in load_model(f"hf:{folder}", weights="random").facts}
    assert FactKind.PLAIN_PREPROCESSING not in kinds  # nothing was trained on anything


def test_a_damaged_file_of_the_processor_is_named(folder: Path) -> None:
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"processor_config\.json' cannot be used \(it is no whole JSON file\)"):
        load_model(f"hf:{folder}")


def test_pictures_that_are_not_resized_have_to_fit(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"do_resize": False}))
    assert load_model(f"hf:{folder}").input_size == (3, 8, 8)
    assert shade(folder, (8, 8)) == pytest.approx(NORMALISED, abs=1e-6)
    with pytest.raises(DataError, match=r"gave \(3, 12, 20\) but the model takes \(3, 8, 8\); give pictures that fit"):
        shade(folder)


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
