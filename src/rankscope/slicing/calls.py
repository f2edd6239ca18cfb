"""One call of a model as its user means it: which tensor is differentiated, which belong to samples, which to all.

The first dimension of the differentiated tensor counts samples. Whatever else a mapping holds is one sample's own only
where that is certain by rule; what could be either is refused, with both spellings in the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import DataError, UsageError
from rankscope._base.text import counted
from rankscope.slicing.belonging import belongs_to_samples, same_for_all
from rankscope.slicing.containers import holds_arrays, one_row, rows_of, with_rows
from rankscope.slicing.meaning import BESIDE, LABELS, MAIN, NOT_BATCHED, PREFERRED, How, Meaning
from rankscope.slicing.sample import Sample
from rankscope.slicing.signature import Signature, is_hugging_face
from rankscope.slicing.values import as_input, as_number, as_tensor, is_array, is_scalar_label, numbers_of

__all__ = [
    "Call",
    "can_be_repeated",
    "differentiable",
    "read_call",
    "repeated",
]


@dataclass(frozen=True)
class Call:
    """One call for n samples: ``x`` (n, …), what belongs to each of them, what all share, and what was left out."""

    x: Tensor
    name: str
    keyword: str | None = None
    per_sample: Mapping[str, Any] = field(default_factory=dict)  # tensors, or containers of them
    shared: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    each: tuple[str, ...] = ()  # of those in shared, what an item of a data set brought: a text, a switch
    by_batch: bool = False  # whether a batch's own collate_fn put it together, so that another one may share others
    workers: int = 1  # of the loader of a stream, which was read by one of them

    def __len__(self) -> int:
        return len(self.x)

    @property
    def embedded(self) -> bool:
        """Whether what is differentiated are embeddings of tokens, and not what a user may take for the input."""
        return self.keyword == "inputs_embeds"

    def part(self, start: int, stop: int) -> Call:
        """The call for samples start … stop − 1 alone."""
        own = rows_of(self.per_sample, start, stop)
        return replace(self, x=self.x[start:stop], per_sample=own)

    def rows(self, start: int, stop: int, name: str) -> Sample:
        """Samples start … stop − 1 as one ``Sample``."""
        own = rows_of(self.per_sample, start, stop)
        return Sample(self.x[start:stop], name, self.keyword, {**self.shared, **own})


def read_call(
    model: nn.Module, signature: Signature, content: Any, how: How, meaning: Meaning, place: str = "the input"
) -> Call:
    """The call that ``content`` stands for: a tensor, a mapping, or a sequence of positional arguments.

    Raises
    ------
    DataError
        For what holds no tensor that could be differentiated.
    UsageError
        For what could be read in two ways; the message names the spelling of each.
    """
    dropped: dict[str, str] = {}
    if isinstance(content, list | tuple) and (how is not How.ITEM or numbers_of(content) is None):
        content, dropped = _by_position(model, signature, content, how, meaning, place)
    if isinstance(getattr(content, "data", None), Mapping):  # a tokenizer's BatchEncoding
        content = content.data
    if isinstance(content, Mapping):
        return _named(model, signature, {str(k): v for k, v in content.items()}, how, meaning, place, dropped)
    first, keyword = next(iter(signature.positional), "input"), None
    if not signature.positional and not signature.any_positional and len(signature.needed) == 1:
        (first,) = signature.needed  # forward(self, *, x)
        keyword = first
    meaning.check_taken(lambda name: name == first or signature.takes(name), signature.listed())
    meaning.check_names((first,))
    if first in meaning.shared:
        raise UsageError(_no_rows_left(first))
    x = _counted(as_tensor(content, place), how, place, first, meaning)
    return Call(x, first, keyword, dropped=dropped)


def _counted(x: Tensor, how: How, place: str, name: str, meaning: Meaning) -> Tensor:
    """``x`` with its first dimension counting samples."""
    x = as_input(x, place, floating=meaning.floating)
    if how is How.ITEM:
        x = x[None]
    # of a tensor as it is given: one number per sample, or one sample of so many numbers?
    certain = how is not How.GIVEN or name in meaning.per_sample
    if x.ndim < (1 if certain else 2):
        each = f', or per_sample=("{name}",) if each sample is one number' if x.ndim else ""
        raise DataError(
            f"{place} has shape {tuple(x.shape)}; its first dimension counts samples, so give x[None] for one sample"
            f"{each}"
        )
    if len(x) and not x.numel():
        raise DataError(f"{place} has shape {tuple(x.shape)}: a sample without a value")
    return x


def _by_position(
    model: nn.Module, signature: Signature, values: Sequence[Any], how: How, meaning: Meaning, place: str
) -> tuple[Any, dict[str, str]]:
    """Positional arguments under their names: what ``forward`` needs, and what follows as a label or an input."""
    if not values:
        raise DataError(f"{place} is an empty {type(values).__name__}; give a tensor")
    if isinstance(values[0], Mapping):  # (features, label) of a data set whose features have names
        return values[0], {f"item {k}": "it follows a mapping of inputs" for k in range(2, len(values) + 1)}
    names = signature.positional
    taken = max(1, min(signature.required, len(values)))
    given = dict(zip(names, values[:taken], strict=False))
    dropped: dict[str, str] = {}
    for k, value in enumerate(values[taken:], taken):
        name = names[k] if k < len(names) else None
        if name in meaning.named:
            given[name] = value
        elif name is None and not signature.any_positional:
            dropped[f"item {k + 1}"] = f"forward takes {counted(len(names), 'positional argument')}"
        elif name is None or (not _labels_one(value, values[0], how) and name not in LABELS):
            raise UsageError(_either(model, name, k))
        elif name in LABELS and not is_hugging_face(model):
            given[name] = value
        elif _no_label_fits(name, signature) or is_hugging_face(model):
            dropped[f"item {k + 1}"] = f"one integer or text per sample is a label, which {name} cannot be"
        else:
            raise UsageError(_either(model, name, k))
    if len(given) <= 1:
        return values[0], dropped
    return given, dropped


def _either(model: nn.Module, name: str | None, k: int) -> str:
    what = f"forward also takes {name!r}" if name else "forward takes *args"
    named = f'{{..., "{name}": ...}}' if name else '{"x": ..., ...}'
    option = f" or name {name!r} in shared or per_sample" if name else ""
    return (
        f"item {k + 1} of each sample may be a label or an argument of {type(model).__name__}, since {what}; give "
        f"a mapping of names ({named}){option} if it is an argument, or the inputs without it if it is a label"
    )


def _labels_one(value: Any, first: Any, how: How) -> bool:
    """Whether a value is one integer or text for each sample."""
    if how is How.ITEM or not is_array(value):
        return is_scalar_label(value) or (isinstance(value, list | tuple) and all(map(is_scalar_label, value)))
    tensor = as_tensor(value, "labels")
    samples = len(first) if hasattr(first, "__len__") else -1
    return tensor.ndim == 1 and len(tensor) == samples and not tensor.is_floating_point() and not tensor.is_complex()


def _no_label_fits(name: str, signature: Signature) -> bool:
    """Masks and switches: arguments that one integer per sample cannot be meant for."""
    default = dict(signature.defaults).get(name)
    return "mask" in name or isinstance(default, bool | str) or name.startswith(("return_", "output_", "is_", "use_"))


def _named(
    model: nn.Module,
    signature: Signature,
    content: dict[str, Any],
    how: How,
    meaning: Meaning,
    place: str,
    dropped: dict[str, str],
) -> Call:
    meaning.check_taken(signature.takes, signature.listed())
    meaning.check_names([*content, *(["inputs_embeds"] if "input_ids" in content else [])])
    values = {name: _value(model, name, value, how) for name, value in content.items()}
    kept = {}
    for name, value in values.items():
        reason = _left_out(model, signature, name, value, values)
        if reason:
            dropped[name] = reason
        else:
            kept[name] = value
    name = _differentiated(model, signature, kept, dropped, values, how, meaning, place)
    keyword: str | None = name
    if name not in kept and name in values:  # under another name than forward's own: its first argument
        kept[name], keyword = values[name], None
        dropped.pop(name)
    x = kept.pop(name) if name in kept else None
    if x is None or (name == "input_ids" and meaning.floating):
        ids = x if x is not None else kept.pop("input_ids")
        name = keyword = "inputs_embeds"
        x = _embedded(model, ids[None] if how is How.ITEM else ids)
        x = as_input(x, name)
    else:
        x = _counted(x, how, place if keyword is None else repr(name), name, meaning)
    if is_hugging_face(model) and getattr(model.config, "use_cache", None):
        kept["use_cache"] = False  # a key-value cache is filled in place and would leak one call into the next
    own: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for other, value in kept.items():
        if other in meaning.shared:
            shared[other] = same_for_all(other, value) if how is How.COLLATED else value
        elif how is How.ITEM and holds_arrays(value):
            own[other] = one_row(value, other)
        elif how is not How.ITEM and belongs_to_samples(model, other, value, x, name, how, meaning):
            own[other] = with_rows(value, len(x), other, collated=how is How.COLLATED)
        else:
            shared[other] = value
    each = () if how is not How.ITEM else tuple(k for k in shared if k in values and k not in meaning.shared)
    return Call(x, name, keyword, own, shared, dropped, each)


def _value(model: nn.Module, name: str, value: Any, how: How) -> Any:
    if is_array(value):
        return as_tensor(value, repr(name)) if not is_scalar_label(value) or isinstance(value, Tensor) else value
    if how is How.ITEM and isinstance(value, int | float):
        return as_number(value)
    if how is How.ITEM or (is_hugging_face(model) and name in (*MAIN, *BESIDE)):
        numbers = numbers_of(value)
        return value if numbers is None else numbers
    return value


def _left_out(model: nn.Module, signature: Signature, name: str, value: Any, values: Mapping[str, Any]) -> str:
    """Why an input is not passed on; empty where it is."""
    if is_hugging_face(model):
        decodes = getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" not in values
        if name == "labels" and signature.takes(name) and not decodes:
            return "it only adds a loss to the outputs"
        # what these models take through **kwargs are switches of theirs and tensors of attention kernels
        if not signature.names(name) and (name in LABELS or not isinstance(value, Tensor | bool)):
            return "forward does not take it"
    if not signature.takes(name):
        return "forward does not take it"
    return ""


def _differentiated(
    model: nn.Module,
    signature: Signature,
    kept: Mapping[str, Any],
    dropped: Mapping[str, str],
    values: Mapping[str, Any],
    how: How,
    meaning: Meaning,
    place: str,
) -> str:
    """The name of the input whose rows count the samples."""
    wanted = meaning.differentiate
    if wanted is not None:
        if wanted in dropped:
            listed = signature.listed()
            raise UsageError(
                f"differentiate names {wanted!r}, which is not passed on: {dropped[wanted]} (it takes {listed})"
            )
        found = kept.get(wanted)
        tokens = wanted in ("input_ids", "inputs_embeds") and "input_ids" in kept and is_hugging_face(model)
        if not tokens and not (isinstance(found, Tensor) and (found.is_floating_point() or not meaning.floating)):
            kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"differentiate names {wanted!r}, which is {kind}; only floating-point tensors have derivatives"
            )
        return wanted

    def candidates(among: Mapping[str, Any], *, among_shared: bool = False) -> list[str]:
        return [
            name
            for name, value in among.items()
            if isinstance(value, Tensor)
            and name not in BESIDE
            and (among_shared or name not in meaning.shared)
            and (value.is_floating_point() or not meaning.floating or (name == "input_ids" and is_hugging_face(model)))
        ]

    found = candidates(kept)
    if "inputs_embeds" in found and "input_ids" in found:
        found.remove("input_ids")
    apart = [k for k in dropped if k in values and k not in LABELS]
    usual = any(k in PREFERRED for k in apart)  # {"image": ...}: what everyone calls an input
    if not found and apart and not usual and how is How.GIVEN and signature.positional:
        named = ", ".join(map(repr, apart))
        raise UsageError(
            f"{place} names {named}, which forward does not take; name it as forward does ({signature.listed()})"
        )
    if not found:  # records of data sets name their input as they like, and forward has one argument for it
        found = [name for name in candidates({k: values[k] for k in dropped if k in values}) if name not in LABELS]
    if not meaning.floating:
        found = [name for name in found if name not in LABELS] or found
    preferred = [name for name in found if name in (*PREFERRED, "input_ids")]
    if len(found) == 1 or len(preferred) == 1:
        return (preferred or found)[0]
    kinds = ", ".join(f"{k}: {getattr(v, 'dtype', type(v).__name__)}" for k, v in values.items())
    in_shared = [name for name in meaning.shared if name in candidates(kept, among_shared=True)]
    if not found and in_shared:
        raise UsageError(_no_rows_left(in_shared[0]))
    lists = [k for k, v in kept.items() if isinstance(v, list | tuple) and v and all(map(is_array, v))]
    if not found and lists:
        raise DataError(
            f"{lists[0]!r} is a list of tensors; give one tensor in its place, whose first dimension counts samples "
            "(torch.stack(tensors)), or wrap the model in a module whose forward makes the list of one"
        )
    if not found:
        raise DataError(
            f"no floating-point input to differentiate in {place} ({kinds}); give inputs_embeds or another float tensor"
        )
    listed = " or ".join(f'differentiate="{name}"' for name in found)
    what = "be differentiated" if meaning.floating else "count the samples"
    raise UsageError(f"{len(found)} inputs could {what} ({', '.join(found)}); choose with {listed}")


def _no_rows_left(name: str) -> str:
    return f"{name!r} is in shared, and no other input is left whose rows count the samples; leave it out of shared"


def differentiable(model: nn.Module, sample: Sample) -> Sample:
    """The same call with floating-point inputs: token ids of a Hugging Face model become its own embeddings of them."""
    if sample.x.is_floating_point() or sample.keyword != "input_ids" or not is_hugging_face(model):
        return sample
    return Sample(_embedded(model, sample.x), sample.name, "inputs_embeds", sample.extra)


def can_be_repeated(model: nn.Module, sample: Sample) -> bool:
    """Whether several copies of ``sample`` can share a pass: what stands beside its input is known to have rows."""
    beside = [k for k, v in sample.extra.items() if not isinstance(v, bool | int | float | str | None)]
    return not beside or (is_hugging_face(model) and all(k in BESIDE and k not in NOT_BATCHED for k in beside))


def repeated(sample: Sample, x: Tensor) -> Sample:
    """The call with ``x`` (n, …) in place of the one input; rows beside it are repeated where n is more than one."""
    extra = dict(sample.extra)
    if len(x) > 1:
        extra = {k: v.expand(len(x), *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in extra.items()}
    return Sample(x, sample.name, sample.keyword, extra)


def _embedded(model: nn.Module, ids: Any) -> Tensor:
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    if not callable(table):
        raise DataError(f"{type(model).__name__} has no input embeddings; give inputs_embeds in the batch")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise DataError(f"input_ids has shape {shape}; give (samples, tokens)")
    weight = next(table.parameters())
    with torch.no_grad():
        return table(ids.to(weight.device)).detach()
