"""Labelled data as batches that can be taken up anywhere; unreadable samples are named and skipped.

What a batch means is decided by the one reader of the project (``slicing.calls``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

from rankscope._base.errors import DataError, UsageError, first_line, type_and_line
from rankscope._base.labels import NO_LABEL
from rankscope.features.batch_labels import REMEDY, labels_of, refuse_other_names, without_label
from rankscope.features.joined_records import joined, record_of
from rankscope.features.same_shape import runs_of_one_shape
from rankscope.features.starting_workers import by_itself, workers_of
from rankscope.features.whole_call import WholeCall, named_inputs, split_label, whole_call
from rankscope.loading.texts import Texts
from rankscope.slicing.calls import Call, read_call
from rankscope.slicing.meaning import LABELS, PREFERRED, How, Meaning
from rankscope.slicing.ragged import rows_apart
from rankscope.slicing.reader import are_labels, certain_item, order_of
from rankscope.slicing.shared_values import SharedValues
from rankscope.slicing.signature import Signature, is_hugging_face, signature_of
from rankscope.slicing.values import as_tensor, is_array, numbers_of
from rankscope.views.phrases import counted

__all__ = ["Batch", "Skipped", "as_dataset", "batches", "first_call", "skipped_lines"]

_FORWARD = Meaning(floating=False)
# not padded, and a decoder's head looks for padding in a batch: one text a call
_TEXTS = {"batch_size": 1, "labelled": False}


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
    lines = [f"{counted(len(skipped), 'unreadable sample')} skipped:"]
    lines += [f"  {one.name}: {one.reason}" for one in skipped[:most]]
    return [*lines, f"  … and {len(skipped) - most:,} more"] if len(skipped) > most else lines


@dataclass(frozen=True, eq=False)
class Batch:
    """A call for n samples, labels (n,), their indices in the data set, what was skipped, and where to go on.

    ``call`` is ``None`` where none of the samples could be read.
    """

    call: Call | None
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: tuple[Skipped, ...]
    after: int


def as_dataset(model: nn.Module, data: Any, meaning: Meaning = _FORWARD) -> tuple[Any, dict[str, Any]]:
    """A map-style data set of (input, label) and the options of the loader it came in.

    Accepts a Dataset, a DataLoader in sequential order, an array, a tuple of what ``forward`` takes and then the
    labels, a pair of a mapping and an array, a mapping, or a Hugging Face data set (anything with ``__len__`` and
    ``__getitem__``). Where there are no labels, or ``None`` in their place, each is -1.
    """
    named = named_inputs(data)
    if named is not None:
        if named and all(map(_is_split, named.values())):
            raise UsageError(f"data is a {type(data).__name__} of {', '.join(map(str, named))}; give one of them")
        rest, label = split_label(named, signature_of(model))
        return _of_mapping(model, rest, label, meaning)
    streamed = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(streamed, IterableDataset):
        raise UsageError(f"{type(streamed).__name__} has no order to be taken up again; give a map-style data set")
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, Texts):
        return data, _TEXTS
    if is_array(data):
        return _of_array(data, None), {}
    if isinstance(data, tuple) and data:
        return _of_tuple(model, data, meaning)
    if isinstance(data, list):
        return _of_list(data), {}
    if isinstance(data, Dataset) or (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        if not hasattr(data, "__len__"):
            raise UsageError(f"{type(data).__name__} has no length; a collection needs a map-style data set")
        return data, {}
    raise UsageError(
        f"data is a {type(data).__name__}; give an array, a Dataset, a DataLoader with shuffle=False, or a pair "
        "(inputs, labels)"
    )


def _of_array(values: Any, label: Any) -> TensorDataset:
    inputs = as_tensor(values, "inputs")
    labels = torch.full(inputs.shape[:1], NO_LABEL) if label is None else labels_of(label)
    rows = [len(part) if part.ndim else 0 for part in (inputs, labels)]
    if rows[0] != rows[1]:
        raise DataError(f"{rows[1]} labels for {rows[0]} inputs; give one label per input")
    if not inputs.numel():
        raise DataError(f"inputs has shape {tuple(inputs.shape)}, so no readable sample; give one or more")
    return TensorDataset(inputs, labels)


def _of_tuple(model: nn.Module, values: tuple[Any, ...], meaning: Meaning) -> tuple[Any, dict[str, Any]]:
    """What ``forward`` needs, what the caller names, and then the labels."""
    signature = signature_of(model)
    names = signature.positional
    taken = 1
    if named_inputs(values[0]) is None:
        taken = max(1, signature.required)
        taken += sum(1 for _ in takewhile(lambda name: name in meaning.named, names[taken : len(values)]))
    label = values[taken] if len(values) > taken else None
    if len(values) > taken + 1 or not (label is None or is_array(label) or isinstance(label, list)):
        raise UsageError(
            f"data is a tuple of {', '.join(type(part).__name__ for part in values)} for a model of "
            f"{counted(taken, 'input')}; give (inputs, labels), with None for no labels, or a mapping of names"
        )
    if named_inputs(values[0]) is not None:
        return _of_mapping(model, named_inputs(values[0]), label, meaning)
    if taken == 1 and is_array(values[0]):
        return _of_array(values[0], label), {}
    return _of_mapping(model, dict(zip(names, values[:taken], strict=False)), label, meaning)


def _of_list(values: list[Any]) -> Any:
    """A list is one array of numbers, a pair (inputs, labels), or samples with a label each."""
    numbers = numbers_of(values)
    if numbers is not None:
        return _of_array(numbers.to(torch.get_default_dtype()) if numbers.is_floating_point() else numbers, None)
    if len(values) == 2 and is_array(values[0]) and (values[1] is None or are_labels(values[1], values[0])):
        return _of_array(*values)
    for item in values:
        certain_item(item, "a list")
    return values


def _is_split(part: Any) -> bool:
    """Whether a value is a data set of its own, such as the training data of a DatasetDict."""
    numbers = is_array(part) or isinstance(part, str | bytes | list | tuple | Mapping)
    return not numbers and hasattr(part, "__getitem__") and hasattr(part, "__len__")


def _of_mapping(model: nn.Module, inputs: Any, label: Any, meaning: Meaning) -> tuple[Any, dict[str, Any]]:
    labels = None if label is None else labels_of(label)
    apart = rows_apart(model, inputs, meaning)
    if apart is inputs:
        return whole_call(model, inputs, labels, meaning), {}
    labels = torch.full((len(apart),), NO_LABEL) if labels is None else labels
    if labels.shape != (len(apart),):
        raise DataError(f"labels have shape {tuple(labels.shape)} for {len(apart)} samples; give one per sample")
    return StackDataset(apart, labels), {}  # type: ignore[arg-type]


def _of_loader(loader: DataLoader[Any]) -> tuple[Any, dict[str, Any]]:
    order = order_of(loader)
    if order is None:
        drawn = loader.batch_sampler
        sampler: Any = getattr(drawn, "sampler", drawn) if loader.batch_size is not None or drawn else loader.sampler
        raise UsageError(
            f"the DataLoader draws with {type(sampler).__name__}; a collection needs a fixed order to be taken up "
            "again: use shuffle=False, or torch.utils.data.Subset(dataset, indices)"
        )
    size = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size
    own = loader.collate_fn not in (default_collate, default_convert)
    options = {
        "batch_size": size if isinstance(size, int) and not isinstance(loader.batch_sampler, list | tuple) else None,
        "num_workers": loader.num_workers,
        **({"collate_fn": loader.collate_fn} if own else {"stacked": True}),
        "pin_memory": loader.pin_memory,
        "workers": workers_of(loader),
    }
    dataset: Any = loader.dataset
    if _holds_texts(dataset):
        options |= _TEXTS
    whole = list(order) == list(range(len(dataset)))
    return dataset if whole else Subset(dataset, list(order)), options


def _holds_texts(dataset: Any) -> bool:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, Texts)


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
            return index, Skipped(index, name, str(error) if isinstance(error, DataError) else type_and_line(error))


class _Collate:
    def __init__(self, inner: Any, wanted: _Wanted) -> None:
        self.inner, self.wanted = inner, wanted

    def __call__(
        self, items: list[tuple[int, Any]]
    ) -> tuple[list[tuple[list[int], Any, dict[str, Any]]], list[Skipped], dict[str, str]]:
        left_out: dict[str, str] = {}
        kept = [(i, item) for i, item in items if not isinstance(item, Skipped)]
        skipped = [item for _, item in items if isinstance(item, Skipped)]
        if self.inner is not default_collate:
            runs = [kept] if kept else []
        else:
            wanted = [(i, self.wanted.of(item)) for i, item in kept]
            runs = runs_of_one_shape(wanted)
            left_out = _left_out(kept[0][1], wanted[0][1]) if kept else {}
        return [([i for i, _ in run], *self._joined([item for _, item in run])) for run in runs], skipped, left_out

    def _joined(self, items: list[Any]) -> tuple[Any, dict[str, Any]]:
        if self.inner is not default_collate:
            return self.inner(items), {}
        try:
            return joined(items)
        except (TypeError, RuntimeError, KeyError) as error:
            raise DataError(f"samples cannot be put into one batch ({first_line(error)}); {REMEDY}") from error


def _left_out(item: Any, wanted: Any) -> dict[str, str]:
    """Why the model does not get what else the records hold, as one of them has it."""
    known = record_of(wanted)
    return {name: "forward does not take it" for name in map(str, record_of(item)) if name not in known}


@dataclass(frozen=True)
class _Wanted:
    """What of a record can be the model's: its arguments and the label. Records also hold pictures and texts."""

    signature: Signature
    named_alone: bool  # a model of Hugging Face takes any name, and means few
    stacked: bool = False  # a loader's own collation makes a tensor of switches; in a data set they are what they are

    def of(self, item: Any) -> Any:
        if isinstance(item, Mapping):
            return self._of_record(item)
        if isinstance(item, tuple | list) and item and isinstance(item[0], Mapping):
            return [self._of_record(item[0], labelled=False), *item[1:]]
        taken = self.signature.required
        if isinstance(item, tuple | list) and 1 < taken <= len(item):  # what forward needs, and then the label
            named = dict(zip(self.signature.positional, item[:taken], strict=False))
            return [{name: self._numbers(value) for name, value in named.items()}, *item[taken:]]
        return self._numbers(item) if isinstance(item, list) else item  # a list of numbers is one sample

    def _of_record(self, record: Mapping[str, Any], *, labelled: bool = True) -> dict[str, Any]:
        known = {str(k): self._numbers(v) for k, v in record.items() if self._may_be_input(str(k), v)}
        if labelled and known and not any(k in record for k in LABELS):
            refuse_other_names(record, known)
        if not known:  # a picture under the name of an input: the error says what it lacks
            known = {str(k): v for k, v in record.items() if k in PREFERRED and not isinstance(v, str | bytes)}
        if labelled:
            known |= {k: record[k] for k in LABELS if k in record}
        return known

    def _may_be_input(self, name: str, value: Any) -> bool:
        taken = self.signature.names(name) or name in PREFERRED
        taken = taken or (self.signature.any_keyword and not self.named_alone)
        number = is_array(value) or isinstance(value, int | float) or numbers_of(value) is not None
        # an argument may be a container or a text, and of what is neither the loader says that it cannot be joined
        return name not in LABELS and taken and (number or self.signature.names(name))

    def _numbers(self, value: Any) -> Any:
        found = numbers_of(value)
        if found is None and self.stacked:
            return tree_map(lambda leaf: torch.tensor(leaf) if isinstance(leaf, bool) else leaf, value)
        return value if found is None else found


