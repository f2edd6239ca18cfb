"""Data as batches that can be taken up anywhere: arrays, data sets, loaders; unreadable samples named and skipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset, TensorDataset, default_collate

from rankscope._base.errors import DataError, UsageError

__all__ = ["Batch", "Skipped", "as_dataset", "batches", "first_input", "skipped_lines"]

_LABELS, _INPUTS = ("label", "labels", "target"), ("pixel_values", "image", "input", "inputs")
_REMEDY = (
    "give the data set a transform that makes tensors (for images: ToTensor and a fixed size; for records of a Hugging "
    "Face data set: with_transform), and labels"
)


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read: its index, its file where known, and the reason."""

    index: int
    name: str
    reason: str


def skipped_lines(skipped: Sequence[Skipped], *, most: int = 20) -> list[str]:
    """How many samples were skipped, and the first of them with file and reason; nothing where there are none."""
    if not skipped:
        return []
    lines = [f"{len(skipped):,} unreadable sample{'s' * (len(skipped) > 1)} skipped:"]
    lines += [f"  {one.name}: {one.reason}" for one in skipped[:most]]
    return [*lines, f"  … and {len(skipped) - most:,} more"] if len(skipped) > most else lines


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs (n, …), labels (n,), their indices in the data set, what was skipped among them, and where to go on."""

    inputs: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: tuple[Skipped, ...]
    after: int


def as_dataset(data: Any) -> tuple[Any, dict[str, Any]]:
    """A map-style data set of (input, label) and the options of the loader it came in.

    Accepts a Dataset, a DataLoader in sequential order, a pair of arrays (inputs, labels), or a Hugging Face data set
    (anything with ``__len__`` and ``__getitem__`` whose items are pairs or dictionaries with ``label``).
    """
    if isinstance(data, Mapping):
        raise UsageError(
            f"data is a {type(data).__name__} of {', '.join(map(str, data)) or 'nothing'}; give one of them"
        )
    if isinstance(data, DataLoader):
        if not isinstance(data.sampler, SequentialSampler):
            raise UsageError(
                f"the DataLoader draws with {type(data.sampler).__name__}; a collection needs a fixed order to be "
                "taken up again: use shuffle=False"
            )
        options = {
            "batch_size": data.batch_size,
            "num_workers": data.num_workers,
            **({} if data.collate_fn is default_collate else {"collate_fn": data.collate_fn}),
            "pin_memory": data.pin_memory,
        }
        return data.dataset, options
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        inputs, labels = (
            part if isinstance(part, torch.Tensor) else torch.from_numpy(np.asarray(part)) for part in data
        )
        if len(inputs) != len(labels):
            raise DataError(f"{len(labels)} labels for {len(inputs)} inputs; give one label an input")
        return TensorDataset(inputs, labels), {}
    if isinstance(data, Dataset) or (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        if not hasattr(data, "__len__"):
            raise UsageError(f"{type(data).__name__} has no length; a collection needs a map-style data set")
        return data, {}
    raise UsageError(
        f"data is a {type(data).__name__}; give a Dataset, a DataLoader with shuffle=False, or a pair (inputs, labels)"
    )


class _Guarded(Dataset[tuple[int, Any]]):
    """The data set, with the error in place of a sample that cannot be read."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.dataset[index]
        # what Pillow and torchvision raise for files that are cut off, empty or of another kind
        except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, DataError) as error:
            listed = getattr(self.dataset, "samples", None)
            name = str(listed[index][0]) if isinstance(listed, list) else f"sample {index}"
            return index, Skipped(index, name, f"{type(error).__name__}: {error}".split("\n")[0][:200])


class _Collate:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[int], Any, list[Skipped]]:
        kept = [(i, item) for i, item in items if not isinstance(item, Skipped)]
        skipped = [item for _, item in items if isinstance(item, Skipped)]
        if not kept:
            return [], None, skipped
        return [i for i, _ in kept], self._joined([item for _, item in kept]), skipped

    def _joined(self, items: list[Any]) -> Any:
        if self.inner is not default_collate:
            return self.inner(items)
        if isinstance(items[0], dict):  # records also hold what the model does not take, such as the picture itself
            items = [_input_and_label(item) for item in items]
        try:
            return default_collate(items)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"samples cannot be put into one batch ({str(error).splitlines()[0]}); {_REMEDY}"
            ) from error


def batches(dataset: Any, start: int, *, batch_size: int, num_workers: int, options: dict[str, Any]) -> Iterator[Batch]:
    """Batches from sample ``start`` on, in order; nothing before it is read again."""
    size = options.get("batch_size") or batch_size
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and "collate_fn" not in options:
        # slices of arrays: picking samples one by one and stacking them copies all of it, on one thread
        inputs, labels = dataset.tensors
        for a in range(start, len(dataset), size):
            part = slice(a, min(a + size, len(dataset)))
            yield Batch(inputs[part], labels[part].cpu(), torch.arange(part.start, part.stop), (), part.stop)
        return
    loader = DataLoader(
        Subset(_Guarded(dataset), range(start, len(dataset))),
        batch_size=size,
        num_workers=options.get("num_workers", num_workers),
        pin_memory=options.get("pin_memory", False),
        collate_fn=_Collate(options.get("collate_fn", default_collate)),
        generator=torch.Generator(),  # the loader seeds its workers from it: the caller's random state stays as it is
    )
    after = start
    for indices, content, skipped in loader:
        after += len(indices) + len(skipped)
        inputs, labels = _pair(content) if indices else (torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        yield Batch(inputs, labels, torch.tensor(indices, dtype=torch.int64), tuple(skipped), after)


def first_input(dataset: Any, options: dict[str, Any]) -> torch.Tensor | None:
    """The first sample that can be read, (1, …); None where there is none."""
    chosen = {"collate_fn": options["collate_fn"]} if "collate_fn" in options else {}
    for batch in batches(dataset, 0, batch_size=1, num_workers=0, options=chosen):
        if len(batch.indices):
            return batch.inputs
    return None


def _input_and_label(record: dict[str, Any]) -> tuple[Any, Any]:
    """The two entries of a record that a collection needs; lists of numbers, which plain records hold, as tensors."""
    label = next((record[k] for k in _LABELS if k in record), None)
    content = next((record[k] for k in _INPUTS if k in record), None)
    if label is None or content is None:
        lacks, names = ("label", _LABELS) if label is None else ("input", _INPUTS)
        raise DataError(f"records hold {', '.join(record)}, so no {lacks}; name it one of {', '.join(names)}")
    return torch.tensor(content) if isinstance(content, list) else content, label


def _pair(content: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(content, dict):
        content = _input_and_label(content)
    if (
        not isinstance(content, tuple | list)
        or len(content) < 2
        or not all(isinstance(part, torch.Tensor) for part in content[:2])
    ):
        raise DataError(f"a batch is a {type(content).__name__}, not a pair of tensors (inputs, labels); {_REMEDY}")
    return content[0], content[1]
