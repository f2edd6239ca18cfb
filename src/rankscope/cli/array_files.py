"""Arrays of the user's own, from ``.npy``, ``.npz`` and ``.safetensors`` files."""

from __future__ import annotations

from pathlib import Path

import torch

from rankscope._base.errors import DataError

__all__ = ["ARRAY_FILES", "read_arrays", "read_labels"]

ARRAY_FILES = (".npy", ".npz", ".safetensors")


def read_arrays(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of a file by name; the one of a ``.npy`` under ``""``.

    Raises
    ------
    DataError
        A file that is absent, damaged or of another kind.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in ARRAY_FILES:
        raise DataError(f"{path.name} is none of .npy, .npz and .safetensors")
    try:
        if path.suffix == ".npy":
            return {"": torch.from_numpy(np.load(path, allow_pickle=False))}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {key: torch.from_numpy(file[key]) for key in file.files}
        return load_file(path)
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{str(path)!r} cannot be read: {reason}") from error


def read_labels(path: Path) -> torch.Tensor:
    """Class indices (N,) from a ``.npy``, or from the array ``labels`` of another file."""
    arrays = read_arrays(path)
    if "" not in arrays and "labels" not in arrays:
        raise DataError(f"{path.name} holds {', '.join(arrays) or 'nothing'}; name its array labels")
    values = arrays.get("", arrays.get("labels"))
    assert values is not None
    if values.ndim != 1 or values.is_floating_point():
        raise DataError(f"{path.name} holds {values.dtype} of shape {tuple(values.shape)}; give one integer a sample")
    return values.long()
