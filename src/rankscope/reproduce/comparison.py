"""One number of ours beside the paper's, and in words what the paper prints, its code does, and we did."""

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
        What we did: how ours was counted.
    why : str
        Why the two may differ.
    printed : str
        What the paper prints of it, and where.
    code : str
        What the authors' published code does there; empty where nothing is known of it, or in files of earlier
        versions.
    """

    quantity: str
    paper: float | None
    ours: float | None
    theory: float | None
    how: str
    why: str
    printed: str = ""
    code: str = ""
