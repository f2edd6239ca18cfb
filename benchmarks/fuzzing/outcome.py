"""What became of one random call: one line of the results file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

__all__ = ["ORDER", "Outcome", "Status"]

Status = Literal[
    "wrong",  # a certified bound excludes the truth, or a number without an interval differs from it
    "raw error",  # an exception that is no RankscopeError
    "changed",  # the model, its inputs or the process are not as they were
    "refused",  # a RankscopeError where the call has one meaning
    "incomplete",  # a cut point of the network is missing from the result
    "uncertified",
    "wide",  # certified, and too wide to say much
    "near",  # too wide because a singular value of the truth lies nearer to the threshold than the certified error
    "kink",  # rounding decides which linear piece the network stands on, so there is no one truth
    "noise",  # the truth is zero but for its own rounding, so it has no rank to compare with
    "range",  # the derivative is too large for the working precision, and the result says that it has no number there
    "ambiguous",  # refused as the generator meant it
    "measured",
]
ORDER: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Outcome:
    """The worst that happened in one call; ``cells`` counts what happened at every cut point of every sample."""

    seed: int
    status: Status
    ingredients: tuple[str, ...] = ()
    detail: str = ""
    cells: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def read(cls, line: str) -> Outcome:
        values: dict[str, Any] = json.loads(line)
        return cls(**{**values, "ingredients": tuple(values["ingredients"])})
