"""What a model is called with: one differentiable tensor and whatever else the call needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.checks import count_of
from rankscope._base.errors import DataError, UsageError

__all__ = ["Sample", "call_model", "example_sample", "read_samples"]

_PREFERRED = ("inputs_embeds", "pixel_values", "input_values", "input_features", "x", "input", "inputs")
_LABELS = ("label", "labels", "y", "target", "index", "idx", "id", "name")


@dataclass(frozen=True)
class Sample:
    """One sample (batch dimension of size 1): the tensor that is differentiated, and the rest of the call.

    ``keyword`` is the argument name under which ``x`` is passed; ``None`` means the first positional argument.
    """

    x: Tensor
    name: str
    keyword: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> Sample:
        """The same sample elsewhere; floating tensors take ``dtype``, integer ones keep theirs."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype) if value.is_floating_point() else value.to(device)

        return Sample(move(self.x), self.name, self.keyword, {k: move(v) for k, v in self.extra.items()})


def call_model(model: Any, sample: Sample, x: Tensor) -> Any:
    """Call the model with ``x`` in place of the sample's own tensor."""
    if sample.keyword is None:
        return model(x, **sample.extra)
    return model(**{sample.keyword: x}, **sample.extra)


def _is_hugging_face(model: nn.Module) -> bool:
    return hasattr(model, "config") and hasattr(model, "get_input_embeddings")


def _from_mapping(model: nn.Module, batch: Mapping[str, Any], name: str) -> Sample:
    values = {k: v for k, v in batch.items() if v is not None and k not in _LABELS}
    floating = [k for k, v in values.items() if isinstance(v, Tensor) and v.is_floating_point()]
    keyword = next((k for k in _PREFERRED if k in floating), None)
    if keyword is None and "input_ids" in values and _is_hugging_face(model):
        ids = values.pop("input_ids")
        table: Any = model.get_input_embeddings()  # type: ignore[operator]
        if not callable(table):
            raise DataError(f"{type(model).__name__} has no input embeddings; pass inputs_embeds= in the batch")
        weight = next(table.parameters())
        with torch.no_grad():
            values["inputs_embeds"] = table(ids.to(weight.device)).detach()
        keyword = "inputs_embeds"
    elif keyword is None:
        mask = {"attention_mask", "token_type_ids", "position_ids"}
        keyword = next((k for k in floating if k not in mask), None)
    if keyword is None:
        kinds = ", ".join(f"{k}: {getattr(v, 'dtype', type(v).__name__)}" for k, v in batch.items())
        raise DataError(
            f"no floating-point input to differentiate in the batch ({kinds}); pass inputs_embeds= or a float tensor"
        )
    x = values.pop(keyword)
    if _is_hugging_face(model) and getattr(model.config, "use_cache", None):
        values["use_cache"] = False  # a key-value cache is filled in place and would leak one call into the next
    return Sample(x, name, keyword, values)


def _split(batch: Any, size: int) -> Iterator[Any]:
    """One-sample slices of a batch: a tensor, or a mapping of tensors."""
    for i in range(size):
        if isinstance(batch, Tensor):
            yield batch[i : i + 1]
        else:
            yield {
                k: v[i : i + 1] if isinstance(v, Tensor) and v.ndim and len(v) == size else v for k, v in batch.items()
            }


def _batches(inputs: Any) -> Iterator[tuple[Any, bool]]:
    """Yield (tensor or mapping, whether its first dimension counts samples)."""
    if isinstance(inputs, Tensor | Mapping) or (hasattr(inputs, "data") and isinstance(inputs.data, Mapping)):
        yield (inputs if isinstance(inputs, Tensor | Mapping) else inputs.data), True
        return
    batched = isinstance(inputs, torch.utils.data.DataLoader) and inputs.batch_size is not None
    if isinstance(inputs, torch.utils.data.DataLoader) and inputs.batch_sampler is not None:
        batched = True
    items: Iterable[Any]
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__") and not isinstance(inputs, list | tuple):
        items = (inputs[i] for i in range(len(inputs)))
    elif isinstance(inputs, Iterable):
        items = inputs
    else:
        raise UsageError(
            f"inputs is a {type(inputs).__name__}; give a tensor, a dict of tensors, a Dataset or a DataLoader"
        )
    for item in items:
        yield (item[0] if isinstance(item, list | tuple) else item), batched


