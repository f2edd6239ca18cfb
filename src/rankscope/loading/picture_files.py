"""Picture files as a data set of (tensor, label): read as ``load_images`` reads them, whatever their mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from rankscope.loading.images import read_picture

__all__ = ["PictureFiles"]


class PictureFiles(Dataset[tuple[Any, int]]):
    """``samples`` pairs each file with its label; ``transform`` makes a tensor of a picture of whatever mode.

    torchvision's ``ImageFolder`` would cut 16 bits to the lowest 8, and a link to a folder above would be followed
    until the system refuses, with every picture on the way again.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], transform: Callable[[Any], Any]) -> None:
        self.samples, self.transform = list(samples), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file, label = self.samples[index]
        return self.transform(read_picture(file)), label
