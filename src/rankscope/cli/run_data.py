"""What ``clsdim``, ``deficit`` and ``features`` read: a folder that ``collect`` wrote, or the user's own arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rankscope._base.errors import DataError, OutputError, UsageError
from rankscope._base.json_files import read_json
from rankscope._base.labels import class_indices
from rankscope.cli.array_files import ARRAY_FILES, read_arrays, read_labels
from rankscope.features import CentredMoments, Collection
from rankscope.features.reduction import Reduce
from rankscope.features.shards import ShardStore

__all__ = ["RunData", "read_run"]

_ABOUT = ("model", "weights", "data", "class_names")


@dataclass(frozen=True, eq=False)
class RunData:
    """Arrays with one row per sample, the head's (weight, bias), and what is known of their origin."""

    labels: torch.Tensor
    features: torch.Tensor | None
    logits: torch.Tensor | None
    head: tuple[torch.Tensor, torch.Tensor] | None
    about: dict[str, Any]
    folder: Path  # where results go by default
    moments: dict[str, CentredMoments] = field(default_factory=dict)
    reduce: Reduce = "pool"
    notes: tuple[str, ...] = ()


def read_run(run: Path, *, array: str, labels: Path | None, head: Path | None = None) -> RunData:
    """Read a collected run, or arrays.

    ``run`` may be a ``.safetensors`` or ``.npz`` file with any of the arrays ``features``, ``logits``, ``labels``,
    ``weight`` and ``bias``, or a ``.npy`` of the one that ``array`` names. ``labels`` and ``head`` name files that add
    what it lacks.

    Raises
    ------
    OutputError
        No collected run there.
    DataError
        Arrays that cannot be read, are missing or do not fit together.
    """
    if run.suffix not in ARRAY_FILES or run.is_dir():
        given = next((o for o, v in (("--labels", labels), ("--head-file", head)) if v is not None), None)
        if given is not None:
            raise UsageError(f"{given} belongs to an array file; the run {str(run)!r} holds its own")
        return _collected(run)
    arrays = read_arrays(run)
    if "" in arrays:
        arrays = {array: arrays[""]}
    if labels is not None:
        arrays["labels"] = read_labels(labels)
    if head is not None:
        arrays |= {key: value for key, value in read_arrays(head, "--head-file").items() if key in ("weight", "bias")}
    if "labels" not in arrays:
        raise DataError(f"{run.name} holds no labels; add --labels FILE, a .npy with one integer per sample")
    if array not in arrays:
        raise DataError(f"{run.name} holds {', '.join(sorted(arrays))}; name its array {array}")
    arrays["labels"] = class_indices(arrays["labels"], name=f"the labels in {(labels or run).name}")
    for key in {"features", "logits"} & set(arrays):
        if len(arrays[key]) != len(arrays["labels"]):
            raise DataError(f"{len(arrays['labels'])} labels for {len(arrays[key])} rows of {key}; give one per row")
    weight = arrays.get("weight")
    pair = None if weight is None else (weight, arrays.get("bias", torch.zeros(len(weight), dtype=weight.dtype)))
    about = {**dict.fromkeys(_ABOUT), "data": str(run)}
    folder = Path("runs") / run.stem
    return RunData(arrays["labels"], arrays.get("features"), arrays.get("logits"), pair, about, folder)


def _collected(run: Path) -> RunData:
    if not run.is_dir():
        raise OutputError(
            f"there is no collected run {str(run)!r}; make one with rankscope collect MODEL --data DATA --out {run}, "
            "or give a .npy, .npz or .safetensors file of arrays"
        )
    if not (run / "manifest.json").is_file():
        raise OutputError(
            f"{run} holds no collected run (no manifest.json); make one with rankscope collect MODEL --data DATA "
            f"--out {run}"
        )
    found = Collection.load(run)
    about, notes = _about(run)
    return RunData(
        found.labels, found.features, found.logits, found.head, about, run, found.moments, found.reduce, notes
    )


def check_labelled(found: RunData, run: Path) -> None:
    """Refuse a run that was collected without labels.

    Raises
    ------
    DataError
        Where no sample has one.
    """
    if len(found.labels) and bool((found.labels < 0).all()):
        raise DataError(
            f"{run} was collected without labels, and classes are needed here; collect again with --labels FILE, or "
            "from a folder with one subfolder per class"
        )


def _about(run: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the command line wrote beside the shards, and its notes; a run that the library collected has none of it."""
    path = run / "collection.json"
    if not path.exists():
        return dict.fromkeys(_ABOUT), ()
    try:
        plain = read_json(path, version=1, kind="collection")
        about = {key: plain[key] for key in _ABOUT}
        notes = tuple(map(str, plain.get("notes", ())))
    except OutputError as error:
        raise OutputError(f"{error}; collect again, or remove it") from error
    except (KeyError, TypeError) as error:
        raise OutputError(f"{str(path)!r} is damaged ({error}); collect again, or remove it") from error
    key = ShardStore.key_in(run)
    if plain.get("run", key) != key:  # absent from files of earlier versions
        raise OutputError(f"{str(path)!r} belongs to another run than the shards beside it; remove it")
    return about, notes
