"""Whether the classes of the data are those of the model: said before any number that rests on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankscope._base.chance import majority
from rankscope.views.chance import at_chance

__all__ = ["class_cautions"]

_SHOWN = 3


def class_cautions(
    labels: torch.Tensor, logits: torch.Tensor, data: Sequence[str] | None, model: Sequence[str] | None
) -> tuple[str, ...]:
    """Names of the data of which the model has none, and an accuracy that always giving one answer reaches.

    Parameters
    ----------
    labels, logits : torch.Tensor
        (N,) integers and (N, c).
    data, model : sequence of str or None
        Class names in the order of the labels, and in that of the logits.
    """
    found = []
    if data and model and not {_plain(name) for name in data} & {_plain(name) for name in model}:
        found.append(
            f"none of the data's {len(data)} class names ({_some(data)}) is a class of the model ({_some(model)}); the "
            "labels are their places in the data, so check that both have the same order"
        )
    full = float((logits.argmax(1) == labels).double().mean())
    share, most = majority(labels, "overall")
    if full <= share + 1e-12:
        found.append(at_chance(full, share, most, "overall"))
    return tuple(found)


def _plain(name: str) -> str:
    """ImageNet's classes have several names with commas between."""
    return name.partition(",")[0].strip().casefold().replace("_", " ")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
