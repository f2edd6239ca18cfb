"""Which file of a folder that transformers cannot read is the damaged one: its own errors often name none."""

from __future__ import annotations

import json
from pathlib import Path

from rankscope._base.errors import ModelError
from rankscope.loading.weight_files import read_file

__all__ = ["check_files", "damaged_json", "damaged_weights"]


def check_files(folder: Path) -> None:
    """Refuse a folder with a link that leads nowhere, as a half-fetched snapshot has: transformers passes it over.

    Another tokenizer or preprocessing would be taken without a word.
    """
    for file in sorted(folder.glob("*.json")):
        if not file.is_file():
            raise ModelError(f"{str(file)!r} is no file, or a link to none; fetch or save it again, or remove it")


def damaged_json(folder: Path) -> str | None:
    """The first file that should be JSON and is not, in words; ``None`` where all are."""
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return f"{file.name} is damaged"
    return None


def damaged_weights(folder: Path) -> str | None:
    """The first file of weights that cannot be read, in words; ``None`` where all can."""
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        try:
            read_file(file)
        except (ModelError, OSError):
            return f"{file.name} is damaged"
    return None
