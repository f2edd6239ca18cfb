"""A model that fails on what was given: an input without its batch dimension is the likely cause, and has a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.fx import GraphModule

from rankscope._base.errors import ModelError, first_line
from rankscope._base.text import counted
from rankscope.slicing.sample import Sample
from rankscope.slicing.signature import signature_of

__all__ = ["CallFailedError", "call_failed", "counts_samples", "naming_the_batch"]


class CallFailedError(ModelError):
    """The model's own code raised on the input that it was given."""


def call_failed(model: nn.Module, what: str, sample: Sample, error: Exception) -> ModelError:
    """The error for a model that raised on a call; ``what`` is the subject and verb of the sentence."""
    kind, rows = type(model).__name__, len(sample.x)
    if getattr(model.forward, "__func__", None) is nn.Module.forward:
        return ModelError(f"{kind} has no forward; give a module that has one, such as nn.Sequential(*layers)")
    missing = _missing(model, sample) if isinstance(error, TypeError) else []
    if missing:
        named = ", ".join(f'"{name}": ...' for name in signature_of(model).needed)
        names = " and ".join(map(repr, missing))
        return ModelError(f"forward of {kind} also needs {names}; give a mapping of all its arguments ({{{named}}})")
    exported = _exported_rows(model)
    if exported is None or exported == rows:
        return CallFailedError(f"{what}: {first_line(error)}")
    return ModelError(
        f"the program was exported for calls of {counted(exported, 'sample')}, and rankscope calls it with {rows}; "
        "export it with a dynamic first dimension (torch.export.export(model, (x,), dynamic_shapes=...))"
    )


def _missing(model: nn.Module, sample: Sample) -> list[str]:
    """Arguments without a default that the call does not give."""
    signature = signature_of(model)
    given = {*sample.extra, next(iter(signature.positional), "") if sample.keyword is None else sample.keyword}
    return [name for name in signature.needed if name not in given]


def _exported_rows(model: nn.Module) -> int | None:
    """The one number of rows that a program of ``torch.export`` takes; ``None`` where it takes any."""
    nodes = model.graph.nodes if isinstance(model, GraphModule) else ()
    inputs = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    rows = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.ndim]
    return rows[0] if rows and isinstance(rows[0], int) else None


def counts_samples(shape: Sequence[int] | None, what: str = "the input") -> str:
    """What an error adds about the dimension that counts samples, where it is another than a user may expect.

    >>> counts_samples((3, 32, 32))
    ' (the input has shape (3, 32, 32), whose first dimension counts samples; give x[None] if it is one sample)'
    >>> counts_samples((1, 3, 32, 32))
    ''
    """
    if shape is None or not shape or (shape[0] < 2 and len(shape) != 3):  # a grey image is one of three dimensions
        return ""
    return f" ({what} has shape {tuple(shape)}, whose first dimension counts samples; give x[None] if it is one sample)"


@contextmanager
def naming_the_batch(shape: Sequence[int] | None) -> Iterator[None]:
    """The model's failure inside names ``x[None]``; ``shape`` is the input's, ``None`` where items are samples."""
    try:
        yield
    except CallFailedError as error:
        remedy = counts_samples(shape)
        if not remedy:
            raise
        raise CallFailedError(f"{error.marked}{remedy}") from error
