"""Shards on disk: written whole or not at all, tied by a fingerprint to one model, data set and setting."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rankscope._base.errors import OutputError

__all__ = ["ShardStore"]

SCHEMA_VERSION = 1


@dataclass
class ShardStore:
    """A folder with ``manifest.json``, ``shard-00000.safetensors`` … and the moments as they were after the last one.

    A shard counts as whole when it and the moments after it are on disk; whatever else an interrupted run has left is
    removed on opening. Each file is written beside its place, flushed and renamed.

    Raises
    ------
    OutputError
        The folder belongs to another model, data set or setting (the part that differs is named), a file cannot be
        read, or the disk is full (what was written before is kept and its extent named).
    """

    folder: Path
    fingerprint: dict[str, str]

    def open(self) -> int:
        """Number of whole shards; 0 in a new folder. Checks the fingerprint."""
        manifest = self.folder / "manifest.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not manifest.exists():
                if any(self.folder.glob("shard-*.safetensors")):
                    raise OutputError(f"{self.folder} holds shards without a manifest.json; give an empty folder")
                plain = {"schema_version": SCHEMA_VERSION, "kind": "collection", "fingerprint": self.fingerprint}
                self._write(manifest, json.dumps(plain, indent=1).encode())
                return 0
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written to: {error.strerror or error}") from error
        stored = self.read_manifest(self.folder)
        for part in sorted({*stored, *self.fingerprint}):
            if stored.get(part) != self.fingerprint.get(part):
                raise OutputError(
                    f"{self.folder} holds shards of another {part} ({stored.get(part)}; now "
                    f"{self.fingerprint.get(part)}); give another folder, or delete this one"
                )
        whole = self.whole()
        for path in self.folder.iterdir():
            keep = {manifest, *(self._shard(k) for k in range(whole)), self._moments(whole - 1)}
            if path not in keep and path.name.startswith(("shard-", "moments-", ".part-")):
                path.unlink()
        return whole

    def whole(self) -> int:
        """Number of shards up to the last one whose moments are on disk too."""
        whole = 0
        for k in range(len(list(self.folder.glob("shard-*.safetensors")))):
            if not self._shard(k).exists():
                break
            whole = k + 1 if self._moments(k).exists() else whole
        return whole

    def progress(self) -> tuple[int, int]:
        """Samples in whole shards (skipped ones counted), and samples in all; (0, 0) before the first shard."""
        whole = self.whole()
        if not whole:
            return 0, 0
        notes = self.read(whole - 1)[1]
        return int(notes["after"]), int(notes["total"])

    @staticmethod
    def read_manifest(folder: Path) -> dict[str, str]:
        """The fingerprint a folder was written with."""
        path = folder / "manifest.json"
        try:
            plain = json.loads(path.read_text())
            version, found = plain["schema_version"], dict(plain["fingerprint"])
        except FileNotFoundError as error:
            raise OutputError(
                f"{folder} holds no collected run (no {path.name}); make one with collect: "
                f"rankscope collect MODEL --data DATA --out {folder}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{path} cannot be read ({reason}); collect again into another folder") from error
        if version != SCHEMA_VERSION:
            raise OutputError(f"{path} has schema_version {version}; this release reads {SCHEMA_VERSION}")
        return found

    def append(
        self,
        index: int,
        tensors: Mapping[str, torch.Tensor],
        moments: Mapping[str, torch.Tensor],
        notes: dict[str, Any],
    ) -> None:
        """Write shard ``index`` and the moments after it; the moments before it are removed last."""
        try:
            self._write(self._shard(index), save(_ready(tensors), {"notes": json.dumps(notes)}))
            self._write(self._moments(index), save(_ready(moments)))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._shard(index).unlink(missing_ok=True)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise OutputError(
                f"{'no space left' if full else error.strerror or error} in {self.folder} while writing shard {index}; "
                f"the {index} shards before it are whole: "
                f"{'free some space' if full else 'mend that'} and run the same command again to go on from there"
            ) from error
        if index:
            self._moments(index - 1).unlink(missing_ok=True)

    def read(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and notes of one shard."""
        tensors, meta = _read(self._shard(index))
        return tensors, json.loads(meta.get("notes", "{}"))

    def read_moments(self, index: int) -> dict[str, torch.Tensor]:
        """States of all moments after shard ``index``, by ``layer/state``."""
        return _read(self._moments(index))[0]

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.safetensors"

    def _moments(self, index: int) -> Path:
        return self.folder / f"moments-{index:05d}.safetensors"

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(f".part-{path.name}")
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def _ready(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be read ({error}); delete it and collect again") from error
