"""A model that fails on what was given: an input without its batch dimension is the likely cause, and has a remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rankscope._base.errors import ModelError

__all__ = ["CallFailedError", "counts_samples", "naming_the_batch"]


class CallFailedError(ModelError):
    """The model's own code raised on the input that it was given."""


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
