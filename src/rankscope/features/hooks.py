"""Outputs of layers by dotted name, through forward hooks that live only inside a context manager."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from rankscope._base.errors import CutPointError, nearest
from rankscope.features.sample_axis import sample_axis
from rankscope.slicing import evaluation_mode, observing, weights_with_numbers
from rankscope.slicing.capture import OUTPUT
from rankscope.slicing.members import every_member, members

__all__ = [
    "Place",
    "Spelling",
    "axis_of",
    "counting_calls",
    "inference",
    "record_outputs",
    "resolve_layer",
    "samples_first",
    "spelling",
    "tensor_of",
]

_NUMBER = re.compile(r"#([1-9][0-9]*)(?=[.:]|$)")


class Place(NamedTuple):
    """What a name stands for: a module, the path of one of the tensors that it returns, and which of its calls.

    ``call`` counts from 1; ``None`` where the name has no number, or is that of the model's own output.
    """

    module: nn.Module
    path: str | None = None
    call: int | None = None

    def which(self, model: nn.Module) -> int | None:
        """The call of a pass that is meant: without a number the first, so that one name never stands for different
        calls of different passes. ``None`` for the model's own output, which its outermost call returns.
        """
        return 1 if self.call is None and self.module is not model else self.call


class Spelling(NamedTuple):
    """How a name is put together: that of a module, the number of a call, and the rest, which names a tensor."""

    base: str
    call: int | None = None
    end: str = ""


def spelling(modules: Container[str], name: str) -> Spelling | None:
    """The parts of a name, among the names of modules; ``None`` where it names none of them.

    >>> spelling({"lstm"}, "lstm#2.0"), spelling({"lstm"}, "lstm:0"), spelling({"lstm"}, "gru")
    (Spelling(base='lstm', call=2, end='.0'), Spelling(base='lstm', call=None, end=':0'), None)
    """
    if name in modules:
        return Spelling(name) if name else None
    for mark in reversed(list(_NUMBER.finditer(name))):
        if mark.start() and name[: mark.start()] in modules:
            return Spelling(name[: mark.start()], int(mark[1]), name[mark.end() :])
    ends = [i for i, letter in enumerate(name) if letter in ".:" and name[:i] in modules and name[:i]]
    return Spelling(name[: ends[-1]], None, name[ends[-1] :]) if ends else None


def resolve_layer(model: nn.Module, name: str, modules: Mapping[str, nn.Module] | None = None) -> Place:
    """The place that a name stands for: ``layer``, ``layer#2``, ``lstm.0``, ``lstm#2.0``, ``output``.

    ``modules`` are the model's by every name, for a caller who resolves many.

    >>> resolve_layer(nn.Sequential(nn.Tanh()), "0#2")
    Place(module=Tanh(), path=None, call=2)
    """
    modules = dict(model.named_modules(remove_duplicate=False)) if modules is None else modules
    if name in modules and name:
        return Place(modules[name])
    whole = f"{name}.".replace(":", ".") if ":" in name else f"{name}."
    for prefix in ("network.output.", "output."):
        if whole.startswith(prefix) and (prefix != "output." or OUTPUT not in modules):
            return Place(model, whole[len(prefix) : -1] or None)
    found = spelling(modules, name)
    if found is not None:
        return Place(modules[found.base], found.end[1:] or None, found.call)
    raise CutPointError(f"{type(model).__name__} has no layer {name!r}; {nearest(name, modules)}")


def tensor_of(name: str, path: str | None, output: Any) -> torch.Tensor:
    """The tensor at ``path`` of what a module returned, or its only one."""
    tensors = every_member(output)
    if path is not None:
        if path not in tensors:
            raise CutPointError(f"layer {name!r}: {nearest(path, tensors)}")
        return tensors[path]
    tensors = members(output)
    if len({id(t) for t in tensors.values()}) > 1:
        first = next(iter(tensors))
        raise CutPointError(
            f"layer {name!r} returns {len(tensors)} tensors ({', '.join(tensors)}); name one, such as '{name}.{first}'"
        )
    if tensors:
        return next(iter(tensors.values()))
    if isinstance(output, torch.Tensor):  # integers
        return output
    raise CutPointError(f"layer {name!r} returns {type(output).__name__}, in which there is no tensor")


@contextmanager
def record_outputs(
    model: nn.Module,
    names: Sequence[str],
    *,
    inputs_of: str | None = None,
    reduced: Callable[[str, torch.Tensor], torch.Tensor] | None = None,
    into: dict[str, torch.Tensor] | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """A dictionary that each forward pass fills with the outputs of the named modules, in the order of execution.

    A name is that of a module, of one of its calls in a pass (``layer#2``), or of one of several tensors that it
    returns (``lstm.0``), or ``output`` for what the model returns. ``inputs_of`` names a module whose *input* is kept
    too, under the key ``"<input>"``, and what it made of it under ``"<output>"``; of further calls under these with
    ``#2`` and so on. Outputs are cloned, since the next layer may work in place; with ``reduced`` its result, of name
    and output, is kept instead, cloned only where it shares memory with the output: the feature map itself is then
    never copied. Without a number the first call is meant: one name never stands for different calls of different
    passes. A call that no sample of the pass leads to, with an output of no row, leaves nothing. ``into`` is a
    dictionary to fill in place of a new one.

    Raises
    ------
    CutPointError
        For a name that the model does not have.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    resolved = {name: resolve_layer(model, name, modules) for name in names}
    found: dict[str, torch.Tensor] = {} if into is None else into
    calls: Counter[str] = Counter()  # in this pass
    handles = []

    def keep(name: str, path: str | None, call: int | None, axis: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name] += 1
            if call not in (None, calls[name]):
                return
            tensor = samples_first(tensor_of(name, path, output), axis)
            if tensor.ndim and not len(tensor):
                return
            found.pop(name, None)
            found[name] = _own(name, tensor.detach(), reduced)

        return hook

    def begin(_module: nn.Module, _args: Any) -> None:
        calls.clear()

    def keep_input(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls["<input>"] += 1
        found[_numbered("<input>", calls["<input>"])] = (
            (args[0] if args else next(iter(named.values()))).detach().clone()
        )

    def keep_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        made, given = (_numbered(key, calls["<input>"]) for key in ("<output>", "<input>"))
        found[made] = output.detach().clone() if isinstance(output, torch.Tensor) else found[given]

    try:
        handles.append(model.register_forward_pre_hook(begin))
        for name, place in resolved.items():
            axis = axis_of(model, place.module, place.path)
            handles.append(place.module.register_forward_hook(keep(name, place.path, place.which(model), axis)))
        if inputs_of is not None:
            head = resolve_layer(model, inputs_of).module
            handles.append(head.register_forward_pre_hook(keep_input, with_kwargs=True))
            handles.append(head.register_forward_hook(keep_output))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counting_calls(model: nn.Module, names: Iterable[str] | None = None) -> Iterator[Counter[str]]:
    """How often each module is called inside, by the first name that it has; of all modules, or of those named."""
    called: Counter[str] = Counter()
    wanted = None if names is None else set(names)

    def counts(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            called[name] += 1

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if wanted is None or name in wanted:
                stack.callback(module.register_forward_pre_hook(counts(name)).remove)
        yield called


def samples_first(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """The tensor with the dimension that counts samples in front."""
    return tensor.movedim(axis, 0) if axis and tensor.ndim > axis else tensor


def axis_of(model: nn.Module, module: nn.Module, path: str | None) -> int:
    """Which dimension of what a module of the model returns counts samples."""
    return sample_axis(model, next(name for name, one in model.named_modules() if one is module), path)


def _numbered(key: str, call: int) -> str:
    return key if call == 1 else f"{key}#{call}"


def _own(name: str, tensor: torch.Tensor, reduced: Callable[[str, torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
    if reduced is None:
        return tensor.clone()
    made = reduced(name, tensor)
    shared = made.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return made.clone() if shared else made


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode in full float32 without gradients; yields the model's device, and leaves the model as it came."""
    weights_with_numbers(model)
    parameter = next(iter(model.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    with evaluation_mode(model), observing(model, device):
        yield device
