"""The logits and labels of one analysis, checked once at the boundary and split into fitted and held-out samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch

from rankscope._base.arrays import dense
from rankscope._base.checks import DeviceLike, count_of, device_of, number_of
from rankscope._base.errors import DataError, DeviceError, UsageError, parameter
from rankscope._base.labels import class_indices, refuse_unlabelled
from rankscope._base.text import counted
from rankscope.spectra.scale import power_of_two

__all__ = ["Sample", "check_logits", "check_sample"]


@dataclass(frozen=True)
class Sample:
    """Checked data: ``logits`` (N, c) and ``labels`` (N,); rows ``fit`` are fitted, ``test`` are held out.

    ``test_logits`` and ``test_labels`` are the same tensors unless the user gave a held-out set of their own. Logits
    are divided by ``unit``: 1 for all but extreme logits, else a power of two, so that float64 holds their squares.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    fit: torch.Tensor
    test: torch.Tensor
    test_logits: torch.Tensor
    test_labels: torch.Tensor
    classes: torch.Tensor
    names: tuple[str, ...]
    unit: float = 1.0

    @property
    def width(self) -> int:
        """Number of classes c that the logits have, whether analysed or not."""
        return int(self.logits.shape[1])


def check_logits(logits: Any, labels: Any, what: str, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors on one device: finite floating (N, c) and integers (N,) in 0…c−1, or an error that says where."""
    z, y = dense(logits, what), class_indices(labels)
    if z.ndim != 2 or not z.is_floating_point():
        raise DataError(f"{what} must be a floating (samples, classes) matrix; this is {z.dtype} {tuple(z.shape)}")
    device = device or z.device
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(
            f"device {device} has no float64, which the exact solution needs; use {parameter('device', 'cpu')} or "
            f"{parameter('device', 'cuda')}"
        )
    if z.dtype.itemsize < 2:  # torch's 8-bit numbers know no comparisons
        z = z.float()
    z, y = z.to(device), y.to(device)
    if y.shape != (z.shape[0],):
        raise DataError(f"labels have shape {tuple(y.shape)}; {what} of {z.shape[0]} samples need ({z.shape[0]},)")
    if z.shape[1] < 2:
        raise DataError(
            f"{what} have {counted(z.shape[1], 'class', 'classes')}; a dependence between classes needs at least 2"
        )
    refuse_unlabelled(y)
    outside = ((y < 0) | (y >= z.shape[1])).nonzero()
    if len(outside):
        at = int(outside[0])
        raise DataError(
            f"label {int(y[at])} of sample {at} is outside the classes 0…{z.shape[1] - 1} ({len(outside)} such); "
            "map the labels to the columns of the logits"
        )
    bad = (~torch.isfinite(z)).nonzero()
    if len(bad):
        sample, column = (int(v) for v in bad[0])
        raise DataError(
            f"the logit of class {column} at sample {sample} is {float(z[sample, column])} ({len(bad)} such logits); "
            "leave these samples out or fix the model"
        )
    return z, y


def check_sample(
    logits: Any,
    labels: Any,
    *,
    classes: Sequence[int] | None,
    class_names: Sequence[str] | None,
    held_out: Any,
    seed: int,
    device: DeviceLike,
) -> Sample:
    """Validate everything the user gave about the data, and split it."""
    z, y = check_logits(logits, labels, "logits", None if device is None else device_of(device))
    width = z.shape[1]
    if len(z) < width:
        raise DataError(
            f"{counted(len(z), 'sample')} for {counted(width, 'class', 'classes')} are too few; every class is then "
            "determined by chance"
        )
    if int(y.min()) == int(y.max()):
        raise DataError(f"all {len(y)} labels are class {int(y[0])}; a data set of one class has no accuracy to keep")
    constant = (z.amax(0) == z.amin(0)).nonzero()[:, 0]
    if len(constant):
        at = int(constant[0])
        raise DataError(
            f"the logit of class {at} is {float(z[0, at]):g} for every sample ({len(constant)} such classes); "
            "remove it: nothing depends on a constant"
        )
    if class_names is not None and (isinstance(class_names, str) or not isinstance(class_names, Sized)):
        raise UsageError(f"class_names is {class_names!r}; give {width} names")
    if class_names is not None and len(class_names) != width:
        raise UsageError(f"{len(class_names)} class names were given for {width} classes")
    chosen = list(range(width)) if classes is None else _indices(classes)
    for i in chosen:
        if not 0 <= i < width:
            raise UsageError(f"class {i} is out of range; the logits have classes 0…{width - 1}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise UsageError(f"classes is {chosen!r}; name at least one class, each once")
    counts = torch.bincount(y, minlength=width)
    for i in chosen:
        if not int(counts[i]):
            missing = sum(not int(counts[k]) for k in chosen)
            others = f" ({counted(missing, 'such class', 'such classes')})" if missing > 1 else ""
            raise DataError(
                f"class {i} has no samples{others}; add samples of it, or list only classes that have some "
                f"under {parameter('classes')}"
            )
    if isinstance(held_out, tuple | list):
        if len(held_out) != 2:
            raise UsageError(f"held_out has {len(held_out)} parts; give a share, or (logits, labels)")
        test_z, test_y = check_logits(held_out[0], held_out[1], "held-out logits", z.device)
        if test_z.shape[1] != width:
            raise DataError(f"held-out logits have {test_z.shape[1]} classes, the others {width}")
        fit, test = torch.arange(len(z), device=z.device), torch.arange(len(test_z), device=z.device)
    else:
        test_z, test_y = z, y
        fit, test = _split(y, 0.0 if held_out is None else _share(held_out), seed)
    names = tuple(str(i) for i in range(width)) if class_names is None else tuple(str(n) for n in class_names)
    unit = power_of_two(max(float(z.abs().max()), float(test_z.abs().max()) if len(test_z) else 0.0))
    if unit != 1:
        own = test_z is z
        z = z / unit
        test_z = z if own else test_z / unit
    return Sample(z, y, fit, test, test_z, test_y, torch.tensor(chosen, device=z.device), names, unit)


def _indices(classes: Any) -> list[int]:
    """Whole numbers, one or more; Booleans are none."""
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise UsageError(f"classes is {classes!r}; name at least one class by its index, each once")
    return [count_of(i, "classes", least=0) for i in classes]


def _share(held_out: Any) -> float:
    try:
        share = number_of(held_out, "held_out", least=0)
    except UsageError:
        share = math.nan
    if not share < 1:
        raise UsageError(
            f"{parameter('held_out')} is {held_out!r}; give a share from 0 up to but not including 1, or "
            "(logits, labels)"
        )
    return share


def _split(labels: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to fit and rows to hold out: the same share ⌊share·n⌋ of every class, chosen by the seed."""
    y = labels.cpu()
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = shuffled[torch.argsort(y[shuffled], stable=True)]
    counts = torch.bincount(y)
    first = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(y)) - first[y[order]]
    held = place < torch.floor(counts[y[order]] * share)
    return order[~held].sort().values.to(labels.device), order[held].sort().values.to(labels.device)
