"""Standard errors of a long mean from the means of its consecutive batches, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["BATCHES", "BatchMeans"]

BATCHES = 32  # batch means are merged in pairs when there are twice as many


class BatchMeans:
    """Sums of increments over consecutive layers, in batches whose length doubles: between 32 and 63 of them."""

    def __init__(self, k: int) -> None:
        self.total = np.zeros(k)
        self.layers = 0
        self.size = 1
        self.done: list[NDArray[np.float64]] = []
        self.open = np.zeros(k)
        self.filled = 0

    @property
    def fresh(self) -> bool:
        """Whether a batch has just been closed, so that the errors have changed."""
        return self.filled == 0

    def add(self, step: NDArray[np.float64]) -> None:
        self.total = self.total + step
        self.open = self.open + step
        self.layers += 1
        self.filled += 1
        if self.filled == self.size:
            self.done.append(self.open)
            self.open, self.filled = np.zeros_like(self.open), 0
        if len(self.done) == 2 * BATCHES:
            self.done = [a + b for a, b in zip(self.done[::2], self.done[1::2], strict=True)]
            self.size *= 2

    def means(self) -> NDArray[np.float64]:
        """One row a closed batch, and last the mean over all layers, the open batch included."""
        return np.vstack([np.array(self.done) / self.size, self.total / self.layers])

    def errors(self) -> NDArray[np.float64]:
        return self.error_of(self.means())

    @staticmethod
    def error_of(means: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard error of the closed batches' mean, and by how much the open batch moves it."""
        closed, whole = means[:-1], means[-1]
        if len(closed) < 2:
            return np.full(means.shape[1:], np.nan)
        with np.errstate(invalid="ignore"):
            spread = closed.std(axis=0, ddof=1) / math.sqrt(len(closed))
            return np.asarray(np.hypot(spread, whole - closed.mean(axis=0)))
