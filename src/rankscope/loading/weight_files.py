"""Files of weights, read without running anything that they may carry: one file, shards with an index, or a folder."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rankscope._base.errors import ModelError, first_line, parameter
from rankscope.loading.inert import Inert, foreign_globals, holds_pickle, hostile, inert_globals

__all__ = ["check_present", "few", "read_file", "tensors_by_name"]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
_INDEX = ".index.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_SHOWN = 4
_BLOCK = 1 << 24  # bytes read at once
_DEEP = 12  # mappings inside mappings
_ZIP = b"PK\x03\x04"
_AGAIN = "it is truncated or of another type: fetch or save it again"
_OTHER = "weights are read from .safetensors, .pt, .pth, .ckpt, .bin and .index.json files"
# What keeps the optimiser's tensors in a checkpoint; they are as many as the weights and fit no model.
_OPTIMISER = ("optim", "optimizer", "optimiser", "optimizers", "optimizer_state", "optimizer_states")


def read_file(path: str | Path) -> Any:
    """What the file holds, on the CPU: mappings of tensors, nested as they were saved.

    ``path`` may be a file of safetensors or of torch (told by its content, whatever its name ends in), the index of a
    set of shards (``model.safetensors.index.json``), or a folder that holds one of these. Objects other than tensors
    become inert (see ``loading.inert``); none is built and no code of the file runs. Raises ``ModelError`` naming the
    file and the remedy when it is missing, empty, truncated, of another type, or would run code when opened.
    """
    path = Path(path).expanduser()
    check_present(path)
    if path.is_dir():
        return read_file(_in_folder(path))
    if path.name.endswith(_INDEX):
        return _shards(path)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ModelError(f"weights file {str(path)!r} is empty; fetch or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"weights file {str(path)!r} is a pointer of Git LFS, not the file; run git lfs pull")
    if path.suffix.lower() == ".safetensors" or head[8:9] == b"{":
        return _safetensors(path)
    if path.suffix.lower() in _SUFFIXES or head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
        return _torch(path)
    raise ModelError(f"weights file {str(path)!r} is of type {path.suffix!r}; {_OTHER}")


def tensors_by_name(found: Any, *, everything: bool = False) -> dict[str, torch.Tensor]:
    """Every tensor of nested mappings and pickled modules, by its dotted name; those of an optimiser are left out.

    Raises ``ModelError`` where two different tensors have one name.

    >>> list(tensors_by_name({"state_dict": {"fc.weight": torch.ones(2)}, "epoch": 3}))
    ['state_dict.fc.weight']
    """
    flat: dict[str, torch.Tensor] = {}
    if isinstance(found, torch.Tensor):
        return flat

    def add(value: Any, name: str, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            if name in flat and not same(flat[name], value):
                raise ModelError(f"the file holds two different tensors called {name!r}; save model.state_dict() alone")
            flat[name] = value
        elif isinstance(value, Inert) and value.modules is not None:
            add(value.modules, name, depth)
        elif isinstance(value, Mapping) and depth < _DEEP:
            for key, inner in value.items():
                if not isinstance(key, str):
                    continue
                if not everything and depth == 0 and key.lower() in _OPTIMISER:
                    continue
                add(inner, f"{name}.{key}" if name else key, depth + 1)

    add(found, "", 0)
    return flat


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same kind."""
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def check_present(path: str | Path) -> None:
    """Raise ``ModelError`` where there is no such file or folder; a name too long for one is none."""
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise ModelError(
            f"{parameter('weights')} file {str(path)!r} does not exist; give the path of a file or folder of weights"
        )


