"""Weights from a file, without running anything that the file may carry."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import ModelError

__all__ = ["check_finite", "load_weights", "read_weights"]

_TORCH = (".pt", ".pth", ".ckpt", ".bin")
# Where training scripts put the weights inside a checkpoint; averaged weights come last, they need not be complete.
_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
_REFUSALS = ("GLOBAL", "is blocked", "Can only create new object", "Can only build", "must be imported to load")
_SHOWN = 4
_LONG = 160  # characters of another package's message
_AGAIN = "it is truncated or of another type: fetch or save it again"


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors``, ``.pt``, ``.pth``, ``.ckpt`` or ``.bin`` file by name, on the CPU.

    Files of torch are read with ``weights_only=True``: a pickle that wants more than tensors is refused, never run.
    Checkpoints that nest the weights (``state_dict``, ``model`` …) are unwrapped. Raises ``ModelError`` naming the file
    and the remedy when it is missing, truncated, of another type, refused, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights file {str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        found: Any = _read_safetensors(path)
    elif suffix in _TORCH:
        found = _read_torch(path)
    else:
        raise ModelError(f"weights file {str(path)!r} is of type {suffix!r}; .safetensors, .pt, .pth, .ckpt, .bin work")
    tensors = _unwrap(found)
    if not tensors:
        held = f"keys {_few(map(str, found))}" if isinstance(found, Mapping) and found else f"a {type(found).__name__}"
        raise ModelError(f"weights file {str(path)!r} holds no state dict ({held}); save model.state_dict()")
    return tensors


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Put the weights of a file into ``model``; every parameter must be in the file and have its shape.

    A prefix that all names share and the model has not (``module.``, ``_orig_mod.``, ``model.`` …) is dropped.
    Returns a description for the record. Raises ``ModelError`` naming the first missing, unexpected and misshapen
    entries, or the first tensor with NaN or infinite values; the model is then left as it was.
    """
    path = Path(path)
    given = read_weights(path)
    own = model.state_dict()
    given = _strip(given, own)
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in own]
    misshapen = [k for k in own if k in given and own[k].shape != given[k].shape]
    if missing or unexpected or misshapen:
        raise ModelError(_misfit(path, own, given, missing, unexpected, misshapen))
    check_finite(given.items(), f"weights file {str(path)!r}")
    model.load_state_dict(given, strict=False)
    kinds = {str(v.dtype).removeprefix("torch.") for v in given.values() if v.is_floating_point()}
    stored = "" if kinds <= {"float32"} else f", stored as {', '.join(sorted(kinds))}"
    return f"file {path.name} ({len(given)} tensors{stored})"


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], holder: str) -> None:
    """Raise ``ModelError`` naming the first tensor that holds NaN or infinite values.

    >>> check_finite([("weight", torch.tensor([float("nan")]))], "the model")
    Traceback (most recent call last):
    rankscope._base.errors.ModelError: the model holds NaN or infinite values in 'weight' (1 of 1): ...
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            bad = int(tensor.numel() - torch.isfinite(tensor).sum())
            if bad:
                raise ModelError(
                    f"{holder} holds NaN or infinite values in {name!r} ({bad} of {tensor.numel()}): "
                    "its training diverged or the file is damaged; take an earlier checkpoint"
                )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"weights file {str(path)!r} is no readable safetensors file ({_first(error)}); {_AGAIN}"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch gives the same class to objects that are refused and to bytes that are no pickle at all
        refused = any(word in str(error) for word in _REFUSALS)
        if not refused:
            raise ModelError(f"weights file {str(path)!r} cannot be read ({_first(error)}); {_AGAIN}") from error
        raise ModelError(
            f"weights file {str(path)!r} is refused: it holds pickled Python objects, which could run any code when "
            "opened. Where you trust it, convert it to safetensors: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=False).state_dict(), 'FILE.safetensors')"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise ModelError(f"weights file {str(path)!r} cannot be read ({_first(error)}); {_AGAIN}") from error


def _unwrap(found: Any, depth: int = 3) -> dict[str, torch.Tensor]:
    if not isinstance(found, Mapping):
        return {}
    tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
    if depth:
        for nest in _NESTS:
            inner = _unwrap(found.get(nest), depth - 1)
            if len(inner) > len(tensors):
                return inner
    return tensors


def _strip(given: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop shared prefixes as long as that makes more names fit."""
    while True:
        for prefix in _PREFIXES:
            if given and all(k.startswith(prefix) for k in given) and not any(k.startswith(prefix) for k in own):
                given = {k.removeprefix(prefix): v for k, v in given.items()}
                break
        else:
            return given


def _misfit(
    path: Path,
    own: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> str:
    parts = []
    if misshapen:
        shapes = [f"{k} is {tuple(given[k].shape)} in the file, {tuple(own[k].shape)} in the model" for k in misshapen]
        parts.append(f"{len(misshapen)} of another shape: {_few(shapes)}")
    if missing:
        parts.append(f"{len(missing)} missing from the file: {_few(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unknown to the model: {_few(unexpected)}")
    remedy = "is it the right model?"
    sizes = {given[k].shape[0] for k in misshapen if given[k].ndim}
    if misshapen and not missing and not unexpected and len(sizes) == 1 and len(misshapen) <= 2:
        remedy = f"for another number of classes give num_classes={sizes.pop()}"
    return f"weights file {str(path)!r} does not fit the model: {'; '.join(parts)}; {remedy}"


def _few(items: Iterable[str]) -> str:
    listed = list(items)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _first(error: BaseException) -> str:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    if not text:
        return type(error).__name__
    line = text.splitlines()[0]
    if len(line) > _LONG:  # whole sentences, or whole words where the first sentence alone is longer
        whole = line[: _LONG + 1].rpartition(". ")[0]
        line = whole or line[:_LONG].rpartition(" ")[0] + " …"
    return line.rstrip(".")
