"""``--data`` of a folder that ``save_to_disk`` of Hugging Face's datasets wrote: pictures and their classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from rankscope._base.errors import DataError, first_line, nearest
from rankscope._base.labels import NO_LABEL
from rankscope.cli.class_data import are_indices
from rankscope.loading import class_order, imagenet_classes, split_folder
from rankscope.loading.class_places import misplaced, places_by_name
from rankscope.views.phrases import joined

__all__ = ["SavedLabels", "SavedPictures", "is_saved_dataset", "read_saved_dataset", "saved_labels"]

_WHOLE, _SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"
_INTEGERS = ("label", "labels", "y", "target", "targets")


class SavedPictures(Dataset[tuple[Any, int]]):
    """Pictures of one column, each with its label; ``transform`` makes a tensor of a picture of whatever mode.

    ``files`` are those that hold the data, so that what they hold is what identifies it.
    """

    def __init__(self, folder: Path, column: str, label: str | None, transform: Callable[[Any], Any]) -> None:
        self.folder, self.column, self.label, self.transform = str(folder), column, label, transform
        self.files = tuple(str(file) for file in sorted(folder.iterdir()) if file.is_file())
        self.rows: Sequence[int] = range(len(_opened(self.folder)))
        self.places: tuple[int, ...] | None = None  # the model's class of each label, where they differ

    def __len__(self) -> int:
        return len(self.rows)

    def labels(self) -> list[int]:
        """As the data have them, of a data set with a column of them."""
        held = _opened(self.folder)[self.label][:]
        return [NO_LABEL if held[i] is None else int(held[i]) for i in self.rows]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        place = self.rows[index]
        try:
            row = _opened(self.folder)[place]
            picture = row[self.column]
            if picture is not None:
                picture.load()
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise DataError(f"cannot be read: {first_line(error)}") from error
        if picture is None:
            raise DataError("is no picture: the row holds none")
        if self.label is None:
            return self.transform(picture), NO_LABEL
        found = NO_LABEL if row[self.label] is None else int(row[self.label])
        return self.transform(picture), found if self.places is None or found == NO_LABEL else self.places[found]


class SavedLabels(NamedTuple):
    """The class of the model for each label of the data (``None``: the same number), and the data's class names."""

    places: tuple[int, ...] | None
    names: tuple[str, ...] | None


