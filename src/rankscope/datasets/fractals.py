"""A formula-driven image set: every class is an iterated function system, every image one of its perturbed attractors.

Nothing is stored. Image (seed, split, class, index) is the same in batches of any size, and on every device up to
floating point; training, validation and test images of a class are other perturbations of the same system.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Literal, get_args

import torch
from torch.utils.data import Dataset

from rankscope._base.checks import DeviceLike, count_of, device_of
from rankscope._base.errors import DataError, UsageError, nearest
from rankscope.datasets._hashing import keys
from rankscope.datasets._rendering import perturb, render
from rankscope.datasets.ifs import Systems, class_systems

__all__ = ["FractalBatches", "FractalSpec", "FractalTestSet", "Split", "fractal_images"]

Split = Literal["train", "validation", "test"]
_CHUNK = {"cpu": 16, "cuda": 512}


@dataclass(frozen=True)
class FractalSpec:
    """What an image set is made of; two equal specs are the same images.

    Attributes
    ----------
    classes : int
        Number of systems; the first classes of a larger set are those of a smaller one.
    size : int
        Side of the square images in pixels, 16 to 1024.
    seed : int
        Of the systems and of every image.
    perturbation : float
        How far an image's maps may be from its class's: turned by up to that many radians, lengths changed by half that
        share, moved by half that many half-images. 0 to 0.25.
    rotation : float
        The whole image is turned by up to that many degrees either way.
    scale : float
        The whole image is made larger or smaller by up to that share, 0 to 0.5.
    shift : float
        The whole image is moved by up to that share of its half-side along each axis.
    flip : bool
        Every second image is mirrored left to right.

    Examples
    --------
    >>> FractalSpec(classes=10, size=32).walkers
    64
    """

    classes: int = 1000
    size: int = 224
    seed: int = 0
    perturbation: float = 0.08
    rotation: float = 15.0
    scale: float = 0.1
    shift: float = 0.08
    flip: bool = True

    def __post_init__(self) -> None:
        bounds = {
            "classes": (1, 100_000),
            "size": (16, 1024),
            "seed": (0, 2**62),
            "perturbation": (0.0, 0.25),
            "rotation": (0.0, 180.0),
            "scale": (0.0, 0.5),
            "shift": (0.0, 1.0),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            kind = Real if isinstance(low, float) else Integral
            if isinstance(value, bool) or not isinstance(value, kind):
                what = "a whole number" if kind is Integral else "a number"
                raise UsageError(f"FractalSpec({name}={value!r}) is a {type(value).__name__}; give {what}")
            if not low <= float(value) <= high:
                raise UsageError(f"FractalSpec({name}={value!r}) is out of range; use {low} to {high}")
        if not isinstance(self.flip, bool):
            raise UsageError(f"FractalSpec(flip={self.flip!r}) is a {type(self.flip).__name__}; give True or False")

    @property
    def walkers(self) -> int:
        """How many walkers play an image's chaos game, 1,024 at 224 pixels: the points per pixel stay the same."""
        return max(64, self.size**2 // 49)


@lru_cache(maxsize=8)
def _systems_on(classes: int, seed: int, device: torch.device) -> Systems:
    return class_systems(classes, seed).to(device)


def fractal_images(
    spec: FractalSpec,
    labels: torch.Tensor | Sequence[int],
    indices: torch.Tensor | Sequence[int],
    *,
    split: Split = "test",
    device: DeviceLike = "cpu",
) -> torch.Tensor:
    """Images (B, 3, size, size) float32 of classes ``labels`` (B,) and numbers ``indices`` (B,) on ``device``.

    Normalised with ImageNet's mean and standard deviation. ``split`` is ``"train"``, ``"validation"`` or ``"test"``:
    other images of the same classes.

    >>> spec = FractalSpec(classes=4, size=16)
    >>> both = fractal_images(spec, torch.tensor([1, 3]), torch.tensor([0, 0]))
    >>> both.shape, bool((both[1:] == fractal_images(spec, torch.tensor([3]), torch.tensor([0]))).all())
    (torch.Size([2, 3, 16, 16]), True)
    """
    if split not in get_args(Split):
        raise UsageError(f"split {split!r} is unknown; {nearest(str(split), get_args(Split))}")
    labels, indices = _whole_numbers("labels", labels), _whole_numbers("indices", indices)
    if labels.ndim != 1 or labels.shape != indices.shape:
        raise DataError(
            f"labels and indices must be two vectors of one length; shapes are {tuple(labels.shape)} and "
            f"{tuple(indices.shape)}"
        )
    # labels on a GPU are trusted: looking at them would make the host wait
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < spec.classes:
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; the set has classes 0 to {spec.classes - 1}"
        )
    if indices.device.type == "cpu" and len(indices) and int(indices.min()) < 0:
        raise DataError(f"indices run from {int(indices.min())}; the images of a class are counted from 0")
    where = device_of(device, float64=False)
    labels, indices = labels.to(where, torch.int64), indices.to(where, torch.int64)
    systems = _systems_on(spec.classes, spec.seed, where)
    out = torch.empty(len(labels), 3, spec.size, spec.size, device=where)
    chunk = _CHUNK.get(where.type, 128)
    for start in range(0, len(labels), chunk):
        part = slice(start, start + chunk)
        key = keys(spec.seed, get_args(Split).index(split), labels[part], indices[part], device=where)
        matrices, offsets = perturb(
            systems,
            labels[part],
            key,
            perturbation=spec.perturbation,
            rotation=spec.rotation,
            scale=spec.scale,
            shift=spec.shift,
            flip=spec.flip,
        )
        thresholds = systems.thresholds.index_select(0, labels[part])
        render(matrices, offsets, thresholds, key, size=spec.size, walkers=spec.walkers, out=out[part])
    return out


