"""What several experiments share of one network: its identity, one pass over the validation folder, its layers."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rankscope._base.dtypes import dtype_name
from rankscope._base.facts import Fact, FactKind, about
from rankscope.features import ClassificationDimension, Collection, classification_dimension, collect
from rankscope.features.fingerprint import data_fingerprint, model_fingerprint
from rankscope.loading import LoadedModel
from rankscope.loading.picture_files import PictureFiles
from rankscope.reproduce.converted import converted_fact, converted_images
from rankscope.reproduce.data import ClassFolders, dataset_of, read_class_folders
from rankscope.reproduce.networks import Network, choose, load
from rankscope.reproduce.parts import Parts
from rankscope.reproduce.settings import Settings

__all__ = [
    "BOOTSTRAP",
    "Prepared",
    "chance_fact",
    "clsdim",
    "collection",
    "data_facts",
    "pass_over",
    "prepared",
    "skipped_fact",
]

BOOTSTRAP = {"full": 200, "small": 20}  # resamples behind an interval
_BATCH = 64


@dataclass(frozen=True)
class Prepared:
    """A loaded network on its device and the folder it is measured on."""

    network: Network
    loaded: LoadedModel
    folders: ClassFolders
    settings: Settings

    @property
    def parts(self) -> Parts:
        return Parts(self.settings.parts / self.network.slug)

    def identity(self) -> dict[str, Any]:
        """What every part of this network depends on."""
        return {
            "model": self.loaded.name,
            "weights": self.fingerprint,
            "preprocessing": self.loaded.preprocessing.description if self.loaded.preprocessing else None,
            "device": self.settings.device.type,
            "seed": self.settings.seed,
            "scale": self.settings.scale,
        }

    def dataset(self) -> PictureFiles:
        """The images that take part in passes over the folder."""
        return dataset_of(self.folders, self.loaded, self.settings.limit, self.settings.seed)

    def facts(self) -> list[Fact]:
        """What to know of the folder and of this network."""
        return [*self.folders.facts, *about(self.network.name, self.loaded.facts)]

    @cached_property
    def fingerprint(self) -> str:
        """Class and digest of all weights."""
        return model_fingerprint(self.loaded.model)

    @cached_property
    def pass_identity(self) -> dict[str, Any]:
        """What the pass over the folder depends on, and with it all that is computed from the pass."""
        return {**self.identity(), "limit": self.settings.limit, "data": data_fingerprint(self.dataset())}

    @property
    def channels(self) -> int:
        """Of the pictures that the network takes."""
        size = self.loaded.preprocessing.input_size if self.loaded.preprocessing else None
        return 3 if size is None else size[0]

    def why(self, text: str, *, data: Literal["alone", "also", "not"], code: bool = False) -> str:
        """Why ours may differ from the paper's: ``text``, unless the network or the data are not the paper's.

        ``data`` says whether other data than ImageNet's is the reason alone, also one, or none. With ``code`` the
        weights and the preprocessing of the authors' code are named where they are not ours.
        """
        if code and self.network.paper is not None and self.network.paper.code:
            own = self.loaded.preprocessing.description if self.loaded.preprocessing else "unknown"
            departs = " and ".join(self.network.paper.code)
            text = f"{text}; the code {departs}, and we use {self.loaded.weights} and {own}"
        if self.network.paper is None:
            given = "added by the user, so the paper has no number for it"
            return given if self.folders.imagenet or data == "not" else f"{given}; {self.folders.other_data}"
        if self.folders.imagenet or data == "not":
            return text
        return self.folders.other_data if data == "alone" else f"{self.folders.other_data}; {text}"

    def about(self) -> dict[str, Any]:
        """For the record: ``weights_sha256`` is that of the file, as ``sha256sum`` prints it."""
        file, size = self.network.file, self.loaded.input_size
        return {
            "name": self.network.name,
            "model": self.loaded.name,
            "weights": self.loaded.weights,
            "weights_file": None if file is None else str(file),
            "weights_sha256": None if file is None else _sha256(file),
            "weights_fingerprint": self.fingerprint,
            "dtype": dtype_name(next(self.loaded.model.parameters()).dtype),
            "input_size": None if size is None else list(size),
            "preprocessing": self.loaded.preprocessing.description if self.loaded.preprocessing else None,
            "cut_points": self.network.cut_points,
        }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def prepared(settings: Settings, names: Any = None) -> Iterator[Prepared]:
    """Every network that takes part, loaded when its turn comes."""
    folders = read_class_folders(settings.imagenet)
    networks = choose(settings, names)
    for number, network in enumerate(networks):
        settings.report(number, len(networks), network.name)
        settings.place.network = network.name
        loaded = load(network, len(folders), folders.root, networks)
        loaded.model.to(settings.device)
        yield Prepared(network, loaded, folders.counted_by(loaded.class_names, network.name), settings)
        settings.place.network = None


def pass_over(one: Prepared) -> dict[str, Any]:
    """Top-1 accuracy and what was skipped, from one pass over the folder that keeps features and logits."""
    data, given = one.dataset(), one.pass_identity

    def compute(folder: Path) -> dict[str, Any]:
        # the network's name in the text of progress would be lost among thousands of batches otherwise
        def progress(done: int, total: int | None, _: str) -> None:
            one.settings.report(done, total, one.network.name)

        found = collect(
            one.loaded.model,
            data,
            cut_points=[],
            out=folder,
            batch_size=_BATCH,
            num_workers=one.settings.num_workers,
            progress=progress,
            processes="this",
        )
        root, skipped = one.folders.root, {s.name: s.reason for s in found.skipped}
        right = int((found.logits.argmax(1) == found.labels).sum())
        return {
            "samples": len(found),
            "right": right,
            "accuracy": right / len(found),
            "width": int(found.features.shape[1]),
            "classes": int(found.logits.shape[1]),
            "skipped": [[os.path.relpath(name, root), reason] for name, reason in skipped.items()],
            "converted": converted_images(root, (f for f, _ in data.samples if f not in skipped), one.channels),
        }

    result: dict[str, Any] = one.parts.keep("collection", given, compute)
    return result


def collection(one: Prepared) -> Collection:
    """Features, logits and labels of that pass."""
    pass_over(one)
    return Collection.load(one.parts.root / "collection")


def clsdim(one: Prepared) -> dict[str, Any]:
    """Classification dimension with uncentred and with centred projections, and both curves.

    ``reference`` is that of the uncentred one, searched from k = 0 on as in the authors' code.
    """
    over = pass_over(one)
    full = one.settings.full

    def compute(_: Path) -> dict[str, Any]:
        found = collection(one)

        def searched(projection: Literal["uncentred", "centred"], least: int) -> ClassificationDimension:
            return classification_dimension(
                found.features,
                found.labels,
                found.head,
                projection=projection,
                bootstrap=BOOTSTRAP[one.settings.scale],
                seed=one.settings.seed,
                least=least,
                allow_absent=len(found) <= found.features.shape[1] or not full,
                device=one.settings.device,
                progress=False,
            )

        code = searched("uncentred", 0)
        # where no component is not enough, in no resample either, both searches end alike
        alike = code.dimension > 0 and (code.interval is None or code.interval[0] > 0)
        text = code if alike else searched("uncentred", 1)
        results = {"paper": text, "reference": code, "centred": searched("centred", 1)}
        return {
            name: {
                "dimension": result.dimension,
                "interval": None if result.interval is None else list(result.interval),
                "ambient": result.ambient,
                "full_accuracy": result.full_accuracy,
                "curve": result.curve.tolist(),
                "facts": [fact.to_dict() for fact in result.facts],
            }
            for name, result in results.items()
        }

    given = {**one.pass_identity, "samples": over["samples"], "from": [1, 0]}
    made: dict[str, Any] = one.parts.keep("clsdim", given, compute)
    return made


def data_facts(one: Prepared, over: dict[str, Any]) -> list[Fact]:
    """What to know of the folder, of this network and of this pass: left out, converted, no better than chance."""
    return [
        *one.facts(),
        *about(one.network.name, skipped_fact(over["skipped"])),
        *converted_fact(over.get("converted", []), one.channels),
        *about(one.network.name, chance_fact(over)),
    ]


def skipped_fact(skipped: list[list[str]]) -> tuple[Fact, ...]:
    """One fact with the images that could not be read, and why; none where all could."""
    return (Fact(FactKind.IMAGES_UNREADABLE, {"files": skipped}, caution=True),) * bool(skipped)


def chance_fact(over: dict[str, Any]) -> tuple[Fact, ...]:
    """A caution where the accuracy may be that of guessing, which is what a wrong order of classes looks like.

    Guessing among c classes is right on a share 1/c of n images, with a standard error of √((1/c)(1 − 1/c)/n); what
    lies more than four of these above it is no guess.

    >>> chance_fact({"accuracy": 0.9, "samples": 100, "classes": 2})
    ()
    >>> chance_fact({"accuracy": 1.0, "samples": 10, "classes": 2})[0].kind.name
    'TOO_FEW_TO_JUDGE'
    """
    classes, samples, accuracy = over["classes"], over["samples"], over["accuracy"]
    chance = 1 / classes
    above = chance + 4 * math.sqrt(chance * (1 - chance) / samples)
    if accuracy > above or classes == 1:
        return ()
    seen = {"accuracy": accuracy, "images": samples, "classes": classes}
    if accuracy > chance and above >= 1:
        return (Fact(FactKind.TOO_FEW_TO_JUDGE, seen, caution=True),)
    return (Fact(FactKind.LIKE_GUESSING, {**seen, "above": above}, caution=True),)
