"""Outputs of layers by dotted name, through forward hooks that live only inside a context manager."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import CutPointError, nearest
from rankscope.slicing import observing

__all__ = ["inference", "record_outputs"]


def _tensor(output: Any) -> torch.Tensor | None:
    """The first tensor of an output: tuples and Hugging Face's records carry the hidden state first."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((v for v in values if isinstance(v, torch.Tensor)), None)


@contextmanager
def record_outputs(
    model: nn.Module,
    names: Sequence[str],
    *,
    inputs_of: str | None = None,
    reduced: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """A dictionary that each forward pass fills with the outputs of the named modules, in the order of execution.

    ``inputs_of`` names a module whose *input* is kept too, under the key ``"<input>"``. Outputs are cloned, since the
    next layer may work in place; with ``reduced`` its result is kept instead, cloned only where it shares memory with
    the output: the feature map itself is then never copied. A module called more than once keeps its last output.

    Raises
    ------
    CutPointError
        For a name that the model does not have.
    """
    modules = dict(model.named_modules())
    for name in (*names, *([inputs_of] if inputs_of is not None else [])):
        if name not in modules:
            raise CutPointError(f"{type(model).__name__} has no layer {name!r}; {nearest(name, modules)}")
    found: dict[str, torch.Tensor] = {}
    handles = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = _tensor(output)
            if tensor is None:
                raise CutPointError(f"layer {name!r} returns {type(output).__name__}, in which there is no tensor")
            found.pop(name, None)
            found[name] = _own(tensor.detach(), reduced)

        return hook

    def keep_input(_module: nn.Module, args: tuple[Any, ...]) -> None:
        found["<input>"] = args[0].detach().clone()

    try:
        for name in dict.fromkeys(names):
            handles.append(modules[name].register_forward_hook(keep(name)))
        if inputs_of is not None:
            handles.append(modules[inputs_of].register_forward_pre_hook(keep_input))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _own(tensor: torch.Tensor, reduced: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
    if reduced is None:
        return tensor.clone()
    made = reduced(tensor)
    shared = made.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return made.clone() if shared else made


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode in full float32 without gradients; yields the model's device, and leaves the model as it came."""
    parameter = next(iter(model.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with observing(model, device):
            yield device
    finally:
        for module, mode in modes:
            module.training = mode
