"""What the options of ``rankscope profile`` mean; everything that can be told without the model is told here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope._base.errors import UsageError, nearest

__all__ = ["Request", "default_folder", "parse_cut_points"]

_CUT_POINT_KEYWORDS = ("all", "blocks", "paper")


@dataclass(frozen=True)
class Request:
    """Checked options of one run."""

    model: str
    weights: str
    weights_key: str | None
    seed: int
    num_classes: int | None
    images: str | None
    limit: int | None
    columns: Any
    background: Any
    tolerance: Any
    cut_points: str | list[str]
    dtype: str | None
    device: Any
    chunk_size: Any
    memory_budget: str | None
    certify: bool
    out: Path

    @classmethod
    def parse(
        cls,
        *,
        patch: str | None,
        patch_offset: str | None,
        channels: str | None,
        columns: str | None,
        background: str,
        tolerance: str,
        cut_points: str,
        dtype: str | None,
        device: str,
        chunk_size: str,
        memory_budget: str | None,
        limit: int | None,
        out: Path | None,
        model: str,
        seed: int,
        **plain: Any,
    ) -> Request:
        """Turn texts into values.

        Raises
        ------
        UsageError
            For a value that cannot be used, with the nearest that can.
        DeviceError
            For a device that is absent.
        """
        if seed < 0:
            raise UsageError(f"--seed is {seed}; it must not be negative")
        if limit is not None and limit < 1:
            raise UsageError(f"--limit is {limit}; at least one image is needed")
        if background not in ("image", "zero"):
            raise UsageError(f"unknown background {background!r}; {nearest(background, ['image', 'zero'])}")
        if dtype not in (None, "float32", "float64"):
            raise UsageError(f"dtype {dtype!r} cannot be measured in; give float32 or float64")
        chosen = _columns(columns, patch, patch_offset, channels, seed)
        if background == "zero" and columns is not None and columns.startswith("sketch"):
            raise UsageError("--background zero needs a patch; random directions cover the whole image")
        from rankscope._base.checks import budget_of, device_of
        from rankscope.spectra import as_tolerance

        where = device_of(device)
        if memory_budget is not None:
            budget_of(memory_budget, where)
        return cls(
            model=model,
            seed=seed,
            limit=limit,
            columns=chosen,
            background=background,
            tolerance=as_tolerance(tolerance),
            cut_points=parse_cut_points(cut_points),
            dtype=dtype,
            device=where,
            chunk_size=_chunk_size(chunk_size),
            memory_budget=memory_budget,
            out=out if out is not None else default_folder(model),
            **plain,
        )


def default_folder(model: str) -> Path:
    """Where a model's results go.

    >>> default_folder("timm:resnet18").as_posix(), default_folder("nets/mine.py:small").as_posix()
    ('runs/timm-resnet18', 'runs/mine-small')
    """
    head, colon, name = model.rpartition(":")
    text = f"{Path(head).stem}-{name}" if colon and head.endswith(".py") else model
    return Path("runs") / (re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "model")


def _columns(columns: str | None, patch: str | None, offset: str | None, channels: str | None, seed: int) -> Any:
    options = {"--patch": patch, "--patch-offset": offset, "--channels": channels}
    given = next((option for option, value in options.items() if value is not None), None)
    if columns is not None and given is not None:
        raise UsageError(f"--columns {columns} and {given} choose different columns; give one of them")
    if patch is None and offset is not None:
        raise UsageError(f"--patch-offset {offset} needs a size; add --patch 16")
    if patch is None and channels is not None:
        raise UsageError(f"--channels {channels} are those of a patch; add --patch 16")
    if patch is not None:
        from rankscope.slicing import Patch

        chosen = None if channels is None else _numbers(channels)
        return Patch(_size(patch), offset=None if offset is None else _pair(offset), channels=chosen)
    text = columns or "auto"
    kind, colon, count = text.partition(":")
    if kind == "sketch":
        from rankscope.slicing import Sketch

        if not colon or not count.isdigit():
            raise UsageError(f"columns {text!r}: write sketch:K with the number of random directions, as sketch:768")
        return Sketch(int(count), seed)
    if kind == "position":
        from rankscope.slicing import Positions

        if re.fullmatch(r"-?\d+(\s*,\s*-?\d+)*", count.strip()) is None:
            raise UsageError(f"columns {text!r}: write position:N with the number of a token, as position:3 or 0,-1")
        return Positions([int(part) for part in count.split(",")])
    if text not in ("all", "auto"):
        raise UsageError(f"unknown columns {text!r}; {nearest(text, ['all', 'auto', 'sketch:K', 'position:N'])}")
    return text


def _size(text: str) -> int | tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", text.strip())
    if match is None:
        raise UsageError(f"patch size {text!r} is none; write 16, or 8x32 for height 8 and width 32")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def _pair(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(-?\d+),\s*(-?\d+)", text.strip())
    if match is None:
        raise UsageError(f"patch offset {text!r} is none; write ROW,COL, as 96,104")
    return int(match[1]), int(match[2])


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--channels {text!r} names no channels; write their numbers, as 0 or 0,2")
    return [int(part) for part in parts]


def parse_cut_points(text: str) -> str | list[str]:
    """A keyword or one name as text, several as a list.

    >>> parse_cut_points("layer1.*, fc")
    ['layer1.*', 'fc']
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"--cut-points {text!r} names no layer; give blocks, paper, all, names or globs")
    if len(names) == 1:
        return names[0]
    mixed = [n for n in names if n in _CUT_POINT_KEYWORDS]
    if mixed:
        raise UsageError(f"--cut-points {text!r}: {mixed[0]!r} stands alone; name layers beside it through globs")
    return names


def _chunk_size(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--chunk-size is {text!r}; give a positive number or auto")
    return int(text)
