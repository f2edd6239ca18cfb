"""An input for a model that is given none: its shape comes from the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import UsageError
from rankscope.slicing.calls import read_call
from rankscope.slicing.meaning import How, Meaning
from rankscope.slicing.reader import read_samples
from rankscope.slicing.sample import Sample
from rankscope.slicing.signature import is_hugging_face, signature_of

__all__ = ["example_sample"]


def example_sample(model: nn.Module, inputs: Any = None, **meaning: Any) -> Sample:
    """The first of the given inputs, or a zero-mean example whose shape the model itself tells.

    The shape comes from timm's ``pretrained_cfg``, a Hugging Face ``config``, or the first convolution or linear layer
    (torchvision's classifiers: 224×224). ``meaning`` are the options of ``read_samples``.
    """
    if inputs is not None:
        return next(read_samples(model, inputs, limit=1, **meaning))
    generator = torch.Generator().manual_seed(0)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        return Sample(torch.randn((1, *config["input_size"]), generator=generator), "example")
    if is_hugging_face(model):
        found = _hugging_face_example(model, generator)
        if found is not None:
            return found
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return Sample(torch.randn((1, module.in_channels, 224, 224), generator=generator), "example")
        if isinstance(module, nn.Linear):
            return Sample(torch.randn((1, module.in_features), generator=generator), "example")
    raise UsageError(f"the input shape of {type(model).__name__} is not known; pass inputs= with one sample")


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
        return read_call(model, signature_of(model), batch, How.GIVEN, Meaning()).rows(0, 1, "example")
    return None