def batches(
    model: nn.Module,
    dataset: Any,
    start: int,
    *,
    batch_size: int,
    num_workers: int,
    options: dict[str, Any],
    meaning: Meaning = _FORWARD,
    stop: int | None = None,
) -> Iterator[Batch]:
    """Batches from sample ``start`` on, in order, up to ``stop``; nothing before it is read again.

    Samples of several shapes are cut into batches of one shape each.
    """
    size, total = options.get("batch_size") or batch_size, len(dataset) if stop is None else stop
    signature, values = signature_of(model), SharedValues(meaning)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and "collate_fn" not in options:
        # slices of arrays: picking samples one by one and stacking them copies all of it, on one thread
        inputs, labels = dataset.tensors
        for a in range(start, total, size):
            part = slice(a, min(a + size, total))
            call = read_call(model, signature, inputs[part], How.COLLATED, meaning, "inputs")
            yield Batch(call, labels[part].cpu(), torch.arange(part.start, part.stop), (), part.stop)
        return
    if type(dataset) is WholeCall:
        for a in range(start, total, size):
            b = min(a + size, total)
            yield Batch(dataset.call.part(a, b), dataset.labels[a:b].cpu(), torch.arange(a, b), (), b)
        return
    collate = options.get("collate_fn", default_collate)
    loader = DataLoader(
        Subset(_Guarded(dataset), range(start, total)),
        batch_size=size,
        num_workers=options.get("num_workers", num_workers),
        pin_memory=options.get("pin_memory", False),
        collate_fn=_Collate(collate, _Wanted(signature, is_hugging_face(model), options.get("stacked", False))),
        **(options.get("workers", {}) if options.get("num_workers") else {}),
        generator=torch.Generator(),  # the loader seeds its workers from it: the caller's random state stays as it is
    )
    how = How.COLLATED if collate is default_collate else How.GIVEN
    if start and meaning.shared and how is How.COLLATED:
        earlier = first_call(model, dataset, options, meaning)
        if earlier is not None:
            values.check(earlier, "the first sample")
    labelled = options.get("labelled", True)
    defaults = dict(signature.defaults)
    for runs, skipped, left_out in loader:
        end = max([one.index for one in skipped] + [indices[-1] for indices, _, _ in runs]) + 1
        for k, (indices, content, once) in enumerate(runs):
            # a run may be the last of a shard: what comes before its end, and nothing else, is done with
            after = end if k == len(runs) - 1 else indices[-1] + 1
            done, skipped = [one for one in skipped if one.index < after], [s for s in skipped if s.index >= after]
            labels = torch.full((len(indices),), NO_LABEL)
            if labelled:
                content, found_labels = without_label(content, signature)
                labels = labels if found_labels is None else found_labels
            own, others = (tuple(n for n in names if n not in once) for names in (meaning.per_sample, meaning.shared))
            once = {k: v for k, v in once.items() if v is not None or defaults.get(k, once) is not None}
            told = replace(meaning, per_sample=own, shared=others)
            found = read_call(model, signature, content, how, told, f"the batch of sample {indices[0]}")
            if len(found) != len(indices):
                raise DataError(
                    f"a batch of {len(indices)} samples has {len(found)} rows of {found.name!r}; let collate_fn keep "
                    "one row per sample"
                )
            each = tuple(name for name in once if name not in meaning.shared)
            found = replace(found, shared={**found.shared, **once}, each=each, dropped={**left_out, **found.dropped})
            if how is How.COLLATED:
                values.check(found, f"sample {indices[0]}")
            else:
                found = replace(found, by_batch=True)
            yield Batch(found, labels, torch.tensor(indices, dtype=torch.int64), tuple(done), after)
        if not runs:
            yield Batch(None, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), tuple(skipped), end)


def first_call(model: nn.Module, dataset: Any, options: dict[str, Any], meaning: Meaning = _FORWARD) -> Call | None:
    """The call of the first sample that can be read; None where there is none."""
    chosen = by_itself(
        {key: options[key] for key in ("collate_fn", "labelled", "stacked", "workers") if key in options}
    )
    for batch in batches(model, dataset, 0, batch_size=1, num_workers=0, options=chosen, meaning=meaning):
        if batch.call is not None:
            return batch.call
    return None