class FractalBatches:
    """Endless training batches (images (B, 3, size, size), labels (B,)), made on ``device`` when they are asked for.

    Every class comes once before any comes again, in another order each time. The stream of images does not depend on
    the batch size, and none comes twice.

    >>> batches = FractalBatches(FractalSpec(classes=4, size=16), batch_size=4)
    >>> images, labels = next(batches)
    >>> images.shape, sorted(labels.tolist())
    (torch.Size([4, 3, 16, 16]), [0, 1, 2, 3])
    """

    def __init__(
        self, spec: FractalSpec, batch_size: int, *, device: DeviceLike = "cpu", split: Split = "train"
    ) -> None:
        batch_size = count_of(batch_size, "batch_size")
        self.spec, self.batch_size, self.device, self.split = spec, batch_size, device_of(device, float64=False), split
        self.position = 0

    def __iter__(self) -> FractalBatches:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        classes = self.spec.classes
        last = self.position + self.batch_size
        rounds = range(self.position // classes, (last - 1) // classes + 1)
        order = torch.cat([self._order(r) for r in rounds])
        labels = order[self.position - rounds.start * classes :][: self.batch_size]
        indices = torch.arange(self.position, last) // classes
        self.position = last
        images = fractal_images(self.spec, labels, indices, split=self.split, device=self.device)
        return images, labels.to(self.device, non_blocking=True)

    def _order(self, round_: int) -> torch.Tensor:
        seed = int(keys(self.spec.seed, 0x0DE2, round_)[0])
        return torch.randperm(self.spec.classes, generator=torch.Generator().manual_seed(seed))


class FractalTestSet(Dataset[tuple[torch.Tensor, int]]):
    """The test split: ``per_class`` images a class as a map-style dataset of (image (3, size, size), label).

    Item i is image i // classes of class i % classes: the first n·classes items are n images of every class.

    >>> held_out = FractalTestSet(FractalSpec(classes=4, size=16), per_class=3)
    >>> len(held_out), held_out[5][1], held_out[5][0].shape
    (12, 1, torch.Size([3, 16, 16]))
    """

    def __init__(self, spec: FractalSpec, *, per_class: int = 50, split: Split = "test") -> None:
        per_class = count_of(per_class, "per_class", most=10**8)
        self.spec, self.per_class, self.split = spec, per_class, split

    def __len__(self) -> int:
        return self.spec.classes * self.per_class

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        if not -len(self) <= item < len(self):
            raise IndexError(f"image {item} of {len(self)}")
        images, labels = self._images(torch.tensor([item % len(self)]), torch.device("cpu"))
        return images[0], int(labels[0])

    def test_batches(
        self, device: DeviceLike = "cpu", batch_size: int = 500
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images once in the order of the items, as (images (B, 3, size, size), labels (B,)) on ``device``."""
        batch_size = count_of(batch_size, "batch_size")
        where = device_of(device, float64=False)
        for start in range(0, len(self), batch_size):
            yield self._images(torch.arange(start, min(start + batch_size, len(self))), where)

    def _images(self, items: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        labels = items % self.spec.classes
        images = fractal_images(self.spec, labels, items // self.spec.classes, split=self.split, device=device)
        return images, labels.to(device)


def _whole_numbers(name: str, values: torch.Tensor | Sequence[int]) -> torch.Tensor:
    if not isinstance(values, torch.Tensor):
        try:
            values = torch.tensor(values, dtype=None if len(values) else torch.int64)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"{name} are {values!r}; give whole numbers") from None
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"{name} are {values.dtype}; give whole numbers")
    return values
