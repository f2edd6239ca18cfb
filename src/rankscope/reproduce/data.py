"""The validation folder: one subfolder per class, in the order of the network's head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rankscope._base.errors import DataError, UsageError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.text import counted
from rankscope.loading import (
    IMAGE_SUFFIXES,
    LoadedModel,
    class_order,
    image_files,
    imagenet_classes,
    split_folder,
)
from rankscope.loading.class_places import misplaced, places_by_name
from rankscope.loading.images import refuse_unreadable
from rankscope.loading.picture_files import PictureFiles

__all__ = ["VALIDATION", "ClassFolders", "dataset_of", "read_class_folders"]

_NEEDED = (
    f"{parameter('imagenet', 'DIR')} is needed: fetch the ImageNet validation images (50,000), sort them into one "
    "folder for each class (DIR/n01440764/….JPEG, 1,000 folders) and give DIR"
)
_SHOWN = 3
VALIDATION = 50_000


@dataclass(frozen=True)
class ClassFolders:
    """Names of the class folders in the order of the logits, names to show, and every file with its class.

    ``imagenet`` tells whether these are ImageNet's 1,000 classes, by their names.
    """

    root: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    files: tuple[tuple[str, int], ...]
    facts: tuple[Fact, ...] = ()
    imagenet: bool = False

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def other_data(self) -> str:
        """Why numbers differ where these are not ImageNet's classes."""
        return f"other data: the {len(self)} class folders are not ImageNet's {len(imagenet_classes()[0]):,}"

    def counted_by(self, own: Sequence[str] | None, network: str) -> ClassFolders:
        """The same folders with the labels of a network that knows its classes by name.

        Raises
        ------
        DataError
            Where it has some of the names, and their order gives them the labels of other classes.
        """
        if own is None or len(own) != len(self) or self.imagenet:
            return self
        places = places_by_name(self.classes, own)
        moved = misplaced({name: k for k, name in enumerate(self.classes)}, places)
        unknown = next((name for name in self.classes if name not in places), None)
        if moved is not None and unknown is not None:
            raise DataError(
                f"class folder {str(self.root / unknown)!r} does not name one class of {network}, and by the order of "
                f"the folders {moved!r} would be class {self.classes.index(moved)} in place of {places[moved]}; name "
                "all folders as the network names its classes"
            )
        if unknown is not None:
            return self
        order = sorted(range(len(self)), key=lambda k: places[self.classes[k]])
        return replace(
            self,
            classes=tuple(self.classes[k] for k in order),
            names=tuple(self.names[k] for k in order),
            files=tuple((file, places[self.classes[label]]) for file, label in self.files),
            facts=tuple(fact for fact in self.facts if fact.kind is not FactKind.FOLDER_ORDER),
        )

    def draw(self, limit: int | None, seed: int) -> list[tuple[str, int]]:
        """At most ``limit`` files, drawn from ``seed``, as many of each class as of any other up to one.

        Raises
        ------
        UsageError
            When ``limit`` leaves a class without an image.
        """
        if limit is None or limit >= len(self.files):
            return list(self.files)
        if limit < len(self.classes):
            raise UsageError(
                f"{parameter('limit')} {limit} leaves classes of {len(self.classes)} without an image; give more"
            )
        order = torch.randperm(len(self.files), generator=torch.Generator().manual_seed(seed)).tolist()
        place: dict[int, tuple[int, int]] = {}
        taken = [0] * len(self.classes)
        for rank, index in enumerate(order):
            label = self.files[index][1]
            place[index] = (taken[label], rank)
            taken[label] += 1
        chosen = sorted(sorted(place, key=place.__getitem__)[:limit])
        return [self.files[i] for i in chosen]


def read_class_folders(path: Path | None) -> ClassFolders:
    """List the folder once and check its layout.

    Folders named as ImageNet's classes (n01440764 …) take ImageNet's order, whole numbers their own, others that of
    the alphabet, as image folders are usually read.

    Raises
    ------
    UsageError
        Without a folder: what to fetch and where to put it.
    DataError
        Images outside class folders, fewer than two classes, a folder of splits, empty class folders (all named).
    """
    if path is None:
        raise UsageError(_NEEDED)
    given = f"{parameter('imagenet')} {str(path)!r}"
    entries = sorted(os.scandir(path), key=lambda e: e.name)
    folders = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    loose = [e.name for e in entries if e.is_file() and Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
    split = split_folder([f.name for f in folders])
    if split is not None:
        raise DataError(f"{given} holds splits, not classes; give {str(path / split)!r}")
    if loose:
        raise DataError(
            f"{given} holds {counted(len(loose), 'image')} outside class folders ({loose[0]}, …); sort them into one "
            "folder a class"
        )
    if len(folders) < 2:
        raise DataError(f"{given} has {counted(len(folders), 'class folder')}; it must hold one subfolder per class")
    order, names, _, said = class_order([f.name for f in folders])
    facts = list(said)
    held = {f.name: _images(f.path) for f in folders}
    empty = [name for name in order if not held[name]]
    if empty:
        shown = ", ".join(empty[:_SHOWN]) + (f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else "")
        raise DataError(f"{given}: {len(empty)} class folders hold no images: {shown}; fill or remove them")
    files = tuple((file, label) for label, name in enumerate(order) for file in held[name])
    imagenet = set(order) == set(imagenet_classes()[0])
    if not imagenet:
        facts.insert(0, Fact(FactKind.NOT_IMAGENET, {"classes": len(order)}))
    elif len(files) != VALIDATION:
        facts.insert(0, Fact(FactKind.OTHER_COUNT, {"images": len(files), "usual": VALIDATION}))
    return ClassFolders(path, order, names, files, tuple(facts), imagenet)


def dataset_of(folders: ClassFolders, loaded: LoadedModel, limit: int | None, seed: int) -> PictureFiles:
    """The images that take part, ready for this network."""
    if loaded.preprocessing is None:
        raise DataError(
            f"{loaded.name} does not describe its preprocessing; return (module, transform) from its factory"
        )
    return PictureFiles(folders.draw(limit, seed), loaded.preprocessing)


def _images(folder: str) -> list[str]:
    """Every image of a class folder and of the folders in it."""
    return image_files(folder, refuse_unreadable)
