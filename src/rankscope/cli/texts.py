"""``--text``: a sentence, or a file with one text per line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankscope._base.checks import count_of
from rankscope._base.errors import DataError, UsageError
from rankscope.loading.texts import Texts, load_tokenizer, read_texts
from rankscope.slicing.signature import is_hugging_face, signature_of

__all__ = ["check_kind", "check_texts", "model_texts", "texts_of"]


_SUFFIXES = (".txt", ".text", ".csv", ".tsv", ".json", ".jsonl", ".md")


def check_texts(given: Sequence[str], model: str, **others: Any) -> None:
    """Refuse ``--text`` for a model without a tokenizer, and beside other inputs; ``others`` by option."""
    if not given:
        return
    if not model.startswith("hf:"):
        inputs = next(iter(others), "images")
        raise UsageError(
            f"--text needs a model of Hugging Face with its tokenizer (hf:FOLDER), and {model!r} has none; give "
            f"--{inputs} for a model of images"
        )
    for option, value in others.items():
        if value is not None:
            raise UsageError(f"--text and --{option} choose different data; give one of them")


def check_kind(model: Any, spec: str, *, texts: bool, option: str) -> None:
    """Refuse texts for a model of images, and images for a model of texts; ``option`` is that of images."""
    if not is_hugging_face(model):
        return
    signature = signature_of(model)
    if texts and not signature.names("input_ids"):
        raise UsageError(f"{spec} takes no texts (its forward has no input_ids); give --{option} in place of --text")
    if not texts and signature.names("input_ids") and not signature.names("pixel_values"):
        raise UsageError(f"{spec} takes texts (its forward has no pixel_values); give --text in place of --{option}")


def texts_of(given: Sequence[str]) -> list[str]:
    """The texts that the options stand for, in order."""
    found: list[str] = []
    for value in given:
        if _is_file(value):
            found += _lines(Path(value))
        elif _looks_like_a_file(value):
            raise DataError(
                f"--text {value!r} does not exist; give a file with one text per line, or a sentence with a space"
            )
        else:
            found.append(value)
    return found


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # a sentence that is too long for a path, or holds what no path may
        return False


def _looks_like_a_file(value: str) -> bool:
    """One word that ends as a file of texts does: more likely a mistyped path than a text."""
    return len(value.split()) == 1 and value.lower().endswith(_SUFFIXES)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be read as UTF-8 text: {error}") from error
    if not lines:
        raise DataError(f"{path.name} holds no text; write one per line")
    blank = next((k for k, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None:
        raise DataError(f"line {blank} of {path.name} is blank; write one text per line")
    return lines


def model_texts(model: Any, spec: str, given: Sequence[str], *, limit: int | None) -> Texts:
    """The texts, the first ``limit`` of them, through the tokenizer of ``hf:FOLDER``."""
    if limit is not None:
        count_of(limit, "limit")
    found = read_texts(model, load_tokenizer(spec.removeprefix("hf:")), texts_of(given))
    return found if limit is None else Texts(found.texts[:limit], found.items[:limit])
