"""Texts of the command line as values, where several commands read the same kind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from rankscope._base.errors import UsageError

if TYPE_CHECKING:
    from rankscope.spectra import Tolerance

__all__ = ["default_folder", "listed", "parse_cut_points", "parse_tolerance", "whole_number"]

_CUT_POINT_KEYWORDS = ("all", "blocks", "paper", "reference")


def whole_number(text: str) -> int | None:
    """The number, or ``None`` where the text is none, or more than 18 digits long.

    >>> whole_number("768"), whole_number("²"), whole_number("-1")
    (768, None, None)
    """
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def default_folder(model: str) -> Path:
    """Where a model's results go.

    >>> default_folder("timm:resnet18").as_posix(), default_folder("nets/mine.py:small").as_posix()
    ('runs/timm-resnet18', 'runs/mine-small')
    """
    head, colon, name = model.rpartition(":")
    text = f"{Path(head).stem}-{name}" if colon and head.endswith(".py") else model
    return Path("runs") / (re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "model")


def listed(text: str, option: str) -> list[str]:
    """Names that stand between commas, at least one.

    >>> listed("ResNet-18, ViT-T", "--only")
    ['ResNet-18', 'ViT-T']
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"{option} {text!r} names none; give names separated by commas, or leave it out")
    return names


def parse_cut_points(text: str) -> str | list[str]:
    """A keyword or one name as text, several as a list.

    >>> parse_cut_points("layer1.*, fc")
    ['layer1.*', 'fc']
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"--cut-points {text!r} names no layer; give blocks, paper, reference, all, names or globs")
    if len(names) == 1:
        return names[0]
    mixed = [n for n in names if n in _CUT_POINT_KEYWORDS]
    if mixed:
        raise UsageError(f"--cut-points {text!r}: {mixed[0]!r} cannot be combined with names; give one or the other")
    return names


def parse_tolerance(text: str) -> Tolerance:
    """``--tolerance``: a rule by name, or a share of the largest singular value.

    >>> parse_tolerance("1e-3").rtol, parse_tolerance("paper").rule
    (0.001, 'paper')
    """
    from rankscope.spectra import as_tolerance

    try:
        inside = 0 <= float(text) <= 1  # false for NaN
    except ValueError:
        return as_tolerance(text)
    if not inside:
        raise UsageError(
            f"--tolerance is {text!r}; a constant one is a share of the largest singular value: give a number from 0 "
            "to 1, or paper, reference or torch"
        )
    return as_tolerance(text)
