"""``--data`` of ``rankscope probe``: the user's own samples of what a component receives."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from rankscope._base.checks import count_of, seed_of
from rankscope._base.errors import UsageError
from rankscope.cli.array_files import ARRAY_FILES
from rankscope.cli.data import drawn, read_inputs
from rankscope.loading import load_images
from rankscope.loading.preprocessing import plain_preprocessing

__all__ = ["probe_samples"]


def probe_samples(source: str, *, shape: tuple[int, ...] | None, limit: int | None, seed: int) -> Tensor:
    """The samples (N, …) that ``source`` names, at most ``limit`` of them, drawn from ``seed`` and in order.

    A file of arrays is taken as it is. Pictures become tensors of ``shape`` (C, H, W) with pixels in [0, 1], since a
    component says nothing of the size that it takes; ``digits`` are 1×8×8.

    Raises
    ------
    UsageError
        Pictures without a shape, or with one that is none of (C, H, W); arrays with one.
    DataError
        What does not exist or cannot be read.
    """
    if limit is not None:
        count_of(limit, "limit")
    seed_of(seed)
    named = f"--data {source!r}"
    if source == "digits" and shape is None:
        shape = (1, 8, 8)
    path = Path(source)
    if path.suffix.lower() in ARRAY_FILES and not os.path.isdir(source):
        if shape is not None:
            raise UsageError(f"{named} has its own shape; leave --input-shape out")
        found = read_inputs(path)
        return found[drawn(len(found), limit, seed)]
    if source not in ("digits", "photos", "noise") and not os.path.exists(source):
        raise UsageError(f"{named} does not exist; give a .npy, .npz or .safetensors file, digits, photos or a folder")
    if shape is None:
        raise UsageError(f"{named} are pictures, which a component takes in any size; add --input-shape, as 3x32x32")
    if len(shape) != 3:
        raise UsageError(f"{named} are pictures; give --input-shape as CxHxW, such as 3x32x32")
    if shape[0] not in (1, 3) and source != "noise":
        raise UsageError(f"{named} are pictures of 1 or 3 channels; --input-shape asks for {shape[0]}")
    made = plain_preprocessing((shape[0], shape[1], shape[2]))
    return load_images(source, preprocessing=made, limit=limit, seed=seed).tensor
