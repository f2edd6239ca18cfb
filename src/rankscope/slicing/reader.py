"""Samples of whatever people bring: tensors, arrays, mappings, data sets, loaders. There is no other reader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

from rankscope._base.checks import count_of, names_of
from rankscope._base.errors import DataError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope.slicing.calls import Call, read_call
from rankscope.slicing.drawn import Apart, drawn, has_several_workers
from rankscope.slicing.meaning import How, Meaning
from rankscope.slicing.one_sample import counts_samples
from rankscope.slicing.ragged import rows_apart
from rankscope.slicing.sample import Sample
from rankscope.slicing.sequences import check_samples_first
from rankscope.slicing.shared_values import SharedValues
from rankscope.slicing.signature import Signature, signature_of
from rankscope.slicing.values import as_tensor, is_array, is_scalar_label, numbers_of

__all__ = [
    "Samples",
    "are_labels",
    "certain_item",
    "facts_of",
    "is_one_call",
    "length_of",
    "meaning_of",
    "order_of",
    "read_calls",
    "read_samples",
]

_LOOSE = (
    "give one tensor whose first dimension counts samples (torch.stack of samples, torch.cat of batches), a Dataset "
    "or a DataLoader"
)


def meaning_of(differentiate: str | None, shared: Any, per_sample: Any, *, floating: bool = True) -> Meaning:
    """The options ``differentiate``, ``shared`` and ``per_sample``, checked."""
    return Meaning(differentiate, names_of(shared, "shared"), names_of(per_sample, "per_sample"), floating)


def read_samples(
    model: nn.Module,
    inputs: Any,
    *,
    limit: int | None = None,
    differentiate: str | None = None,
    shared: Any = (),
    per_sample: Any = (),
) -> Samples:
    """Samples one by one, each the call of the model for one sample.

    Parameters
    ----------
    inputs : Tensor, array, mapping, tuple, Dataset, DataLoader or data set of Hugging Face
        A tensor's first dimension counts samples. A mapping is passed as keyword arguments, a tuple as positional ones;
        there the differentiated tensor's first dimension counts samples. Items of a data set are samples, batches of a
        loader are batches; of (input, label) pairs the label is left out where ``forward`` takes one argument.
        ``input_ids`` of a Hugging Face model become ``inputs_embeds`` through its own embedding.
    limit : int, optional
        At most this many samples.
    differentiate : str, optional
        The name of the differentiated input, where several could be it.
    shared, per_sample : names, optional
        Inputs of a mapping that every sample is called with, and inputs whose rows belong to the samples, where the
        shape leaves it open.

    Raises
    ------
    DataError
        When there is no sample, nothing to differentiate, or a value is NaN or infinite.
    UsageError
        For inputs that can be read in two ways.
    """
    meaning = meaning_of(differentiate, shared, per_sample)
    return Samples(model, inputs, None if limit is None else count_of(limit, "limit"), meaning)


class Samples(Iterator[Sample]):
    """Samples as they are read. ``total`` is how many there will be, where that is known before.

    ``call`` is the first call: it says which input is differentiated, which are shared, and what was left out.
    """

    def __init__(self, model: nn.Module, inputs: Any, limit: int | None, meaning: Meaning) -> None:
        self.limit, self.meaning = limit, meaning
        self.call: Call | None = None
        inputs = rows_apart(model, inputs, meaning)
        self._whole = is_one_call(inputs)
        self._known = length_of(inputs)
        self._samples = self._read(model, inputs)

    @property
    def total(self) -> int | None:
        """How many samples there are, where that is known; of a mapping once its first sample was read."""
        known = len(self.call) if self._whole and self.call is not None else self._known
        return known if known is None or self.limit is None else min(known, self.limit)

    def __next__(self) -> Sample:
        return next(self._samples)

    def counted(self) -> str:
        """What an error adds about the dimension that counts samples, where it is another than a user may expect."""
        if self.call is None or (len(self.call) < 2 and not self._whole):
            return ""
        return counts_samples(self.call.x.shape, "the input" if self._whole else "the first batch")

    def facts(self, kind: FactKind = FactKind.DIFFERENTIATED) -> tuple[Fact, ...]:
        """What was differentiated and shared, and what was left out: nothing for a call with a single tensor.

        ``kind`` is what is done with the input: it is differentiated, or noise is added to it.
        """
        return () if self.call is None else facts_of(self.call, kind)

    def _read(self, model: nn.Module, inputs: Any) -> Iterator[Sample]:
        count = 0
        for call in read_calls(model, inputs, self.meaning):
            if self.call is None:
                self.call = call
            for i in range(len(call)):
                if self.limit is not None and count >= self.limit:
                    return
                sample = call.rows(i, i + 1, f"sample {count}")
                if not self._whole:  # a data set may fill one buffer again and again while earlier samples wait
                    own = {name: tree_map_only(Tensor, torch.clone, part) for name, part in sample.extra.items()}
                    sample = replace(sample, x=sample.x.clone(), extra=own)
                bad = int((~torch.isfinite(sample.x)).sum())
                if bad:
                    raise DataError(f"{sample.name} has {bad} NaN or infinite values; clean the input first")
                yield sample
                count += 1
            if self.limit is not None and count >= self.limit:
                return
        if count == 0:
            shape = f" (shape {tuple(inputs.shape)})" if is_array(inputs) else ""
            raise DataError(f"there is no sample to measure: the input is empty{shape}")


def facts_of(call: Call, kind: FactKind) -> tuple[Fact, ...]:
    """What a reader has to know of how a call was read; ``kind`` is what is done with its input."""
    facts = []
    own = (*call.per_sample, *call.each)
    shared = tuple(k for k in call.shared if k != "use_cache" and k not in call.each)
    if own or shared or (call.embedded and kind is not FactKind.COUNTED):
        batch = {"by_batch": True} if shared and call.by_batch else {}
        facts.append(Fact(kind, {"name": call.name, "per_sample": own, "shared": shared, **batch}))
    facts += [Fact(FactKind.INPUT_LEFT_OUT, {"name": k, "reason": v}) for k, v in call.dropped.items()]
    if call.workers > 1:
        facts.append(Fact(FactKind.ONE_WORKER, {"workers": call.workers}, caution=True))
    return tuple(facts)


def read_calls(model: nn.Module, inputs: Any, meaning: Meaning) -> Iterator[Call]:
    """One call for each piece of the data: the whole of a tensor or mapping, an item, a batch."""
    check_samples_first(model, inputs)
    signature, values = signature_of(model), SharedValues(meaning)
    by_batch = isinstance(inputs, DataLoader)
    for index, (content, how) in enumerate(_contents(inputs, signature)):
        place = "the input" if is_one_call(inputs) else f"{'sample' if how is How.ITEM else 'batch'} {index}"
        call = read_call(model, signature, content, how, meaning, place)
        if by_batch and how is How.GIVEN:  # a mask that collate_fn makes belongs to its batch
            call = replace(call, by_batch=True)
        else:
            values.check(call, place)
        yield replace(call, workers=inputs.num_workers) if has_several_workers(inputs) else call


def length_of(inputs: Any) -> int | None:
    """How many samples there are, where that can be told without reading."""
    if is_array(inputs):
        if isinstance(inputs, Tensor) and inputs.is_nested:  # it has no shape; the reader refuses it
            return None
        return len(inputs) if len(inputs.shape) else None
    if is_one_call(inputs) or isinstance(inputs, DataLoader | IterableDataset | Mapping):
        return None
    try:
        return len(inputs) if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__") else None
    except TypeError:
        return None


def is_one_call(inputs: Any) -> bool:
    return is_array(inputs) or isinstance(inputs, tuple | Mapping) or isinstance(getattr(inputs, "data", None), Mapping)


def _contents(inputs: Any, signature: Signature) -> Iterator[tuple[Any, How]]:
    if isinstance(inputs, Mapping) and inputs and all(_is_split(part) for part in inputs.values()):
        raise UsageError(f"the input is a {type(inputs).__name__} of {', '.join(map(str, inputs))}; give one of them")
    if is_array(inputs) or isinstance(inputs, Mapping) or isinstance(getattr(inputs, "data", None), Mapping):
        yield inputs, How.GIVEN
    elif isinstance(inputs, tuple):
        _check_pair(inputs, signature)
        yield inputs, How.GIVEN
    elif isinstance(inputs, DataLoader):
        yield from _loaded(inputs)
    elif isinstance(inputs, list):
        yield from _listed(inputs, signature)
    elif isinstance(inputs, str | bytes | nn.Module) or not (
        isinstance(inputs, Iterable) or (hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"))
    ):
        what = "a text; tokenise it, and" if isinstance(inputs, str) else f"a {type(inputs).__name__};"
        raise UsageError(f"the input is {what} give a tensor, a dict of tensors, a Dataset or a DataLoader")
    elif isinstance(inputs, IterableDataset) or _is_records(inputs):
        for item in inputs:
            yield item, How.ITEM
    elif hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        for i in range(len(inputs)):
            yield inputs[i], How.ITEM
    else:
        for item in inputs:
            yield certain_item(item, "an iterator"), How.ITEM


def _is_split(part: Any) -> bool:
    return not is_array(part) and hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(
        part, str | bytes | list | tuple | Mapping
    )  # fmt: skip


def _is_records(inputs: Any) -> bool:
    """A streamed data set of Hugging Face: records without a length."""
    return hasattr(inputs, "features") and not hasattr(inputs, "__len__")


def _loaded(loader: DataLoader[Any]) -> Iterator[tuple[Any, How]]:
    """The batches of a loader; where samples of a batch have unequal shapes, each sample by itself."""
    how = How.ITEM
    if loader.batch_sampler is not None or loader.batch_size is not None:
        how = How.COLLATED if loader.collate_fn is default_collate else How.GIVEN
    for batch in drawn(loader):
        if isinstance(batch, Apart):
            for item in batch.items:
                yield item, How.ITEM
        else:
            yield batch, how


def _listed(inputs: list[Any], signature: Signature) -> Iterator[tuple[Any, How]]:
    """A list is one array of numbers, the arguments of a model that needs so many, or samples with a label each."""
    if not inputs:
        return
    numbers = numbers_of(inputs)
    if numbers is not None:
        yield numbers.to(torch.get_default_dtype()) if numbers.is_floating_point() else numbers, How.GIVEN
        return
    arrays = all(is_array(part) for part in inputs)
    if arrays and len(inputs) > 1 and len(inputs) == signature.required:
        yield tuple(inputs), How.GIVEN
        return
    if arrays and len(inputs) == 2 and are_labels(inputs[1], inputs[0]):
        yield tuple(inputs), How.GIVEN
        return
    if arrays and len({tuple(part.shape) for part in inputs}) > 1:
        raise UsageError(_unequal(inputs, signature))
    for item in inputs:
        yield certain_item(item, "a list"), How.ITEM


def certain_item(item: Any, what: str) -> Any:
    """An item that is one sample for certain: it has a label of its own, one integer or text."""
    members: list[Any] = []
    if isinstance(item, tuple | list):
        members = list(item[1:])
    elif isinstance(item, Mapping):
        members = list(item.values())
    elif not is_array(item):
        raise DataError(f"{what} holds a {type(item).__name__}, not tensors; {_LOOSE}")
    if not any(is_scalar_label(member) for member in members):
        raise UsageError(f"the input is {what} of {_kind(item)}, each a sample or a batch of them; {_LOOSE}")
    return item


def _unequal(inputs: list[Any], signature: Signature) -> str:
    """Tensors of unequal shapes fit into no tensor; a data set may hold them."""
    first, other = (tuple(part.shape) for part in (inputs[0], next(p for p in inputs if p.shape != inputs[0].shape)))
    name = next(iter(signature.positional), "x")
    return (
        f"the input is a list of tensors of unequal shapes ({first}, {other}), each a sample or a batch of them; of "
        f"samples give torch.utils.data.StackDataset({name}=inputs), or another Dataset (of texts, "
        "rankscope.loading.read_texts)"
    )


def _kind(item: Any) -> str:
    if is_array(item):
        return f"tensors (the first of shape {tuple(item.shape)})"
    return "mappings" if isinstance(item, Mapping) else f"{type(item).__name__}s"


def are_labels(values: Any, inputs: Any) -> bool:
    tensor = as_tensor(values, "labels") if not isinstance(values, np.ndarray) or values.dtype.kind in "biu" else None
    if tensor is None or tensor.is_floating_point() or tensor.is_complex():
        return False
    return tensor.ndim == 1 and len(inputs.shape) > 1 and len(inputs) == len(tensor)


def _check_pair(inputs: tuple[Any, ...], signature: Signature) -> None:
    """Of a tuple for a model with one argument the rest has to be labels, as many as there are inputs."""
    if not inputs or not is_array(inputs[0]) or len(inputs) < 2 or signature.required > 1:
        return
    if len(signature.positional) > 1 or signature.any_positional:
        return  # decided argument by argument
    for part in inputs[1:]:
        rows = len(part) if hasattr(part, "__len__") else -1
        if rows != len(inputs[0]) or (is_array(part) and tuple(part.shape) == tuple(inputs[0].shape)):
            raise UsageError(f"the input is a tuple of {len(inputs)} for a model of one argument; {_LOOSE}")


def order_of(loader: DataLoader[Any]) -> Sequence[int] | None:
    """The indices that a loader goes through, where they are the same each time; ``None`` where that is not certain.

    >>> list(order_of(DataLoader(torch.arange(5), batch_size=2, drop_last=True)))
    [0, 1, 2, 3]
    """
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        return None
    sampler: Any = loader.batch_sampler
    if sampler is None:
        return _plain_order(loader.sampler)
    if isinstance(sampler, list | tuple):  # batches written out
        return [int(i) for batch in sampler for i in batch] if all(map(_is_indices, sampler)) else None
    if type(sampler) is not BatchSampler:
        return None
    order = _plain_order(sampler.sampler)
    if order is None or not sampler.drop_last:
        return order
    return order[: len(order) - len(order) % sampler.batch_size]


def _plain_order(sampler: Any) -> Sequence[int] | None:
    if type(sampler) is SequentialSampler:
        return range(len(sampler.data_source))
    return sampler if _is_indices(sampler) else None


def _is_indices(values: Any) -> bool:
    return isinstance(values, list | tuple | range) and all(type(i) is int for i in values)
