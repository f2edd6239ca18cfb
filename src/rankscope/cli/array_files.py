"""Arrays of the user's own, from ``.npy``, ``.npz`` and ``.safetensors`` files."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rankscope._base.errors import DataError, RankscopeError, first_line
from rankscope._base.labels import class_indices
from rankscope.slicing.values import as_tensor

__all__ = ["ARRAY_FILES", "check_arrays", "read_arrays", "read_labels"]

ARRAY_FILES = (".npy", ".npz", ".safetensors")


def check_arrays(path: Path, option: str | None = None) -> str:
    """How an error names the file, which is there and of a kind that can be read; ``option`` is what named it."""
    named = f"{option} {str(path)!r}" if option else repr(str(path))
    if path.suffix not in ARRAY_FILES:
        raise DataError(f"{named} is not a .npy, .npz or .safetensors file; give one")
    if not os.path.isfile(path):  # also for a name that is too long for one
        raise DataError(f"{named} is no file; give the path of a .npy, .npz or .safetensors file")
    return named


def read_arrays(path: Path, option: str | None = None) -> dict[str, torch.Tensor]:
    """The arrays of a file by name; the one of a ``.npy`` under ``""``. ``option`` is what named the file.

    Raises
    ------
    DataError
        A file that is absent, damaged or of another kind.
    """
    import numpy as np
    from safetensors.torch import load_file

    named = check_arrays(path, option)
    try:
        if path.suffix == ".npy":
            with path.open("rb") as opened:
                array = np.load(opened, allow_pickle=False)
                if opened.read(1):  # NumPy reads what the header speaks of, and says nothing of the rest
                    raise ValueError("it holds more than the array that its header describes")
            return {"": as_tensor(array, path.name)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: as_tensor(file[key], f"{key} in {path.name}") for key in file.files}
        return load_file(path)
    except RankscopeError:
        raise
    except Exception as error:  # a damaged header makes NumPy raise nearly anything
        raise DataError(f"{named} cannot be read ({first_line(error)}); save it again") from error


def read_labels(path: Path) -> torch.Tensor:
    """Class indices (N,) from a ``.npy``, or from the array ``labels`` of another file."""
    arrays = read_arrays(path, "--labels")
    if "" not in arrays and "labels" not in arrays:
        raise DataError(f"{path.name} holds {', '.join(arrays) or 'nothing'}; name its array labels")
    return class_indices(arrays.get("", arrays.get("labels")), name=f"the labels in {path.name}")
