"""Thresholds on singular values, each under its own name.

The choice of threshold moves a rank by hundreds, so a tolerance is a named value that every result records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import dtype as TorchDtype
from torch import finfo, float32

from rankscope._base.checks import number_of
from rankscope._base.errors import UsageError, nearest, parameter

__all__ = ["EPS32", "Rule", "Tolerance", "ToleranceLike", "as_tolerance"]

EPS32 = 1.1920928955078125e-07  # float32 machine epsilon, 2**-23, whatever the dtype computed in
Rule = Literal["paper", "reference", "torch", "constant"]
_NAMES = ("paper", "reference", "torch")


@dataclass(frozen=True)
class Tolerance:
    """A rule that turns a matrix's shape and largest singular value into a threshold τ on its singular values.

    Use the named constructors, or ``Tolerance(rtol=...)`` / ``Tolerance(atol=...)`` for a constant one; with both,
    τ is the larger of ``atol`` and ``rtol``·σ₁, as in ``torch.linalg.matrix_rank``.

    ============== ============================================ ==============================================
    name           τ / σ₁                                       source
    ============== ============================================ ==============================================
    ``paper``      eps32 · min(rows, columns), σ ≥ τ            submission §4.3: "ε = eps × N", N singular values
    ``reference``  √(eps32 · columns), σ > τ                    authors' code: ``matrix_rank`` of JᵀJ in float32
    ``torch``      eps(dtype) · max(rows, columns), σ > τ       ``torch.linalg.matrix_rank`` of the matrix itself
    constant       as given, σ ≥ τ                              Eq. 4
    ============== ============================================ ==============================================

    Raises
    ------
    UsageError
        When neither or an invalid (negative, NaN, infinite) tolerance is given, or the name is unknown.

    Examples
    --------
    >>> Tolerance.paper().threshold((5000, 768), 1.0)
    9.1552734375e-05
    >>> print(Tolerance(rtol=1e-3))
    constant (rtol=0.001)
    """

    rtol: float | None = None
    atol: float | None = None
    rule: Rule = "constant"

    @classmethod
    def from_earlier(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier files call the rule a convention."""
        return {**data, "rule": data["convention"]} if "convention" in data else data

    def __post_init__(self) -> None:
        if self.rule not in (*_NAMES, "constant"):
            raise UsageError(f"unknown {parameter('tolerance')} {self.rule!r}; {nearest(str(self.rule), _NAMES)}")
        if self.rule != "constant":
            if self.rtol is not None or self.atol is not None:
                raise UsageError(
                    f"the tolerance {self.rule!r} sets its own threshold; give rtol or atol alone for a constant one"
                )
            return
        if self.rtol is None and self.atol is None:
            raise UsageError("a constant tolerance needs rtol=, atol=, or both")
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None:
                object.__setattr__(self, name, number_of(value, name, least=0))

    @classmethod
    def paper(cls) -> Tolerance:
        """τ = eps32 · min(rows, columns) · σ₁, with σ ≥ τ: what the paper's submission states."""
        return cls(rule="paper")

    @classmethod
    def reference(cls) -> Tolerance:
        """τ = √(eps32 · columns) · σ₁, with σ > τ: what the authors' code computes."""
        return cls(rule="reference")

    @classmethod
    def torch(cls) -> Tolerance:
        """τ = eps(dtype) · max(rows, columns) · σ₁, with σ > τ. It grows with the layer's size: for comparison only."""
        return cls(rule="torch")

    @property
    def strict(self) -> bool:
        """Whether a singular value exactly at the threshold is left out."""
        return self.rule in ("reference", "torch")

    @property
    def name(self) -> str:
        """The name that results carry; a constant tolerance names its values."""
        if self.rule != "constant":
            return self.rule
        parts = [f"{k}={v:g}" for k, v in (("rtol", self.rtol), ("atol", self.atol)) if v is not None]
        return f"constant ({', '.join(parts)})"

    def relative(self, shape: tuple[int, int], dtype: TorchDtype = float32) -> float:
        """rtol for a matrix of this shape: the part of τ that scales with σ₁ (0 for a pure ``atol``)."""
        rows, columns = shape
        if self.rule == "paper":
            return EPS32 * min(rows, columns)
        if self.rule == "reference":
            return math.sqrt(EPS32 * columns)
        if self.rule == "torch":
            return finfo(dtype).eps * max(rows, columns)
        return self.rtol or 0.0

    def threshold(self, shape: tuple[int, int], sigma_max: float, dtype: TorchDtype = float32) -> float:
        """τ, in the units of the singular values, for a matrix of this shape whose largest singular value is given."""
        return max(self.relative(shape, dtype) * sigma_max, self.atol or 0.0)

    def to_dict(self) -> dict[str, float | str | None]:
        """Plain values for JSON; ``as_tolerance`` reads them back."""
        return {"name": self.name, "rule": self.rule, "rtol": self.rtol, "atol": self.atol}

    def __str__(self) -> str:
        return self.name


ToleranceLike: TypeAlias = Tolerance | str | float | dict[str, float | str | None]


def as_tolerance(value: ToleranceLike) -> Tolerance:
    """A ``Tolerance`` from itself, a rule's name, an rtol as a number, or what ``to_dict`` wrote.

    >>> as_tolerance("reference").rule
    'reference'
    """
    if isinstance(value, Tolerance):
        return value
    if isinstance(value, dict):
        rule: Any = value.get("rule", value.get("convention", "constant"))  # the latter: its name in earlier versions
        return Tolerance(rtol=value.get("rtol"), atol=value.get("atol"), rule=rule)  # type: ignore[arg-type]
    if isinstance(value, str):
        if value in _NAMES:
            return Tolerance(rule=value)  # type: ignore[arg-type]
        try:
            return Tolerance(rtol=float(value))
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"unknown {parameter('tolerance')} {value!r} ({nearest(value, _NAMES)}); a number is a constant rtol"
            ) from None
    if value is None or isinstance(value, bool):
        names = ", ".join(map(repr, _NAMES))
        raise UsageError(f"tolerance is {value!r}; give one of {names}, a number for a constant rtol, or a Tolerance")
    return Tolerance(rtol=number_of(value, "tolerance", least=0))
