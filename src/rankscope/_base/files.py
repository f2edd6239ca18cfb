"""Files that appear whole or not at all, carry a checksum, and are read back with one clear error."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rankscope._base.errors import OutputError
from rankscope._base.lock import FolderLock

__all__ = [
    "CHECKSUM",
    "FolderLock",
    "append_whole",
    "as_bytes",
    "checksum",
    "damaged",
    "digest_of_bytes",
    "digest_of_file",
    "digest_of_tensors",
    "in_order",
    "make_folder",
    "read_arrays",
    "unreadable",
    "write_arrays",
    "write_whole",
]

_SIZE = 16  # bytes of a digest
CHECKSUM = "checksum"


def unreadable(path: Path, error: Exception) -> OutputError:
    """What is said of a file that cannot be read."""
    return OutputError(f"{str(path)!r} cannot be read ({getattr(error, 'strerror', None) or error})")


def damaged(path: Path) -> OutputError:
    """What is said of a file that has another content than its checksum."""
    return OutputError(f"{str(path)!r} is damaged: its content does not have the checksum it was written with")


def make_folder(path: Path) -> Path:
    """The folder, made if absent and proved writable.

    Raises
    ------
    OutputError
        When it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".rankscope-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write into {str(path)!r}: {error.strerror or error}; choose another output folder"
        ) from error
    return path


def as_bytes(text: str) -> bytes:
    r"""UTF-8; what is no Unicode, such as a byte of a file name, as an escape that JSON reads back as it was.

    >>> as_bytes("bad\udcff.png"), json.loads(as_bytes('"bad\udcff.png"')) == "bad\udcff.png"
    (b'bad\\udcff.png', True)
    """
    return text.encode("utf-8", "backslashreplace")


def write_whole(path: Path, content: bytes | str) -> None:
    """Write beside, flush to disk, rename: a reader never sees half a file, also after a power cut.

    Raises
    ------
    OutputError
        When it cannot be written; what was there before is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(as_bytes(content) if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no space left" if full else error.strerror or error
        raise OutputError(f"cannot write {str(path)!r}: {reason}") from error
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def append_whole(file: int, content: bytes, end: int) -> None:
    """Write at the end of a file that was opened to append and ends at ``end``, and flush to disk.

    Raises
    ------
    OSError
        When it cannot be written; then nothing of it is left, so that half a line never joins the next one.
    """
    left = memoryview(content)
    try:
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, end)
        raise


def in_order(content: bytes) -> bytes:
    """A safetensors file with the keys of its metadata sorted: the library writes them in the order of a hash.

    >>> from safetensors.numpy import save
    >>> one, two = (save({"a": np.zeros(2)}, dict.fromkeys(keys, "v")) for keys in ("xyz", "zyx"))
    >>> in_order(one) == in_order(two)
    True
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def digest_of_bytes(*parts: bytes | memoryview | str) -> str:
    """Digest of the parts and of where one ends and the next begins.

    >>> digest_of_bytes(b"ab", b"c") == digest_of_bytes(b"a", b"bc")
    False
    """
    total = hashlib.blake2b(digest_size=_SIZE)
    for part in parts:
        content = as_bytes(part) if isinstance(part, str) else part
        total.update(memoryview(content).nbytes.to_bytes(8, "little"))
        total.update(content)
    return total.hexdigest()


def digest_of_tensors(values: Iterable[torch.Tensor | np.ndarray]) -> str:
    """Digest of every byte, and of dtypes and shapes.

    >>> digest_of_tensors([torch.zeros(2, 3)]) == digest_of_tensors([torch.zeros(3, 2)])
    False
    """
    parts: list[bytes | memoryview | str] = []
    for value in values:
        parts += [f"{value.dtype}{tuple(value.shape)}", _bytes_of(value)]
    return digest_of_bytes(*parts)


def digest_of_file(path: str | Path) -> str:
    """Digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_SIZE)).hexdigest()


def _bytes_of(value: torch.Tensor | np.ndarray) -> memoryview:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def checksum(arrays: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """Digest of named arrays or tensors together with the texts beside them."""
    texts = [part for key in sorted(about) if key != CHECKSUM for part in (key, about[key])]
    names = sorted(arrays)
    return digest_of_bytes(*texts, *names, digest_of_tensors(arrays[name] for name in names))


def write_arrays(path: Path, arrays: Mapping[str, Any], about: Mapping[str, str]) -> str:
    """One safetensors file of arrays or tensors with a checksum of all that it holds; returns the checksum."""
    made = checksum(arrays, about)
    metadata = {**about, CHECKSUM: made}
    if any(isinstance(value, torch.Tensor) for value in arrays.values()):
        from safetensors.torch import save as save_tensors

        ready = {name: value.detach().cpu().contiguous() for name, value in arrays.items()}
        write_whole(path, in_order(save_tensors(ready, metadata)))
    else:
        from safetensors.numpy import save as save_arrays

        whole = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        write_whole(path, in_order(save_arrays(whole, metadata)))
    return made


def read_arrays(
    path: Path, framework: Literal["numpy", "pt"] = "numpy", *, unchecked: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Arrays (or tensors) and texts of a safetensors file whose checksum holds.

    ``unchecked`` also takes a file without a checksum, as earlier versions wrote them.

    Raises
    ------
    OutputError
        When the file is missing, damaged, or has no checksum.
    """
    from safetensors import SafetensorError

    try:
        arrays, about = _contents(path, framework)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise unreadable(path, error) from error
    kept = about.get(CHECKSUM)
    if kept is None and not unchecked:
        raise OutputError(f"{str(path)!r} has no checksum, so an earlier version wrote it or it is damaged")
    if kept is not None and kept != checksum(arrays, about):
        raise damaged(path)
    return arrays, about


def _contents(path: Path, framework: Literal["numpy", "pt"]) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import safe_open

    if not _is_text(path):
        from safetensors.numpy import load as load_arrays
        from safetensors.torch import load as load_tensors

        content = path.read_bytes()
        load: Callable[[bytes], dict[str, Any]] = load_tensors if framework == "pt" else load_arrays
        return load(content), _metadata(content)
    with safe_open(str(path), framework=framework) as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return arrays, dict(file.metadata() or {})


def _is_text(path: Path) -> bool:
    """Whether a path is text, as the library of safetensors wants it; names of files may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))


def read_about(path: Path) -> dict[str, str] | None:
    """The texts of a safetensors file, without its arrays and unchecked; ``None`` where they cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        if not _is_text(path):
            return _metadata(path.read_bytes())
        with safe_open(str(path), framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError):
        return None
