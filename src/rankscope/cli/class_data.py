"""Labels of a folder of classes, and of arrays, as the model's head counts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from rankscope._base.errors import DataError, ModelError, first_line
from rankscope._base.facts import Fact, FactKind
from rankscope.features import find_head
from rankscope.loading import class_folders, class_order, imagenet_classes, is_image, split_folder

if TYPE_CHECKING:
    from rankscope.loading import LoadedModel

__all__ = ["FolderLabels", "check_labels", "folder_labels", "head_classes", "read_folder"]


class FolderLabels(NamedTuple):
    """Class index by folder, one name for each class of the head, and facts."""

    labels: dict[str, int]
    names: tuple[str, ...]
    facts: tuple[Fact, ...]


def head_classes(model: nn.Module) -> int | None:
    """Number of classes of the model's head; None where no head is found (``collect`` says why)."""
    try:
        head: Any = find_head(model)[1]
    except ModelError:
        return None
    return int(head.weight.shape[0])


def read_folder(path: Path) -> Any:
    """The folder as torchvision's ``ImageFolder`` without a transform; splits and folders of none are refused."""
    from torchvision.datasets import ImageFolder

    class _Classes(ImageFolder):
        def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
            names = class_folders(Path(directory))
            if not names:
                raise FileNotFoundError(f"no class folder in {directory}")
            return names, {name: index for index, name in enumerate(names)}

    split = split_folder(class_folders(path))
    if split is not None:
        raise DataError(f"--data {str(path)!r} holds splits, not classes; give {str(path / split)!r}")
    try:
        return _Classes(str(path), is_valid_file=lambda file: is_image(os.path.relpath(file, path)))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"--data {str(path)!r} is no folder with one subfolder a class ({first_line(error)}); give one whose "
            "subfolders hold images"
        ) from error


def folder_labels(path: Path, folders: Sequence[str], loaded: LoadedModel, classes: int | None) -> FolderLabels:
    """Class folders as the head's classes: by the model's own names, by ImageNet's, by number, or in their order.

    Raises
    ------
    DataError
        More folders than the head has classes.
    """
    count = len(folders) if classes is None else classes
    if len(folders) > count:
        raise DataError(
            f"{str(path)!r} has {len(folders):,} class folders, but the head of {loaded.name} has {count:,} classes; "
            f"give a model with {len(folders):,} (--num-classes {len(folders)} with --weights FILE or random), or "
            "leave out the folders that it does not know"
        )
    own = loaded.class_names if loaded.class_names is not None and len(loaded.class_names) == count else None
    order = class_order(folders)
    facts = order.facts
    index = {folder: label for label, folder in enumerate(order.folders)}
    synsets = imagenet_classes()[0]
    positions = False
    if own is not None and set(folders) <= set(own):
        index, facts = {folder: own.index(folder) for folder in folders}, ()
    elif order.rule == "imagenet" and count == len(synsets):
        index = {folder: synsets.index(folder) for folder in folders}
    elif order.rule == "numbers" and len(folders) < count and _are_indices(folders, count):
        index = {folder: int(folder) for folder in folders}
    else:
        positions = True
    if len(folders) < count:
        facts = (*facts, _subset(index, count, positions))
    return FolderLabels(index, _names(order.folders, order.names, own, index, count), facts)


def check_labels(labels: torch.Tensor, loaded: LoadedModel, classes: int | None) -> tuple[Fact, ...]:
    """Labels of arrays against the head: an error where they lie outside, a fact where classes are without a sample."""
    if classes is None or not len(labels):
        return ()
    low, high, found = int(labels.min()), int(labels.max()), len(labels.unique())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels run from {low} to {high}, but the head of {loaded.name} has {classes:,} classes "
            f"(0…{classes - 1}); give labels that index the head, or a model with more (--num-classes {high + 1})"
        )
    if found < classes:
        return (Fact(FactKind.FEWER_CLASSES, {"classes": classes, "found": found}),)
    return ()


def _are_indices(folders: Sequence[str], count: int) -> bool:
    numbers = {int(folder) for folder in folders}
    return len(numbers) == len(folders) and max(numbers) < count


def _subset(index: dict[str, int], count: int, positions: bool) -> Fact:
    pairs = sorted(index.items(), key=lambda one: one[1])
    folders, labels = zip(*pairs, strict=True)
    values = {"classes": count, "folders": folders, "labels": labels, "positions": positions}
    return Fact(FactKind.FEWER_FOLDERS, values)


def _names(
    order: tuple[str, ...], described: tuple[str, ...], own: tuple[str, ...] | None, index: dict[str, int], count: int
) -> tuple[str, ...]:
    """The model's names where the folders are known to be its classes or are too few; the folders' elsewhere."""
    matched = all(own is not None and own[label] == folder for folder, label in index.items())
    numbered = all(folder.isdecimal() and int(folder) == label for folder, label in index.items())
    if own is not None and (matched or numbered or len(index) < count):
        return own
    synsets, words = imagenet_classes()
    if count == len(synsets) and set(order) <= set(synsets):
        return own or tuple(words[s] for s in synsets)
    named = {index[folder]: name for folder, name in zip(order, described, strict=True)}
    return tuple(named.get(label, str(label)) for label in range(count))