def is_saved_dataset(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder: one data set, or its splits."""
    return (path / _SPLITS).is_file() or all((path / name).is_file() for name in _WHOLE)


def read_saved_dataset(
    path: Path, transform: Callable[[Any], Any], *, labelled: bool, labels: str | None = None
) -> SavedPictures:
    """The one column of pictures and, where ``labelled`` and there is one, that of classes; ``labels`` names it.

    Raises
    ------
    DataError
        For splits, no column of pictures or several, several of classes, and what cannot be read.
    """
    named = f"--data {str(path)!r}"
    _opened.cache_clear()  # the folder may hold another data set than when it was last read
    if (path / _SPLITS).is_file():
        try:
            splits = [str(name) for name in json.loads((path / _SPLITS).read_text(encoding="utf-8"))["splits"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{named} has a damaged {_SPLITS}: {first_line(error)}") from error
        one = split_folder(splits) or next(iter(splits), None)
        give = f"; give {str(path / one)!r}" if one else ""
        raise DataError(f"{named} holds splits ({joined(splits)}), not samples{give}")
    columns = _features(path, named)
    kinds = {name: type(kind).__name__ for name, kind in columns.items()}
    dtypes = {name: str(getattr(kind, "dtype", "")) for name, kind in columns.items()}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    # without ClassLabel a whole number is a class where its column is named as labels are
    classes = classes or [name for name in _INTEGERS if dtypes.get(name, "").startswith(("int", "uint"))]
    if labels is not None:
        classes = [_class_column(labels, kinds, dtypes, named)]
    if not pictures:
        texts = [name for name, dtype in dtypes.items() if dtype == "string"]
        how = (
            f"write its texts to a file, one per line (datasets.load_from_disk({str(path)!r})[{texts[0]!r}]), and give "
            "--text FILE"
            if texts
            else f"measure it in Python: rankscope.jacobian_rank(model, datasets.load_from_disk({str(path)!r}))"
        )
        raise DataError(f"{named} is a saved data set without pictures (its columns: {joined(kinds)}); {how}")

    def alone(kept: Sequence[str]) -> str:
        return f"datasets.load_from_disk({str(path)!r}).select_columns({kept}).save_to_disk(FOLDER)"

    if len(pictures) > 1:
        kept = [pictures[0], *classes[:1]]
        raise DataError(
            f"{named} has {len(pictures)} columns of pictures ({joined(pictures)}); save one of them alone: "
            f"{alone(kept)}"
        )
    if labelled and len(classes) > 1:
        raise DataError(
            f"{named} has {len(classes)} columns of classes ({joined(classes)}); give --labels {classes[0]}, or another"
        )
    others = [name for name, dtype in dtypes.items() if dtype.startswith(("int", "uint", "string"))]
    if labelled and not classes and others:
        whole = next((name for name in others if dtypes[name] != "string"), None)
        give = f"--labels {whole}" if whole else "one the type datasets.ClassLabel (class_encode_column)"
        raise DataError(
            f"{named} has no column that is certain to hold classes (its columns: {joined(kinds)}); give {give} if it "
            f"holds them, or save the pictures alone if there are none: {alone(pictures)}"
        )
    return SavedPictures(path, pictures[0], classes[0] if labelled and classes else None, transform)


def _class_column(labels: str, kinds: Mapping[str, str], dtypes: Mapping[str, str], named: str) -> str:
    """The column that ``--labels`` names."""
    if labels not in kinds:
        raise DataError(f"{named} has no column {labels!r} for --labels; {nearest(labels, kinds)}")
    if kinds[labels] != "ClassLabel" and not dtypes[labels].startswith(("int", "uint")):
        raise DataError(
            f"--labels {labels} is a column of {dtypes[labels] or kinds[labels]}; give one of datasets.ClassLabel or "
            "of integers (class_encode_column makes one)"
        )
    return labels


def saved_labels(
    path: Path, found: SavedPictures, own: Sequence[str] | None, model: str, classes: int | None
) -> SavedLabels:
    """Classes by the model's own names where it has all of them, by ImageNet's, else by their numbers.

    Raises
    ------
    DataError
        Where the model has some of the names, and their numbers are other classes of it; where the names are numbers
        themselves, and not those of the labels.
    """
    names = getattr(_features(path, str(path))[str(found.label)], "names", None)
    if names is None:
        return SavedLabels(None, None)
    places = {} if own is None else places_by_name(names, own)
    if own is not None and places.keys() == set(names):
        return SavedLabels(_unless_same([places[name] for name in names]), tuple(own))
    order = class_order(names)
    if order.rule == "imagenet":
        synsets, words = imagenet_classes()
        if classes == len(synsets):  # image folders of some of them are numbered from 0
            at = {name: k for k, name in enumerate(synsets)}
            return SavedLabels(
                _unless_same([at[name] for name in names]), tuple(own or (words[name] for name in synsets))
            )
    if order.rule == "numbers" and classes is not None and are_indices(names, classes):
        other = next(((i, name) for i, name in enumerate(names) if int(name) != i), None)
        if other is not None:  # image folders that were read in the order of the alphabet
            raise DataError(
                f"class {other[1]!r} of --data {str(path)!r} has the label {other[0]}, and its class of {model} could "
                f"be either; if the labels are right, cast_column({str(found.label)!r}, datasets.Value('int64')), and "
                "if the names are, save with labels of the same numbers"
            )
    moved = misplaced({name: i for i, name in enumerate(names)}, places)
    if moved is not None:
        unknown = next(name for name in names if name not in places)
        raise DataError(
            f"class {unknown!r} of --data {str(path)!r} is no class of {model}, and by its number {moved!r} would be "
            f"class {list(names).index(moved)} in place of {places[moved]}; name all classes as the model does"
        )
    return SavedLabels(None, tuple(names))


def _unless_same(places: Sequence[int]) -> tuple[int, ...] | None:
    return None if list(places) == list(range(len(places))) else tuple(places)


def _features(path: Path, named: str) -> dict[str, Any]:
    try:
        return dict(_opened(str(path)).features)
    except DataError:
        raise
    except Exception as error:  # pyarrow's errors are of many types
        raise DataError(f"{named} cannot be read as a saved data set: {first_line(error)}") from error


@lru_cache(maxsize=4)
def _opened(folder: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{folder!r} is a saved data set, which needs the datasets package; pip install 'rankscope[datasets]'"
        ) from error
    return datasets.load_from_disk(folder)
