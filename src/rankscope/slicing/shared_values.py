"""What ``shared`` names is one value: the records of a data set that hold another one are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from rankscope._base.errors import UsageError
from rankscope.slicing.calls import Call
from rankscope.slicing.meaning import Meaning
from rankscope.slicing.values import as_tensor, is_array

__all__ = ["SharedValues", "same_value"]


class SharedValues:
    """The values of the inputs that the caller named in ``shared``, as the first call brought them."""

    def __init__(self, meaning: Meaning) -> None:
        self.names = meaning.shared
        self._first: dict[str, Any] | None = None

    def check(self, call: Call, place: str) -> None:
        """Refuse a call whose value of a shared input is another one than the first call's.

        Raises
        ------
        UsageError
            With the input's name, the first sample or batch that differs, and the spelling that says so.
        """
        if not self.names:
            return
        held = {name: call.shared[name] for name in self.names if name in call.shared}
        if self._first is None:  # a data set may fill one buffer again and again
            self._first = tree_map_only(Tensor, torch.clone, held)
            return
        for name in sorted(held.keys() | self._first.keys()):
            if name not in held or name not in self._first or not same_value(held[name], self._first[name]):
                raise UsageError(
                    f"shared names {name!r}, which differs between the samples (first in {place}); "
                    f'give per_sample=("{name}",) if each sample has its own'
                )


def same_value(value: Any, other: Any) -> bool:
    """Whether two values are equal: of one type, and tensors of one dtype and shape, in containers too.

    >>> same_value({"a": torch.ones(2), "b": "text"}, {"a": torch.ones(2), "b": "text"})
    True
    >>> same_value(1, True), same_value(torch.ones(2), torch.ones(2).double()), same_value(float("nan"), float("nan"))
    (False, False, True)
    """
    (leaves, form), (others, other_form) = tree_flatten(value), tree_flatten(other)
    return bool(form == other_form) and all(map(_equal, leaves, others))


def _equal(a: Any, b: Any) -> bool:
    if is_array(a) != is_array(b) or not (is_array(a) or type(a) is type(b)):
        return False
    try:
        if is_array(a):
            left, right = as_tensor(a, "a value"), as_tensor(b, "a value")
            if left.dtype != right.dtype or left.shape != right.shape:
                return False
            right = right.to(left.device)
            return bool(((left == right) | ((left != left) & (right != right))).all())
        return a is b or bool(a == b) or bool(a != a and b != b)
    except Exception:  # what cannot be compared is not known to be the same
        return False
