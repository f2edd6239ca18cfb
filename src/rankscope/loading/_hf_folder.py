"""Which file of a folder that transformers cannot read is the damaged one: its own errors often name none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankscope._base.errors import ModelError, first_line
from rankscope.loading.weight_files import read_file

__all__ = ["check_files", "damaged_json", "damaged_weights", "preprocessing_file"]

_OF_TIMM = "timm_wrapper"
# In transformers' order; it reads the first that there is and no other file, such as training_args.bin.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def check_files(folder: Path) -> None:
    """Refuse a folder with a link that leads nowhere, as a half-fetched snapshot has: transformers passes it over.

    Another tokenizer or preprocessing would be taken without a word.
    """
    for file in sorted(folder.glob("*.json")):
        if not file.is_file():
            raise ModelError(f"{str(file)!r} is no file, or a link to none; fetch or save it again, or remove it")


def damaged_json(folder: Path, names: str = "*.json") -> str | None:
    """The first file of ``names`` that should be JSON and is not, in words; ``None`` where all are."""
    for file in sorted(folder.glob(names)):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return f"{file.name} is damaged"
    return None


def preprocessing_file(folder: Path, model_type: str) -> Path | None:
    """The file of a folder that says how pictures are prepared; ``None`` where none does.

    Newer releases of transformers write it into that of the whole processor, and a model of timm has it beside its
    architecture.
    """
    own = folder / "preprocessor_config.json"
    if own.is_file():
        return own
    whole = folder / "processor_config.json"
    if whole.is_file() and (damaged_json(folder, whole.name) or "image_processor" in _mapping(whole)):
        return whole
    config = folder / "config.json"
    return config if model_type == _OF_TIMM and "pretrained_cfg" in _mapping(config) else None


def _mapping(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def damaged_weights(folder: Path) -> str | None:
    """Why the weights that transformers takes cannot be read, in words; ``None`` where they can, or there are none."""
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    try:
        if file is not None:
            read_file(file)
    except (ModelError, OSError) as error:
        return first_line(error)
    return None
