"""The network of each checkpoint, and what the options of ``rankscope watch`` measure it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from rankscope._base.checks import count_of, device_of
from rankscope._base.facts import Fact
from rankscope._base.identity import Identity, identity_of
from rankscope._base.identity_process import process_state
from rankscope.cli.chosen_model import ChosenModel
from rankscope.cli.data import check_data
from rankscope.cli.network import Network
from rankscope.cli.readable import readable_calls
from rankscope.cli.source import Source
from rankscope.cli.texts import check_texts
from rankscope.features.feature_rank import measured_features
from rankscope.features.sources import Skipped, as_dataset
from rankscope.jacobian import jacobian_rank
from rankscope.loading import LoadedModel
from rankscope.loading.images import check_images
from rankscope.monitor.watch_measures import Measured, of_features, of_jacobian
from rankscope.monitor.watched import WatchedValue

__all__ = ["WatchedNetwork"]


@dataclass
class WatchedNetwork:
    """What the options name. The data are read once the first checkpoint fits: its model says how they are prepared.

    ``asked`` holds the settings of the measurement; features are measured where there are data or texts, Jacobian ranks
    where there are images.
    """

    model: ChosenModel
    data: str | None
    texts: tuple[str, ...]
    images: str | None
    limit: int | None
    device: str
    asked: dict[str, Any]
    skipped: list[Skipped] = field(default_factory=list)
    facts: tuple[Fact, ...] = ()
    _dataset: Any = None
    _inputs: Any = None
    _names: Sequence[str] | None = None
    _first: LoadedModel | None = None
    _asked: bool = False

    def __post_init__(self) -> None:
        check_texts(self.texts, self.model.name, data=self.data)
        if self.data is not None:
            check_data(self.data, labels=None, limit=self.limit)
        if self.images is not None:
            check_images(self.images)
        if self.limit is not None:
            count_of(self.limit, "limit")

    @property
    def of_features(self) -> bool:
        """Whether there are data or texts."""
        return self.data is not None or bool(self.texts)

    def load(self, path: Path) -> tuple[nn.Module, Sequence[Fact]]:
        """The network with the weights of a checkpoint."""
        loaded = replace(self.model, weights=path).load()
        if not self._asked:
            self._first = self._first or loaded
        return loaded.model.to(device_of(self.device)), loaded.facts

    def about(self) -> Identity:
        """All that the numbers depend on beside the network. The data are read here, as the first network takes them.

        Its checkpoint is not read again, since the run may have removed it by now.
        """
        first, self._first, self._asked = self._first, None, True  # its memory is the next network's
        assert first is not None
        if self.of_features:
            batch = self.asked["batch_size"]
            source = Source(self.model, self.data, None, self.limit, self.device, batch, self.texts)
            loaded, read, facts = source.load(labelled=False, loaded=first)
            self._dataset = as_dataset(loaded.model, read.dataset)
            self.facts += tuple(fact for fact in facts if fact not in loaded.facts)
        if self.images is not None:
            network = Network(self.model, self.images, self.limit)
            loaded, self._inputs, images, facts = network.load(loaded=first)
            self._names = None if images is None else images.names
            self.facts += tuple(fact for fact in facts if fact not in loaded.facts)
        return identity_of(self._dataset, self._inputs, self.asked, process_state(), files=True)

    def measure(self, model: nn.Module) -> Measured:
        """The numbers of one network."""
        values, facts, asked = list[WatchedValue](), list[Fact](), self.asked
        common = {"cut_points": asked["cut_points"], "memory_budget": asked["memory_budget"]}
        if self.of_features:
            dataset, options = self._dataset
            self.skipped = []
            profile = measured_features(
                model,
                readable_calls(model, dataset, options, batch_size=asked["batch_size"], skipped=self.skipped),
                reduce=asked["reduce"],
                channels=asked["channels"],
                samples=lambda: len(dataset),
                **common,
            )
            values += of_features(profile, asked["metrics"])
            facts += profile.facts
        if self.images is not None:
            names = self._names
            ranks = jacobian_rank(
                model,
                self._inputs,
                columns=asked["columns"],
                tolerance=asked["tolerance"],
                names=None if names is None else lambda i: names[i],
                progress=False,
                **common,
            )
            values += of_jacobian(ranks)
            facts += ranks.facts
        return Measured(tuple(values), tuple(facts))
