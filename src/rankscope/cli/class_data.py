"""Labels of a folder of classes, and of arrays, as the model's head counts them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from rankscope._base.errors import DataError, ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.labels import refuse_unlabelled
from rankscope._base.text import counted, own_verb
from rankscope.features import find_head
from rankscope.loading import class_folders, class_order, image_files, imagenet_classes, split_folder
from rankscope.loading.class_places import misplaced, places_by_name
from rankscope.loading.images import printable, refuse_unreadable
from rankscope.views.phrases import first_few

if TYPE_CHECKING:
    from rankscope.loading import LoadedModel

__all__ = ["ClassFolder", "FolderLabels", "are_indices", "check_labels", "folder_labels", "head_classes", "read_folder"]


class ClassFolder(NamedTuple):
    """The class folders by name, and every image below the folder that holds them.

    ``folders`` has the class folder of each file; ``None`` for a file beside them.
    """

    classes: tuple[str, ...]
    files: tuple[str, ...]
    folders: tuple[str | None, ...]

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """The files in class folders, each with its folder."""
        return [(file, name) for file, name in zip(self.files, self.folders, strict=True) if name is not None]

    @property
    def beside(self) -> list[str]:
        """The files beside the class folders."""
        return [file for file, name in zip(self.files, self.folders, strict=True) if name is None]


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


def read_folder(path: Path) -> ClassFolder:
    """Every picture below ``path`` with its class folder; splits, folders of none and unreadable ones are refused.

    Raises
    ------
    DataError
        For a folder that cannot be read as one with a subfolder for each class.
    """
    try:
        names = class_folders(path)
    except OSError as error:
        refuse_unreadable(error)
    split = split_folder(names)
    if split is not None:
        raise DataError(f"--data {str(path)!r} holds splits, not classes; give {str(path / split)!r}")
    files = tuple(image_files(path, refuse_unreadable))
    return ClassFolder(tuple(names), files, tuple(_class_of(path, file) for file in files))


def _class_of(path: Path, file: str) -> str | None:
    first, _, below = os.path.relpath(file, path).partition(os.sep)
    return first if below else None


def folder_labels(path: Path, found: ClassFolder, loaded: LoadedModel, classes: int | None) -> FolderLabels:
    """Class folders as the head's classes: by the model's own names, by ImageNet's, by number, or in their order.

    Raises
    ------
    DataError
        No class folder that holds an image; more folders than the head has classes; a folder without an image, where
        the order of all folders gives the labels; names of which some are the model's and would get other labels.
    """
    folders = found.classes
    filled = set(found.folders)
    empty = tuple(name for name in folders if name not in filled)
    if len(empty) == len(folders):
        raise DataError(
            f"--data {str(path)!r} is no folder with one subfolder per class ({counted(len(found.files), 'image')} "
            f"{own_verb(len(found.files), 'be')} in it and none in a subfolder); move the images of each class into a "
            "folder of their own, or measure them without labels (rankscope features, rankscope profile)"
        )
    count = len(folders) if classes is None else classes
    if len(folders) > count:
        raise DataError(
            f"{str(path)!r} has {len(folders):,} class folders, but the head of {loaded.name} has {count:,} classes; "
            f"give a model with {len(folders):,} (--num-classes {len(folders)} with --weights FILE or random), or "
            "leave out the folders that it does not know"
        )
    own = own_names(loaded, count)
    order = class_order(folders)
    facts = order.facts
    index = {folder: label for label, folder in enumerate(order.folders)}
    synsets = imagenet_classes()[0]
    positions = False
    places = {} if own is None else places_by_name(folders, own)
    if places.keys() == set(folders):
        index, facts = places, ()
    elif order.rule == "imagenet" and count == len(synsets):
        index = {folder: synsets.index(folder) for folder in folders}
    elif order.rule == "numbers" and are_indices(folders, count):
        index = {folder: int(folder) for folder in order.folders}
        _check_places(path, index, places, loaded.name, own, numbered=True)
    else:
        positions = True
    if positions:
        _check_places(path, index, places, loaded.name, own, numbered=False)
    if positions and empty:
        raise DataError(
            f"class folder {str(path / empty[0])!r} holds no image, and the order of the folders gives the labels: "
            "remove it if it is no class, or put the images of its class into it"
        )
    if len(folders) - len(empty) < count:
        facts = (*facts, _subset({k: v for k, v in index.items() if k not in empty}, count, positions))
    if found.beside:
        name = printable(os.path.basename(found.beside[0]))
        facts = (*facts, Fact(FactKind.BESIDE_FOLDERS, {"count": len(found.beside), "first": name}, caution=True))
    return FolderLabels(index, _names(order.folders, order.names, own, index, count), facts)


def check_labels(labels: torch.Tensor, loaded: LoadedModel, classes: int | None) -> tuple[Fact, ...]:
    """Labels of arrays against the head: an error where they lie outside, a fact where classes are without a sample."""
    if classes is None or not len(labels):
        return ()
    refuse_unlabelled(labels)
    low, high, found = int(labels.min()), int(labels.max()), len(labels.unique())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels run from {low} to {high}, but the head of {loaded.name} has {classes:,} classes "
            f"(0…{classes - 1}); give labels that index the head, or a model with more (--num-classes {high + 1})"
        )
    if found < classes:
        return (Fact(FactKind.FEWER_CLASSES, {"classes": classes, "found": found}),)
    return ()


def own_names(loaded: LoadedModel, classes: int | None) -> tuple[str, ...] | None:
    """The model's names of its classes, where it has one for each class of its head."""
    names = loaded.class_names
    return names if names is not None and len(names) == classes else None


