"""The options that name a model: the same five for every command that loads one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rankscope._base.checks import seed_of
from rankscope.loading import LoadedModel, load_model

__all__ = ["ChosenModel"]


@dataclass(frozen=True)
class ChosenModel:
    """What they say; nothing is loaded yet.

    Raises
    ------
    UsageError
        For a seed that is none.
    """

    name: str
    weights: str | Path
    weights_key: str | None
    seed: int
    num_classes: int | None

    def __post_init__(self) -> None:
        seed_of(self.seed)

    def load(self) -> LoadedModel:
        """The model on the CPU, in evaluation mode."""
        return load_model(
            self.name,
            weights=self.weights,
            weights_key=self.weights_key,
            seed=self.seed,
            num_classes=self.num_classes,
        )