def read_samples(model: nn.Module, inputs: Any, *, limit: int | None = None) -> Iterator[Sample]:
    """Samples one by one from a tensor, a dict, a Dataset (items are samples) or a DataLoader (items are batches).

    A tensor's first dimension counts samples. Of an (input, label, …) tuple the first entry is taken. A dict's
    ``input_ids`` become ``inputs_embeds`` through the model's own embedding.

    Raises
    ------
    DataError
        When there is no sample, no floating-point tensor to differentiate, or a value is NaN or infinite.
    """
    limit = None if limit is None else count_of(limit, "limit")
    count = 0
    for item, batched in _batches(inputs):
        if not isinstance(item, Tensor | Mapping):
            try:
                item = torch.as_tensor(item)
            except (TypeError, ValueError, RuntimeError):
                raise DataError(
                    f"sample {count} is a {type(item).__name__}, not a tensor or a dict of tensors"
                ) from None
        if isinstance(item, Tensor):
            if not batched:
                item = item[None]
            if item.ndim < 2:
                raise DataError(
                    f"the input has shape {tuple(item.shape)}; its first dimension counts samples, "
                    "so give (1, ...) for one"
                )
            size = len(item)
        else:
            sizes = {len(v) for v in item.values() if isinstance(v, Tensor) and v.ndim}
            if not batched:
                item = {k: v[None] if isinstance(v, Tensor) else v for k, v in item.items()}
                sizes = {1}
            size = max(sizes, default=0)
        for part in islice(_split(item, size), None if limit is None else limit - count):
            name = f"sample {count}"
            if isinstance(part, Tensor):
                if not part.is_floating_point():
                    raise DataError(
                        f"{name} has dtype {part.dtype}, which cannot be differentiated; give floating-point inputs "
                        "(for token ids: a dict with input_ids)"
                    )
                sample = Sample(part, name)
            else:
                sample = _from_mapping(model, part, name)
            bad = int((~torch.isfinite(sample.x)).sum())
            if bad:
                raise DataError(f"{name} has {bad} NaN or infinite values; clean the input first")
            yield sample
            count += 1
        if limit is not None and count >= limit:
            return
    if count == 0:
        raise DataError("there is no sample to measure: the input is empty")


def example_sample(model: nn.Module, inputs: Any = None) -> Sample:
    """The first of the given inputs, or a zero-mean example whose shape the model itself tells.

    The shape comes from timm's ``pretrained_cfg``, a Hugging Face ``config``, or the first convolution or linear layer
    (torchvision's classifiers: 224×224).
    """
    if inputs is not None:
        return next(iter(read_samples(model, inputs, limit=1)))
    generator = torch.Generator().manual_seed(0)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        return Sample(torch.randn((1, *config["input_size"]), generator=generator), "example")
    if _is_hugging_face(model):
        found = _hugging_face_example(model, generator)
        if found is not None:
            return found
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return Sample(torch.randn((1, module.in_channels, 224, 224), generator=generator), "example")
        if isinstance(module, nn.Linear):
            return Sample(torch.randn((1, module.in_features), generator=generator), "example")
    raise UsageError(f"cannot tell what {type(model).__name__} takes as input; pass inputs= with one sample")


def _hugging_face_example(model: nn.Module, generator: torch.Generator) -> Sample | None:
    config: Any = model.config
    if getattr(model, "main_input_name", "input_ids") == "pixel_values" and getattr(config, "image_size", None):
        size = config.image_size if isinstance(config.image_size, int) else next(iter(config.image_size))
        shape = (1, getattr(config, "num_channels", 3), size, size)
        return Sample(torch.randn(shape, generator=generator), "example", "pixel_values")
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary:
        ids = torch.randint(0, vocabulary, (1, 16), generator=generator)
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(config, "is_encoder_decoder", False):
            batch["decoder_input_ids"] = ids[:, :4]
        return _from_mapping(model, batch, "example")
    return None