def are_indices(folders: Sequence[str], count: int) -> bool:
    """Whether names that are whole numbers can be those of a head's ``count`` classes."""
    numbers = {int(folder) for folder in folders}
    return len(numbers) == len(folders) and max(numbers) < count


def _subset(index: dict[str, int], count: int, positions: bool) -> Fact:
    pairs = sorted(index.items(), key=lambda one: one[1])
    folders, labels = zip(*pairs, strict=True)
    values = {"classes": count, "folders": folders, "labels": labels, "positions": positions}
    return Fact(FactKind.FEWER_FOLDERS, values)


def _check_places(
    path: Path,
    index: Mapping[str, int],
    places: Mapping[str, int],
    model: str,
    own: Sequence[str] | None,
    *,
    numbered: bool,
) -> None:
    """By the order of the folders, or by their numbers, none may get the label of another class than its name says."""
    moved = misplaced(index, places)
    if moved is None:
        return
    unknown = next(folder for folder in index if folder not in places)
    rule, remedy = ("its number", "") if numbered else ("the order of the folders", ", or by their numbers from 0")
    raise DataError(
        f"class folder {str(path / unknown)!r} does not name one class of {model}, and by {rule} {moved!r} would be "
        f"class {index[moved]} in place of {places[moved]}; name all folders as the model names its classes "
        f"({first_few(own or ())}){remedy}"
    )


def _names(
    order: tuple[str, ...], described: tuple[str, ...], own: tuple[str, ...] | None, index: dict[str, int], count: int
) -> tuple[str, ...]:
    """The model's names where the folders are known to be its classes or are too few; the folders' elsewhere."""
    matched = own is not None and places_by_name(tuple(index), own) == index
    numbered = all(folder.isdecimal() and int(folder) == label for folder, label in index.items())
    if own is not None and (matched or numbered or len(index) < count):
        return own
    synsets, words = imagenet_classes()
    if count == len(synsets) and set(order) <= set(synsets):
        return own or tuple(words[s] for s in synsets)
    named = {index[folder]: name for folder, name in zip(order, described, strict=True)}
    return tuple(named.get(label, str(label)) for label in range(count))
