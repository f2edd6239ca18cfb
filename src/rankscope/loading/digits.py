"""scikit-learn's 1,797 digits, and which of them the shipped network was trained on."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIGITS", "Digits", "digits_of"]

# name of a source → what it holds, in words
DIGITS = {
    "digits": "the 450 digits held out from training",
    "digits:train": "the 1,347 digits of training",
    "digits:all": "all 1,797 digits, those of training too",
}


class Digits(NamedTuple):
    """Images (N, 8, 8) of whole numbers from 0 to 16, labels (N,), and their places among the 1,797."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]


@lru_cache
def digits_of(source: str) -> Digits:
    """The digits of a name of ``DIGITS``; the same split on every call, a quarter of each class held out.

    >>> [len(digits_of(name).labels) for name in DIGITS]
    [450, 1347, 1797]
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, held_out = train_test_split(range(len(data.target)), test_size=450, stratify=data.target, random_state=0)
    places = np.array({"digits": held_out, "digits:train": train}.get(source, range(len(data.target))))
    return Digits(data.images[places], data.target[places].astype(np.int64), places)
