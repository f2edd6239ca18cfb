"""One class of a ``DependencyTable``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ClassDependency", "Exactness", "PathPoint", "Status"]


class Status(StrEnum):
    """What holds of a class; ``ClassDependency`` says what each means."""

    DEPENDENT = "dependent"
    ALL_ZERO = "all zero"
    NOT_BEYOND_NULL = "not beyond null"
    NO_NULL = "no null"
    NO_ETA_KEEPS = "no eta keeps accuracy"
    NOT_CONVERGED = "not converged"


class Exactness(StrEnum):
    """Why a class is an exact combination of the others."""

    SAMPLES = "samples"
    FEATURES = "features"
    LOGITS = "logits"


@dataclass(frozen=True)
class PathPoint:
    """One η that was tried on the way to the chosen one: how many classes it used and what it kept."""

    n_dependencies: int
    accuracy_replaced: float
    positive_accuracy_replaced: float


@dataclass(frozen=True)
class ClassDependency:
    """One class: the other classes that explain its logit, and how well they do.

    Attributes
    ----------
    index, name : int, str
        The class.
    status : Status
        ``dependent``; ``all zero`` (no other class is used: η is at or above η_max, so nothing is explained);
        ``not beyond null`` (R² no higher than the permutation null reaches, or not held out); ``no null`` (no
        permutation was run, or too few arrangements of the target exist for one to reject anything, as with one sample
        a class: the weights may be those of noise); ``no eta keeps
        accuracy`` (under ``eta=None``; the smallest η tried is shown); ``not converged`` (gap above the tolerance).
    eta, eta_max : float
        Penalty used, and the least one with an all-zero solution; units of the squared logits.
    depends_on, names, weights : tuple
        The other classes with non-zero λ, by falling |λ|.
    intercept : float
        Constant of the fit; 0 under ``reference``.
    r2, r2_uncentred : float
        1 − residual/variance and 1 − residual/mean square, on the fitted samples.
    r2_held_out : float
        Centred R² on held-out samples (positive ones under ``reference``); NaN without any.
    r2_null, r2_null_max, r2_uncentred_null : float
        Mean and largest fitted R² over the permutations, and the mean uncentred one; NaN without permutations.
    r2_null_limit : float
        What ``r2`` must exceed: the null's mean plus four of its standard deviations.
    duality_gap : float
        (primal − dual)/primal.
    accuracy, accuracy_replaced : float
        Top-1 over all samples, with the true logit and with the replaced one.
    positive_accuracy, positive_accuracy_replaced : float
        The same over the class's own samples.
    trivial : Exactness or None
        None where the class is no exact combination of the others; else why it is one: ``samples`` (fewer fitted
        samples than classes), ``features`` (fewer dimensions than classes), ``logits`` (neither is known).
    tried : tuple of PathPoint
        The path down to the chosen η; empty at a fixed η.
    """

    index: int
    name: str
    status: Status
    eta: float
    eta_max: float
    depends_on: tuple[int, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    r2: float
    r2_uncentred: float
    r2_held_out: float
    r2_null: float
    r2_null_max: float
    r2_null_limit: float
    r2_uncentred_null: float
    duality_gap: float
    accuracy: float
    accuracy_replaced: float
    positive_accuracy: float
    positive_accuracy_replaced: float
    trivial: Exactness | None
    tried: tuple[PathPoint, ...] = ()

    @property
    def n_dependencies(self) -> int:
        """Number of other classes used."""
        return len(self.depends_on)

    @property
    def eta_over_eta_max(self) -> float:
        """η/η_max; at 1 and above the solution is all zero. Infinite where nothing correlates at all."""
        return self.eta / self.eta_max if self.eta_max > 0 else math.inf

    def fewest(self, keep: float) -> int | None:
        """Fewest classes, at the η of this record or one tried on the path, that keep this share of the accuracies."""
        here = PathPoint(self.n_dependencies, self.accuracy_replaced, self.positive_accuracy_replaced)
        enough = [
            p.n_dependencies
            for p in (*self.tried, here)
            if p.n_dependencies > 0
            and p.positive_accuracy_replaced >= keep * self.positive_accuracy
            and p.accuracy_replaced >= keep * self.accuracy
        ]
        return min(enough) if enough and self.positive_accuracy > 0 else None
