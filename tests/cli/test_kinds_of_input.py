"""Images for a model of texts, and texts for a model of images: refused with the option that fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankscope.cli.main import main

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture
def of_texts(tmp_path: Path) -> str:
    config = transformers.BertConfig(vocab_size=9, max_position_embeddings=8, **SIZES)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "texts")
    return f"hf:{tmp_path / 'texts'}"


@pytest.fixture
def of_images(tmp_path: Path) -> str:
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "images")
    return f"hf:{tmp_path / 'images'}"


def _refused(args: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    for part in expected:
        assert part in line


@pytest.mark.parametrize("source", ["digits", "noise", "photos"])
def test_profile_of_a_model_of_texts_names_text(
    source: str, of_texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["profile", of_texts, "--images", source, "--device", "cpu", "--out", str(tmp_path / "run")]
    _refused(args, ["takes texts", "give --text in place of --images"], capsys)


@pytest.mark.parametrize("command", ["collect", "features"])
def test_data_of_images_for_a_model_of_texts_names_text(
    command: str, of_texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [command, of_texts, "--data", "digits", "--device", "cpu", "--out", str(tmp_path / "run")]
    _refused(args, ["takes texts", "give --text in place of --data"], capsys)


@pytest.mark.parametrize(
    ("command", "option"), [("profile", "--images"), ("collect", "--data"), ("features", "--data")]
)
def test_texts_for_a_model_of_images_name_the_option_of_images(
    command: str, option: str, of_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--text", "a mat", "--device", "cpu", "--out", str(tmp_path / "run")]
    _refused([command, of_images, *args], ["takes no texts", f"give {option} in place of --text"], capsys)
    _refused([command, "digits", *args], ["--text needs a model of Hugging Face", f"give {option}"], capsys)
