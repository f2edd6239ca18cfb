"""One number of ours beside the paper's."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PaperComparison"]


@dataclass(frozen=True)
class PaperComparison:
    """One number of ours beside the paper's.

    Attributes
    ----------
    quantity : str
        What is compared, with the network or layer it belongs to.
    paper : float or None
        What the paper prints; None where it shows a curve alone.
    ours : float or None
        What was measured; None where it could not be.
    theory : float or None
        What a closed form or an exact count gives, where there is one.
    how : str
        How ours was counted.
    why : str
        Why the two may differ.
    """

    quantity: str
    paper: float | None
    ours: float | None
    theory: float | None
    how: str
    why: str
