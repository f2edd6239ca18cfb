"""``--data`` of the commands that stream a data set: a folder of classes, digits, or arrays of the user's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import TensorDataset

from rankscope._base.checks import count_of
from rankscope._base.errors import DataError, UsageError, first_line
from rankscope._base.facts import Fact
from rankscope._base.labels import NO_LABEL, class_indices
from rankscope.cli.array_files import check_arrays, read_arrays, read_labels
from rankscope.cli.class_data import check_labels, folder_labels, head_classes, own_names, read_folder
from rankscope.cli.saved_dataset import is_saved_dataset, read_saved_dataset, saved_labels
from rankscope.loading import IMAGE_SUFFIXES, calibrate_batchnorm, load_images
from rankscope.loading.class_places import places_by_name
from rankscope.loading.digits import DIGITS
from rankscope.loading.picture_files import PictureFiles

if TYPE_CHECKING:
    from rankscope.cli.saved_dataset import SavedPictures
    from rankscope.loading import Images, LoadedModel
    from rankscope.loading.preprocessing import Preprocessing

__all__ = ["Data", "calibrated", "check_data", "drawn", "load_data", "read_inputs"]

_CALIBRATION = 32  # images for the BatchNorm statistics of random weights
_INPUTS, _LABELS = ("inputs", "images", "x", "data"), ("labels", "label", "y", "targets")


@dataclass(frozen=True, eq=False)
class Data:
    """A map-style data set of (input, label; -1 for none), a name for each class of the head where known, and facts."""

    dataset: Any
    class_names: tuple[str, ...] | None = None
    facts: tuple[Fact, ...] = ()


def check_data(source: str, *, labels: Path | None, limit: int | None) -> None:
    """Refuse what can be seen without the model: no such data, labels beside data that have their own, a limit.

    Raises
    ------
    UsageError
        Labels or a limit that cannot be meant.
    DataError
        Data, or a file of labels, that do not exist.
    """
    if limit is not None:
        count_of(limit, "limit")
    # of a text that is too long for a path the system knows no file
    if source not in DIGITS and not os.path.exists(source):
        raise DataError(
            f"there is no --data {source!r}; give digits, a folder with one subfolder per class, or a .npy file"
        )
    if labels is not None and not is_saved_dataset(Path(source)):  # there it is the name of a column
        if source in DIGITS or os.path.isdir(source):
            raise UsageError(
                f"--labels {str(labels)!r} belong to a file of arrays, and --data {source!r} has labels of its own; "
                "leave --labels out"
            )
        check_arrays(labels, "--labels")


def load_data(
    source: str, loaded: LoadedModel, *, labels: Path | None, limit: int | None, seed: int, labelled: bool = True
) -> Data:
    """The data that ``source`` names, with labels as the model's head counts them.

    ``source``: ``digits``; a folder with one subfolder per class, or any folder of images if ``labelled`` is false; a
    ``.npy`` file, with its labels in another one; a folder that ``save_to_disk`` wrote, where ``labels`` is the name of
    the column that holds them; a ``.npz`` or ``.safetensors`` file with arrays ``inputs`` and
    ``labels``. ``limit`` draws that many samples from ``seed`` and keeps their order. Data without labels have -1 in
    their place; where ``labelled`` is false all have.

    Raises
    ------
    DataError
        What does not exist, cannot be read, or does not fit together or the model.
    """
    classes = head_classes(loaded.model) if labelled else None
    if source in DIGITS:
        images = load_images(source, preprocessing=loaded.preprocessing, limit=limit, seed=seed)
        return _digits(images, loaded, classes)
    path = Path(source)
    if os.path.isdir(source):
        transform = _preprocessing(loaded)
        if not is_saved_dataset(path):
            return _folder(path, loaded, transform, limit, seed, classes, labelled)
        column = None if labels is None else str(labels)
        found = read_saved_dataset(path, transform, labelled=labelled, labels=column)
        found.rows = drawn(len(found), limit, seed).tolist()
        return _saved(path, found, loaded, classes)
    inputs, targets = _arrays(path, labels, labelled)
    if len(inputs) != len(targets):
        raise DataError(f"{len(targets)} labels for {len(inputs)} inputs; give one label per input")
    facts = () if (targets == NO_LABEL).all() else check_labels(targets, loaded, classes)
    _check_shape(path, inputs, loaded)
    chosen = drawn(len(inputs), limit, seed)
    return Data(TensorDataset(inputs[chosen], targets[chosen]), loaded.class_names, facts)


def _digits(images: Images, loaded: LoadedModel, classes: int | None) -> Data:
    """Digits as the model's own names count them where it has all ten, else as the classes 0 to 9."""
    facts = check_labels(torch.arange(10), loaded, classes)
    labels, digits = torch.tensor(images.labels), images.class_names or ()
    own = own_names(loaded, classes) or ()
    places = places_by_name(digits, own)
    if len(places) < len(digits):
        names = tuple(map(str, range(classes or 10)))
        return Data(TensorDataset(images.tensor, labels), names, facts)
    at = torch.tensor([places[name] for name in digits])
    return Data(TensorDataset(images.tensor, at[labels]), own, facts)


