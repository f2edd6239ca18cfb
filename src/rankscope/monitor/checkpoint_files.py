"""The checkpoints in the folder of a training run: files of weights, and folders that hold them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeAlias

from rankscope._base.errors import DataError, parameter
from rankscope.views.phrases import first_few

__all__ = ["Signature", "checkpoints_in", "signature_of"]

_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors")
_TAR = (".pth.tar", ".pt.tar")  # as timm and others call files of torch
_INDEX = ".index.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin", "trainer_state.json")
_SHARD = re.compile(r"-\d+-of-\d+$")  # a part of one set of weights, which its index stands for
_DEEP = 4  # folders below the one that was named
Signature: TypeAlias = tuple[tuple[str, int, int], ...]


def checkpoints_in(folder: Path, files: Sequence[str] = ("*",)) -> list[Path]:
    """Files ``.ckpt``, ``.pt``, ``.pth``, ``.safetensors`` and checkpoint folders of ``folder``, by name.

    Where it holds none itself, those of the one folder below that does.

    Raises
    ------
    DataError
        No such folder, or several folders below it that hold checkpoints: they are several runs.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {str(folder)!r}; give the folder into which a run saves checkpoints")
    found = {folder: _directly(folder, files)}
    if found[folder]:
        return found[folder]
    below = {inner: made for inner in _folders(folder, _DEEP) if (made := _directly(inner, files))}
    if len(below) > 1:
        shown = first_few([repr(str(inner.relative_to(folder))) for inner in below])
        raise DataError(f"{str(folder)!r} holds checkpoints in {len(below)} folders ({shown}); give one of them")
    return next(iter(below.values()), [])


def signature_of(path: Path) -> Signature:
    """Names, sizes and times of the files of a checkpoint: it is read again where they change."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    made = []
    for file in files:
        try:
            about = os.stat(file)
        except OSError:  # it was removed meanwhile
            continue
        made.append((file.name, about.st_size, about.st_mtime_ns))
    return tuple(made)


def _directly(folder: Path, files: Sequence[str]) -> list[Path]:
    try:
        inside = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} cannot be read ({error.strerror or error}); give another {parameter('folder')}"
        ) from error
    return [
        path
        for path in inside
        if not path.name.startswith(".")
        and any(fnmatchcase(path.name, glob) for glob in files)
        and (_is_checkpoint(path) if path.is_dir() else _is_file(path))
    ]


def _is_file(path: Path) -> bool:
    return (path.suffix.lower() in _SUFFIXES or path.name.lower().endswith(_TAR)) and not _SHARD.search(path.stem)


def _is_checkpoint(folder: Path) -> bool:
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError:
        return False
    return any(name in _WHOLE or name.endswith(_INDEX) for name in names)


def _folders(folder: Path, deep: int) -> list[Path]:
    try:
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and not p.is_symlink())
    except OSError:
        return []
    return [path for inner in inside for path in (inner, *(_folders(inner, deep - 1) if deep > 1 else ()))]
