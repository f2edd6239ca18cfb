"""A factory's model whose parameters have no values yet: layers that wait for an input, tensors without storage."""

from __future__ import annotations

import torch
from torch import nn

from rankscope._base.errors import ModelError, first_line
from rankscope._base.facts import Fact, FactKind
from rankscope.loading._random import seeded

__all__ = ["check_built", "size_lazy_layers"]


def size_lazy_layers(model: nn.Module, input_size: tuple[int, int, int] | None, *, seed: int) -> list[Fact]:
    """Give ``nn.LazyLinear`` and its like their sizes by one forward pass, where the input's size is known.

    Returns a fact where that was done. A model of unknown input size is left as it is: see ``check_built``.
    """
    if input_size is None or not any(nn.parameter.is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return []
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with seeded(seed), torch.no_grad():
            model(torch.zeros(1, *input_size))
    except Exception as error:
        raise ModelError(
            f"lazy layers could not be sized by an input of shape {(1, *input_size)}: {first_line(error)}; run the "
            " model once on an example input in the factory"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return [Fact(FactKind.LAZY_SIZED, {"shape": input_size})]


def check_built(model: nn.Module) -> None:
    """Raise ``ModelError`` naming the first module whose parameters have no values, and the remedy.

    >>> check_built(nn.Sequential(nn.LazyLinear(3)))
    Traceback (most recent call last):
    rankscope._base.errors.ModelError: module '0' is a LazyLinear that has met no input, so its size is open; ...
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        holder = name.rpartition(".")[0]
        if nn.parameter.is_lazy(tensor):
            kind = type(model.get_submodule(holder)).__name__
            raise ModelError(
                f"module {holder!r} is a {kind} that has met no input, so its size is open; run it once on an example "
                "input in the factory, or set the model's attribute input_size = (C, H, W)"
            )
        if tensor.is_meta:
            raise ModelError(
                f"parameter {name!r} is on the meta device and has no values; build the model on the CPU, or call "
                'model.to_empty(device="cpu") and load its weights in the factory'
            )