def calibrated(loaded: LoadedModel, dataset: Any) -> tuple[Fact, ...]:
    """BatchNorm statistics for random weights, of the first samples: a fact on them, if any were needed."""
    if not loaded.random:
        return ()
    from rankscope.features.sources import batches

    for batch in batches(loaded.model, dataset, 0, batch_size=_CALIBRATION, num_workers=0, options={}):
        if batch.call is not None and len(batch.indices) > 1:
            done = calibrate_batchnorm(loaded.model, [batch.call.x])
            return () if done is None else (done,)
    return ()


def drawn(count: int, limit: int | None, seed: int) -> torch.Tensor:
    """The numbers of the samples that ``--limit`` leaves, in order."""
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _preprocessing(loaded: LoadedModel) -> Preprocessing:
    if loaded.preprocessing is None:
        raise DataError(
            "the model's input size is not known; let its factory return (module, transform) or give the model an "
            "attribute input_size = (C, H, W)"
        )
    return loaded.preprocessing


def _folder(
    path: Path,
    loaded: LoadedModel,
    transform: Preprocessing,
    limit: int | None,
    seed: int,
    classes: int | None,
    labelled: bool,
) -> Data:
    found = read_folder(path)
    if not found.files:
        raise DataError(f"--data {str(path)!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give another")
    if not labelled or not found.classes:
        files = [found.files[int(i)] for i in drawn(len(found.files), limit, seed)]
        return Data(PictureFiles([(file, NO_LABEL) for file in files], transform))
    index, names, facts = folder_labels(path, found, loaded, classes)
    samples = [(file, index[folder]) for file, folder in found.labelled]
    chosen = [samples[int(i)] for i in drawn(len(samples), limit, seed)]
    return Data(PictureFiles(chosen, transform), names, facts)


def _saved(path: Path, found: SavedPictures, loaded: LoadedModel, classes: int | None) -> Data:
    if found.label is None:
        return Data(found)
    own = own_names(loaded, classes)
    held = torch.tensor(found.labels())
    if bool((held == NO_LABEL).all()):  # as the test splits of competitions come
        return Data(found)
    named = saved_labels(path, found, own, loaded.name, classes)
    if named.places is not None and len(held) and int(held.min()) >= 0 and int(held.max()) < len(named.places):
        found.places = named.places
        held = torch.tensor(named.places)[held]
    facts = check_labels(held, loaded, classes)
    names = named.names
    if names is not None and classes is not None:  # one name for each class of the head
        names = (*names, *map(str, range(len(names), classes)))[:classes]
    return Data(found, names if names is not None else loaded.class_names, facts)


def read_inputs(path: Path) -> torch.Tensor:
    """The samples in a file of arrays, along the first dimension and in their own precision."""
    return _inputs(path, read_arrays(path, "--data"))


def _arrays(path: Path, labels: Path | None, labelled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    found = read_arrays(path, "--data")
    inputs = _inputs(path, found).float()
    if labels is not None:
        return inputs, read_labels(labels)
    label = next((k for k in _LABELS if k in found), None)
    if label is not None and labelled:
        return inputs, class_indices(found[label], name=f"the labels in {path.name} ({label})")
    other = next((k for k, v in found.items() if v.shape == (len(inputs),) and not v.is_floating_point()), None)
    if labelled and other is not None:
        raise DataError(
            f"{path.name} holds one integer per sample under the name {other!r}; name it labels, or leave it out if "
            "these are no labels"
        )
    return inputs, torch.full((len(inputs),), NO_LABEL)


def _inputs(path: Path, found: dict[str, torch.Tensor]) -> torch.Tensor:
    key = "" if "" in found else next((k for k in _INPUTS if k in found), None)
    if key is None:
        raise DataError(f"{path.name} holds {', '.join(found) or 'nothing'}; name its arrays inputs and labels")
    return _real(found[key], path)


def _check_shape(path: Path, inputs: torch.Tensor, loaded: LoadedModel) -> None:
    """One sample through the model, so that a shape it does not take is told with the file's name."""
    from rankscope.features.hooks import inference

    if not len(inputs):
        raise DataError(f"{path.name} has shape {tuple(inputs.shape)}, so no sample")
    try:
        with inference(loaded.model) as device:
            loaded.model(inputs[:1].to(device))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        known = loaded.input_size is not None and tuple(inputs.shape[1:]) != loaded.input_size
        takes = f", which takes {loaded.input_size} a sample" if known else f": {first_line(error)}"
        raise DataError(
            f"{path.name} has shape {tuple(inputs.shape)}; a sample of {tuple(inputs.shape[1:])} does not fit "
            f"{loaded.name}{takes}"
        ) from error


def _real(values: torch.Tensor, path: Path) -> torch.Tensor:
    if values.ndim < 2:
        raise DataError(f"{path.name} has shape {tuple(values.shape)}; its first dimension counts samples")
    if not values.is_floating_point():
        raise DataError(f"{path.name} holds {values.dtype}; save inputs as the model takes them, in float32")
    return values