def _in_folder(folder: Path) -> Path:
    """The one file of weights that a folder holds: an index of shards first, for it names the others."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    indices = [n for n in names if n.endswith(_INDEX)]
    whole = [n for n in _WHOLE if n in names]
    others = [n for n in names if Path(n).suffix.lower() in _SUFFIXES]
    for choices in (sorted(indices, key=lambda n: "safetensors" not in n)[:1], whole[:1], others):
        if len(choices) == 1:
            return folder / choices[0]
    if any(n.endswith(".distcp") for n in names):
        raise ModelError(
            f"folder {str(folder)!r} is a distributed checkpoint; run python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth and give weights.pth"
        )
    if others:
        raise ModelError(f"folder {str(folder)!r} holds {len(others)} weights files ({few(others)}); give one of them")
    raise ModelError(f"folder {str(folder)!r} holds no weights; {_OTHER}")


def _shards(index: Path) -> dict[str, torch.Tensor]:
    """The tensors of all shards that an index names, each of which must be there and hold what the index says."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(name): str(file) for name, file in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"weights index {str(index)!r} cannot be read ({first_line(error)}); {_AGAIN}") from error
    outside = [file for file in wanted.values() if Path(file).name != file]
    if outside:
        raise ModelError(f"weights index {str(index)!r} names {outside[0]!r}, outside its folder; save it again")
    files = sorted(set(wanted.values()))
    absent = [file for file in files if not (index.parent / file).is_file()]
    if absent:
        raise ModelError(
            f"weights index {str(index)!r} names {len(files)} files, of which {len(absent)} are missing from its "
            f"folder: {few(absent)}; fetch them too"
        )
    found: dict[str, torch.Tensor] = {}
    for file in files:
        held = tensors_by_name(read_file(index.parent / file))
        found |= {name: tensor for name, tensor in held.items() if wanted.get(name, file) == file}
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise ModelError(f"weights index {str(index)!r} names tensors that its files lack: {few(lacking)}; {_AGAIN}")
    return found


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # save_model() writes of tied tensors one, and under the others' names the name of that one
            for name, kept in (file.metadata() or {}).items():
                if name not in found and kept in found:
                    found[name] = found[kept]
            return found
    except (SafetensorError, OSError, ValueError, AttributeError, KeyError) as error:
        raise ModelError(
            f"weights file {str(path)!r} is no readable safetensors file ({first_line(error)}); {_AGAIN}"
        ) from error


def _torch(path: Path) -> Any:
    with open(path, "rb") as file:
        started = file.read(len(_ZIP)) == _ZIP
    if started and not _is_zip(path):
        raise ModelError(f"weights file {str(path)!r} cannot be read (its end is missing); {_AGAIN}")
    changed = _changed_record(path) if started else None
    if changed is not None:
        raise ModelError(f"weights file {str(path)!r} is damaged ({changed}); {_AGAIN}")
    script = _script(path)
    if script is not None:
        raise ModelError(f"weights file {str(path)!r} {script}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as first:
        if not holds_pickle(path):  # torch gives the same class to bytes that are no pickle at all
            raise ModelError(f"weights file {str(path)!r} cannot be read (it is no whole pickle); {_AGAIN}") from first
        names = foreign_globals(path)
        bad = [name for name in names if hostile(name)]
        if bad:
            raise ModelError(
                f"weights file {str(path)!r} is refused: it would call {bad[0]} when opened, which no weights need; "
                "fetch it from a source that you trust, as .safetensors"
            ) from first
        try:
            with torch.serialization.safe_globals(inert_globals(names)):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            again = f"import torch; torch.save(torch.load({str(path)!r}, 'cpu', weights_only=False), 'weights.pth')"
            raise ModelError(
                f"weights file {str(path)!r} is refused: it holds Python objects in a format that can only be read by "
                f'running code of the file. Where you trust it, run python -c "{again}" and give weights.pth'
            ) from error
        except Exception as error:
            raise ModelError(f"weights file {str(path)!r} cannot be read ({first_line(error)}); {_AGAIN}") from error
    except Exception as error:  # damaged files make torch raise nearly anything
        raise ModelError(f"weights file {str(path)!r} cannot be read ({first_line(error)}); {_AGAIN}") from error


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a damaged end
        return False


def _changed_record(path: Path) -> str | None:
    """What of a zip file is not as it was written, in words; torch reads it all the same.

    Where no checksum holds none was written (``torch.serialization.set_crc32_options``), so nothing is known.
    """
    held = 0
    changed: list[str] = []
    try:
        with zipfile.ZipFile(path) as file:
            for record in file.infolist():
                try:
                    with file.open(record) as opened:
                        while opened.read(_BLOCK):
                            pass
                    held += bool(record.file_size)
                except zipfile.BadZipFile:
                    changed.append(record.filename)
    except Exception as error:  # the table of contents is damaged
        return first_line(error)
    return f"{changed[0]} does not have its checksum" if changed and held else None


def _script(path: Path) -> str | None:
    """What a zip file of another part of torch is, with the remedy; None for a checkpoint."""
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.rpartition("/")[2] for name in file.namelist()}
    except Exception:  # no zip, or a damaged table of contents; torch then says so
        return None
    if "constants.pkl" in names:
        call, kind = f"torch.jit.load({str(path)!r}, map_location='cpu').state_dict()", "is a TorchScript program"
    elif any(name.startswith("serialized_exported_program") or name == "model.json" for name in names):
        call, kind = f"torch.export.load({str(path)!r}).state_dict", "is an exported program"
    else:
        return None
    return f"{kind}; run python -c \"import torch; torch.save({call}, 'weights.pth')\" and give weights.pth"


def few(items: Iterable[str]) -> str:
    """The first items, and how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
