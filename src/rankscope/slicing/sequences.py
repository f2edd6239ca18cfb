"""torch's own sequence modules whose first dimension counts time steps, and not samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils.rnn import PackedSequence

from rankscope._base.errors import DataError, UsageError
from rankscope.slicing.values import is_array
from rankscope.slicing.wrapped import wrapped_by

__all__ = ["check_samples_first"]

_SEQUENCE = (
    nn.RNN,
    nn.LSTM,
    nn.GRU,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)
# they leave the first two dimensions where they are
_IN_PLACE = (
    nn.Identity, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Dropout, nn.Embedding, nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid,
    nn.SiLU, nn.ELU, nn.LeakyReLU,
)  # fmt: skip


def check_samples_first(model: nn.Module, inputs: Any) -> None:
    """Refuse a model that takes the second dimension of its input for samples, and packed sequences.

    Of two dimensions alone such modules take the first for time steps too, whatever ``batch_first`` says.

    A module of torch's own with ``batch_first=False`` is refused as the model itself, compiled or in ``DataParallel``
    or not, and in a ``Sequential`` that begins with it or with layers that keep the dimensions. Within any other model
    nothing is said, since a ``forward`` may transpose; nor of a subclass with a ``forward`` of its own.

    Raises
    ------
    DataError
        For a ``PackedSequence``.
    UsageError
        For such a model, and for an input of two dimensions.

    >>> check_samples_first(nn.LSTM(4, 5, batch_first=True), None)
    """
    if isinstance(inputs, PackedSequence):
        raise DataError("the input is a PackedSequence; give a Dataset of its sequences (unpack_sequence(x))")
    for module in _first_of(model):
        if not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in _SEQUENCE):
            continue
        name = type(module).__name__
        if any(getattr(m, "batch_first", True) is False for m in module.modules()):
            raise UsageError(
                f"{name} with batch_first=False takes the first dimension for time steps, where samples are counted "
                f"here; build it with batch_first=True, or wrap it in a module that transposes"
            )
        if is_array(inputs) and not getattr(inputs, "is_nested", False) and len(inputs.shape) == 2:
            raise UsageError(
                f"{name} takes two dimensions, here {tuple(inputs.shape)}, for one sequence without samples; give "
                f"x[None] for one sample, or x[:, None] for sequences of one step"
            )


def _first_of(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that see the input's first two dimensions as they are given."""
    inner = wrapped_by(model)
    if inner is not None:
        yield from _first_of(inner[1])
    elif type(model) is nn.Sequential:
        for member in model:
            yield from _first_of(member)
            if type(member) not in _IN_PLACE:
                return
    else:
        yield model
