"""Finished images on disk, so that a stopped run continues where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rankscope._base.errors import DataError, OutputError
from rankscope._base.files import in_order, make_folder, write_whole
from rankscope.slicing import Columns, ModuleCall, Sample
from rankscope.spectra import Spectrum

__all__ = ["Checkpoint"]


def _image(sample: Sample) -> str:
    """All that the model is called with."""
    rest = {k: v if not isinstance(v, Tensor) else _digest([v]) for k, v in sorted(sample.extra.items())}
    return _digest([sample.x]) + hashlib.sha256(repr((sample.keyword, rest)).encode()).hexdigest()


def _digest(tensors: Sequence[Tensor]) -> str:
    sha = hashlib.sha256()
    for t in tensors:
        sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


class Checkpoint:
    """One safetensors file an image. Files are used again only for the same model, settings and image."""

    def __init__(self, folder: Path | None, key: str, calls: Sequence[ModuleCall]) -> None:
        self.folder, self.key, self.calls = folder, key, calls

    @classmethod
    def open(
        cls,
        path: str | Path | None,
        calls: Sequence[ModuleCall],
        columns: Columns,
        background: str,
        dtype: torch.dtype,
        certify: bool,
        model: nn.Module,
        cut_points: Any,
    ) -> Checkpoint:
        if path is None:
            return cls(None, "", calls)
        weights = _digest([*model.parameters(), *model.buffers()])
        settings = {
            "calls": [c.name for c in calls],
            "columns": repr(columns),
            "background": background,
            "dtype": str(dtype),
            "certify": certify,
            "model": repr(model),  # two activations have the same weights
            "weights": weights,
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return cls(make_folder(Path(path)), key, calls)

    def _file(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"image-{index:06d}.safetensors"

    def write(self, index: int, sample: Sample, row: Sequence[Spectrum | None], kinks: int) -> None:
        """Keep one image's spectra."""
        if self.folder is None:
            return
        from safetensors.numpy import save

        arrays: dict[str, Any] = {}
        about: dict[str, Any] = {"kinks": kinks, "spectra": []}
        for k, s in enumerate(row):
            if s is None:
                about["spectra"].append(None)
                continue
            about["spectra"].append([*s.shape, s.dtype])
            arrays[f"{k}"] = np.array(s.singular_values)
            arrays[f"{k}.error"] = np.array([s.error_bound, s.square_error])
        metadata = {"key": self.key, "image": _image(sample), "about": json.dumps(about)}
        write_whole(self._file(index), in_order(save(arrays, metadata=metadata)))

    def read(self, index: int, sample: Sample) -> tuple[list[Spectrum | None], int] | None:
        """One image's spectra, or ``None`` where there are none for these settings, this model and this image."""
        if self.folder is None or not self._file(index).exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(index), framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key or metadata.get("image") != _image(sample):
                    return None
                about = json.loads(metadata["about"])
                row: list[Spectrum | None] = []
                for k, entry in enumerate(about["spectra"]):
                    if entry is None:
                        row.append(None)
                        continue
                    error, square = (float(v) for v in file.get_tensor(f"{k}.error"))
                    row.append(Spectrum(file.get_tensor(f"{k}"), (entry[0], entry[1]), entry[2], error, square))
        except (SafetensorError, KeyError, ValueError, TypeError, DataError) as error:
            raise OutputError(f"{str(self._file(index))!r} is damaged ({error}); delete it and run again") from error
        return row, int(about["kinks"])
