"""What every source of models hands back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rankscope._base.facts import Fact
from rankscope.loading.preprocessing import Preprocessing

__all__ = ["LoadedModel"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on the CPU, and what a report has to say about it.

    ``name`` is the full name, source and variant included; ``source`` one of ``timm``, ``torchvision``, ``hf``,
    ``file``, ``digits``, ``package``. ``weights`` describes where the weights come from. ``input_size`` is (C, H, W)
    for models of pictures, else None. ``preprocessing`` turns a picture into the model's input, None where the model
    takes none. ``class_names`` are in the order of the logits, where known. ``random`` means that nothing was trained.
    ``facts`` are what was changed or assumed.
    """

    model: nn.Module
    name: str
    source: str
    weights: str
    input_size: tuple[int, int, int] | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    random: bool = False
    facts: tuple[Fact, ...] = ()
