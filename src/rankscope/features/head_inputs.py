"""What goes into a head that is applied at every position of a sequence: the one position that the model classifies by.

The decoders of Hugging Face do so: their logits are those of a text's last token, or of the last that is no padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rankscope._base.errors import ModelError

__all__ = ["call_of_logits", "head_inputs"]


def call_of_logits(kept: Mapping[str, Tensor], logits: Tensor, name: str) -> dict[str, Tensor]:
    """``kept`` with that call of the head which made the logits, as ``"<input>"`` and ``"<output>"``, and no other.

    A sample may call the head for something else too, before or after, and another sample may not.

    Raises
    ------
    ModelError
        Where it is called several times and the model returns what none of the calls made.
    """
    calls = [key.removeprefix("<output>") for key in kept if key.startswith("<output>")]
    made = [call for call in calls if len(calls) == 1 or _holds(kept[f"<output>{call}"], logits)]
    if not made and not bool(logits.isnan().any()):  # NaN is told as such, with the sample
        raise ModelError(
            f"the head {name!r} is called {len(calls)} times, and the model returns what none of these calls made; "
            "name with head= the linear layer whose output is the logits"
        )
    chosen = [*calls, *made][-1]
    rest = {key: value for key, value in kept.items() if not key.startswith(("<input>", "<output>"))}
    return {**rest, "<input>": kept[f"<input>{chosen}"], "<output>": kept[f"<output>{chosen}"]}


def _holds(made: Tensor, logits: Tensor) -> bool:
    """Whether the logits of every sample are what was made of it, at some position."""
    if made.ndim < 2:
        return False
    rows = made.flatten(1, -2) if made.ndim > 2 else made[:, None]
    if rows.shape[-1] == 1:  # one output has become two classes, the first of them with the logit 0
        logits = logits[:, 1:]
    if len(rows) != len(logits) or rows.shape[-1:] != logits.shape[1:]:
        return False
    return bool((rows == logits[:, None].to(rows.dtype)).all(2).any(1).all())


def head_inputs(given: Tensor, made: Tensor, logits: Tensor, name: str) -> Tensor:
    """Rows (N, d) of what the head was given, from what it made of it and what the model returned.

    A model that picks a position returns the very numbers that the head made there.

    Raises
    ------
    ModelError
        Where no position, or more than one, gives the logits.

    >>> given = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> head_inputs(given, 2 * given, torch.tensor([[6.0, 8.0]]), "score")
    tensor([[3., 4.]])
    """
    if given.ndim < 3 or made.shape[:-1] != given.shape[:-1] or made.ndim != given.ndim:
        return given.flatten(1)
    rows, outputs = given.flatten(1, -2), made.flatten(1, -2)
    if outputs.shape[-1] == 1:  # one output has become two classes, the first of them with the logit 0
        logits = logits[:, 1:]
    if rows.shape[1] == 1 or outputs.shape[-1:] != logits.shape[1:] or len(outputs) != len(logits):
        return rows[:, 0] if rows.shape[1] == 1 else given.flatten(1)
    same = (outputs == logits[:, None].to(outputs.dtype)).all(2)
    if bool(logits.isnan().any()):  # told as such, with the sample
        return rows[:, -1]
    place = same.int().argmax(1)
    chosen = rows[torch.arange(len(rows), device=rows.device), place]
    # several positions may give the same logits: then what goes in there has to be the same
    alike = (rows == chosen[:, None]).all(2) | ~same
    if not bool(same.any(1).all()) or not bool(alike.all()):
        which = "no position" if not bool(same.any(1).all()) else "several positions"
        raise ModelError(
            f"the head {name!r} is applied at {rows.shape[1]} positions, and {which} of a sample gives what the model "
            "returns; name with head= the linear layer whose output is the logits"
        )
    return chosen
