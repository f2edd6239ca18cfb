"""Shards on disk: written whole or not at all, tied by a fingerprint to one model, data set and setting."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rankscope._base.errors import OutputError
from rankscope._base.files import digest_of_bytes, make_folder, read_arrays, write_arrays, write_whole
from rankscope._base.json_files import read_json, write_json

__all__ = ["ShardStore"]

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass
class ShardStore:
    """A folder with ``manifest.json``, ``shard-00000.safetensors`` … and the moments as they were after the last one.

    A shard counts as whole when it and the moments after it are on disk; whatever else an interrupted run has left is
    removed on opening. Each file is written beside its place, flushed and renamed. It carries a checksum and the key of
    the manifest that it belongs to.

    Raises
    ------
    OutputError
        The folder belongs to another model, data set or setting (the part that differs is named), a file cannot be
        read, or the disk is full (what was written before is kept and its extent named).
    """

    folder: Path
    fingerprint: dict[str, str]
    missing: tuple[str, ...] = field(default=(), init=False)
    """Names of the files that were not there on opening, though later ones were."""

    def open(self) -> int:
        """Number of whole shards; 0 in a new folder. Checks the fingerprint."""
        manifest = self.folder / _MANIFEST
        make_folder(self.folder)
        if not manifest.exists():
            if any(path.name.startswith(("shard-", "moments-")) for path in self.folder.glob("*.safetensors")):
                raise OutputError(f"{self.folder} holds shards without a {_MANIFEST}; give an empty folder")
            self._begin()
            return 0
        stored = self.read_manifest(self.folder)
        if self._stored_key() is None:
            raise OutputError(
                f"{self.folder} was collected by an earlier version of rankscope, which cannot be continued; give "
                "another folder, or delete this one"
            )
        for part in sorted({*stored, *self.fingerprint}):
            if stored.get(part) != self.fingerprint.get(part):
                raise OutputError(
                    f"{self.folder} holds shards of another {part} ({stored.get(part)}; now "
                    f"{self.fingerprint.get(part)}); give another folder, or delete this one"
                )
        whole = self.whole()
        self.missing = tuple(path.name for path in self._lost())
        self._remove_all_but({*(self._shard(k) for k in range(whole)), self._moments(whole - 1)})
        return whole

    def copy_to(self, folder: Path) -> None:
        """Every whole shard, the moments after the last, and at the end the manifest, into another folder."""
        make_folder(folder)
        if (folder / _MANIFEST).exists() or any(folder.glob("shard-*.safetensors")):
            raise OutputError(f"{folder} holds a collection already; give another folder")
        whole = self.whole()
        last = [self._moments(whole - 1)] if whole else []
        for file in (*map(self._shard, range(whole)), *last, self.folder / _MANIFEST):
            try:
                content = file.read_bytes()
            except OSError as error:
                raise OutputError(f"{file} cannot be read ({error.strerror or error}); collect again") from error
            write_whole(folder / file.name, content)

    def clear(self) -> None:
        """Begin again: no shard, and the manifest of this run."""
        self._remove_all_but(set())
        self._begin()

    def _begin(self) -> None:
        plain = {
            "schema_version": SCHEMA_VERSION,
            "kind": "collection",
            "key": self.key,
            "fingerprint": self.fingerprint,
        }
        write_json(self.folder / _MANIFEST, plain)

    def _remove_all_but(self, keep: set[Path]) -> None:
        for path in self.folder.iterdir():
            if path not in keep and path.name.startswith(("shard-", "moments-", ".part-")):
                try:
                    path.unlink()
                except OSError as error:
                    raise OutputError(
                        f"{path} cannot be removed ({error.strerror or error}); give another folder, or delete this one"
                    ) from error

    @property
    def key(self) -> str:
        """What ties shards to a manifest."""
        return digest_of_bytes(json.dumps(self.fingerprint, sort_keys=True))

    @classmethod
    def key_in(cls, folder: Path) -> str:
        """The key of the run that a folder holds."""
        return cls(folder, cls.read_manifest(folder)).key

    def _stored_key(self) -> str | None:
        """The key in the manifest; ``None`` in one of an earlier version, whose shards have no checksum either."""
        plain = read_json(self.folder / _MANIFEST)
        found = plain.get("key") if isinstance(plain, dict) else None
        return None if found is None else str(found)

    def whole(self) -> int:
        """Number of shards up to the last one whose moments are on disk too."""
        whole = 0
        for k in range(len(list(self.folder.glob("shard-*.safetensors")))):
            if not self._shard(k).exists():
                break
            whole = k + 1 if self._moments(k).exists() else whole
        return whole

    def check_none_missing(self) -> None:
        """Refuse a folder in which a file was lost between others: ``OutputError`` with its name."""
        lost = self._lost()
        if lost:
            raise OutputError(f"{lost[0]} is missing; put it back, or collect again")

    def _lost(self) -> list[Path]:
        """The files without which others could not have been written: shards up to the last, moments after them."""
        shards, moments = (self._numbers(kind) for kind in ("shard", "moments"))
        last = max(moments, default=-1)
        # a run may have been killed between a shard and the moments after it
        needed = [self._shard(k) for k in range(max([last, *shards], default=-1) + 1)]
        needed += [self._moments(last if moments else max(shards))] if needed else []
        return [file for file in needed if not file.exists()]  # a link that leads nowhere is listed, and is not there

    def _numbers(self, kind: str) -> list[int]:
        return [int(path.stem.partition("-")[2]) for path in self.folder.glob(f"{kind}-*[0-9].safetensors")]

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
        path = folder / _MANIFEST
        if not path.exists():
            raise OutputError(f"{folder} holds no collected run (no {path.name}); make one with collect")
        try:
            plain = read_json(path)
            version, found = plain["schema_version"], dict(plain["fingerprint"])
            json.loads(found.get("setting", "{}"))  # which a reader of the collection asks for its cut points
            if "key" in plain and plain["key"] != ShardStore(folder, found).key:
                raise ValueError("its key is that of another fingerprint")
        except OutputError as error:
            raise OutputError(f"{error}; collect again into another folder") from error
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} cannot be read ({error}); collect again into another folder") from error
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
        about = {"key": self.key, "index": str(index)}
        for path in (self._shard(index), self._moments(index)):
            if path.exists():
                raise OutputError(
                    f"{path} appeared while this run was collecting: another run writes into the same folder; give "
                    "each run a folder of its own"
                )
        try:
            write_arrays(self._shard(index), tensors, {**about, "notes": json.dumps(notes)})
            write_arrays(self._moments(index), moments, about)
        except OutputError as error:
            with contextlib.suppress(OSError):
                self._shard(index).unlink(missing_ok=True)
            full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise OutputError(
                f"{error} while writing shard {index}; the {index} shards before it are complete: "
                f"{'free some space' if full else 'fix this'} and run the same command again to continue"
            ) from error
        if index:
            self._moments(index - 1).unlink(missing_ok=True)

    def read(self, index: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors and notes of one shard."""
        tensors, about = self._read(self._shard(index), index)
        return tensors, json.loads(about.get("notes", "{}"))

    def read_moments(self, index: int) -> dict[str, torch.Tensor]:
        """States of all moments after shard ``index``, by ``layer/state``."""
        return self._read(self._moments(index), index)[0]

    def _read(self, path: Path, index: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        key = self._stored_key()
        try:
            tensors, about = read_arrays(path, "pt", unchecked=key is None)
        except OutputError as error:
            raise OutputError(f"{error}; delete the folder and collect again") from error
        if about.get("key") != key:
            raise OutputError(f"{path} belongs to another run than the {_MANIFEST} beside it; collect again")
        if about.get("index", str(index)) != str(index):  # absent from files of earlier versions
            raise OutputError(f"{path} was written as number {about['index']}, under another name; collect again")
        return tensors, about

    def _shard(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.safetensors"

    def _moments(self, index: int) -> Path:
        return self.folder / f"moments-{index:05d}.safetensors"
