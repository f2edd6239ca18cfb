"""Measured profiles, each in a folder of its own, which a later run finds again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import rankscope as rs
from beside.networks import Network

__all__ = ["OutOfTimeError", "Profiles", "Question", "key_of", "measure_all"]


class OutOfTimeError(Exception):
    """The seconds of this run are over in the middle of a measurement."""


@dataclass(frozen=True)
class Question:
    """What is measured of each network."""

    images: int = 3
    patch: int = 16
    sketch: int = 768
    method: str = "auto"
    bracket: float | None = None
    budget: str = "8GB"

    @property
    def full(self) -> str | rs.Lanczos:
        """How the full Jacobian is measured; a bracket of one's own is one of sixteen probes."""
        return self.method if self.bracket is None else rs.Lanczos(probes=16, bracket=self.bracket)

    @property
    def columns(self) -> dict[str, Any]:
        """The partial Jacobians."""
        return {"patch": rs.Patch(self.patch), "sketch": rs.Sketch(self.sketch)}


@dataclass
class Profiles:
    """The folder of profiles. No measurement begins that is not expected to end before ``deadline``."""

    folder: Path
    deadline: float
    device: str
    _taken: dict[str, float] = field(default_factory=dict)

    def find(self, name: str, key: str) -> rs.JacobianProfile | None:
        """The profile of that name, where it is one of the same weights and the same question."""
        try:
            found = rs.JacobianProfile.load(self.folder / name)
        except rs.RankscopeError:
            return None
        return found if found.provenance.get("key") == key else None

    def time_for(self, kind: str) -> bool:
        """Whether a measurement of this kind is expected to end in time: the last one of it says how long it takes."""
        return time.monotonic() + self._taken.get(kind, 0.0) < self.deadline

    def measure(self, name: str, kind: str, network: Network, x: torch.Tensor, key: str, **options: Any) -> None:
        """Measure and keep a profile, where the time suffices."""
        if not self.time_for(kind):
            return
        started = time.monotonic()
        try:
            found = rs.jacobian_rank(
                network.model.to(self.device), x, cut_points="blocks", tolerance="paper", device=self.device,
                progress=self._watch(name),
                provenance={"model": name, "weights": network.weights, "key": key, "record": network.record},
                **options,
            )  # fmt: skip
        except OutOfTimeError:
            return
        shutil.rmtree(self.folder / name, ignore_errors=True)
        found.save(self.folder / name)
        self._taken[kind] = time.monotonic() - started
        print(f"{name}: {self._taken[kind]:.1f} s", flush=True)

    def _watch(self, name: str) -> Callable[[int, int | None, str], None]:
        def watch(done: int, total: int | None, text: str) -> None:
            if time.monotonic() > self.deadline:
                raise OutOfTimeError(name)

        return watch


def measure_all(profiles: Profiles, network: Network, images: torch.Tensor, question: Question) -> None:
    """Both partial Jacobians of all images together, and the full one of each image, where the time suffices."""
    for what, columns in question.columns.items():
        name, key = f"{network.name}-{network.weights}-{what}", _key(network, question, str(columns))
        if profiles.find(name, key) is None:
            options = {"columns": columns, "memory_budget": question.budget}
            profiles.measure(name, what, network, images, key, **options)
    for number in range(question.images):
        name = f"{network.name}-{network.weights}-full-{number}"
        key = _key(network, question, f"full {number}, {question.full}")
        if profiles.find(name, key) is None:
            options = {"columns": "all", "method": question.full, "memory_budget": question.budget}
            options["names"] = lambda i, number=number: f"image {number + i}"
            kind = f"full {network.name}"
            profiles.measure(name, kind, network, images[number : number + 1], key, **options)


def key_of(checksum: str, question: Question, what: str, data: dict[str, Any]) -> str:
    """What a profile is found by: the checksum of the weights comes first."""
    return f"{checksum}; {question.images} images; {what}; {data}"


def _key(network: Network, question: Question, what: str) -> str:
    return key_of(network.key, question, what, network.record["data"])
