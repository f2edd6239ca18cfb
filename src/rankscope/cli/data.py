"""``--data`` of the commands that stream a data set: a folder of classes, digits, or arrays of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import TensorDataset

from rankscope._base.errors import DataError, UsageError
from rankscope.cli.array_files import read_arrays, read_labels
from rankscope.loading import calibrate_batchnorm, load_images

if TYPE_CHECKING:
    from rankscope.loading import LoadedModel

__all__ = ["calibrated", "load_data"]

_CALIBRATION = 32  # images for the BatchNorm statistics of random weights
_INPUTS, _LABELS = ("inputs", "images", "x", "data"), ("labels", "label", "y", "targets")


def load_data(source: str, loaded: LoadedModel, *, labels: Path | None, limit: int | None, seed: int) -> Any:
    """A map-style data set of (input, label).

    ``source``: ``digits``; a folder with one subfolder a class; a ``.npy`` file, with its labels in another one (zeros
    without); a ``.npz`` or ``.safetensors`` file with arrays ``inputs`` and ``labels``. ``limit`` draws that many
    samples from ``seed`` and keeps their order.

    Raises
    ------
    DataError
        What does not exist, cannot be read, or does not fit together.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is {limit}; at least one sample is needed")
    if source == "digits":
        images = load_images("digits", preprocessing=loaded.preprocessing, limit=limit, seed=seed)
        return TensorDataset(images.tensor, torch.tensor(images.labels))
    path = Path(source)
    if path.is_dir():
        return _folder(path, loaded, limit, seed)
    if not path.exists():
        raise DataError(f"there is no {source!r}; give digits, a folder with one subfolder a class, or a .npy file")
    inputs, targets = _arrays(path, labels)
    if len(inputs) != len(targets):
        raise DataError(f"{len(targets)} labels for {len(inputs)} inputs; give one label an input")
    chosen = _drawn(len(inputs), limit, seed)
    return TensorDataset(inputs[chosen], targets[chosen])


def calibrated(loaded: LoadedModel, dataset: Any) -> tuple[str, ...]:
    """BatchNorm statistics for random weights, of the first samples: a note on them, if any were needed."""
    if not loaded.random:
        return ()
    from rankscope.features.sources import batches

    for batch in batches(dataset, 0, batch_size=_CALIBRATION, num_workers=0, options={}):
        if len(batch.indices) > 1:
            note = calibrate_batchnorm(loaded.model, [batch.inputs])
            return (note,) if note else ()
    return ()


def _drawn(count: int, limit: int | None, seed: int) -> torch.Tensor:
    if limit is None or limit >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _folder(path: Path, loaded: LoadedModel, limit: int | None, seed: int) -> Any:
    from torchvision.datasets import ImageFolder

    if loaded.preprocessing is None:
        raise DataError(
            "the model's input size is not known; let its factory return (module, transform) or give the model an "
            "attribute input_size = (C, H, W)"
        )
    try:
        dataset = ImageFolder(str(path), loaded.preprocessing)
    except (OSError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{str(path)!r} is no folder with one subfolder a class: {first}") from error
    names = loaded.class_names
    samples = [dataset.samples[int(i)] for i in _drawn(len(dataset.samples), limit, seed)]
    if names is not None and set(dataset.classes) <= set(names):
        # folders named as the model names its classes: its order counts, not that of the alphabet
        order = [names.index(one) for one in dataset.classes]
        samples = [(file, order[label]) for file, label in samples]
    dataset.samples = dataset.imgs = samples
    dataset.targets = [label for _, label in samples]
    return dataset


def _arrays(path: Path, labels: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    found = read_arrays(path)
    if "" in found:
        inputs = found[""]
        return _real(inputs, path), torch.zeros(len(inputs)).long() if labels is None else read_labels(labels)
    key = next((k for k in _INPUTS if k in found), None)
    label = next((k for k in _LABELS if k in found), None)
    if key is None or (label is None and labels is None):
        raise DataError(f"{path.name} holds {', '.join(found) or 'nothing'}; name its arrays inputs and labels")
    return _real(found[key], path), read_labels(labels) if labels is not None else found[str(label)].long()


def _real(values: torch.Tensor, path: Path) -> torch.Tensor:
    if values.ndim < 2:
        raise DataError(f"{path.name} has shape {tuple(values.shape)}; its first dimension counts samples")
    if not values.is_floating_point():
        raise DataError(f"{path.name} holds {values.dtype}; save inputs as the model takes them, in float32")
    return values.float()
