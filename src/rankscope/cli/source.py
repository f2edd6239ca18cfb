"""The model of a command and the data set that it streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankscope._base.checks import count_of, device_of
from rankscope._base.errors import UsageError
from rankscope._base.facts import Fact
from rankscope._base.progress import Reporter, progress_for
from rankscope.cli.chosen_model import ChosenModel
from rankscope.cli.data import Data, calibrated, check_data, load_data
from rankscope.cli.texts import check_kind, check_texts, model_texts
from rankscope.loading import LoadedModel
from rankscope.loading.digits import DIGITS

__all__ = ["Source", "progress"]


@dataclass(frozen=True)
class Source:
    """The model and the data of one command."""

    model: ChosenModel
    data: str | None
    labels: Path | None
    limit: int | None
    device: str
    batch_size: int
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_texts(self.texts, self.model.name, data=self.data, labels=self.labels)
        if self.data is None and not self.texts:
            raise UsageError("there are no data; give --data, or --text for a model of Hugging Face")
        count_of(self.batch_size, "batch_size")
        device_of(self.device)
        if self.data is not None:
            check_data(self.data, labels=self.labels, limit=self.limit)

    def load(
        self, *, labelled: bool = True, loaded: LoadedModel | None = None
    ) -> tuple[LoadedModel, Data, tuple[Fact, ...]]:
        """The loaded model on its device, the data, and facts on both; ``labelled`` as in ``load_data``.

        ``loaded`` is the model where the caller has it already.
        """
        where = device_of(self.device)
        if loaded is None:
            loaded = self.model.load()
        folder = self.data is not None and (self.data in DIGITS or Path(self.data).is_dir())
        if self.data is None or folder:  # an array file may hold token ids
            check_kind(loaded.model, self.model.name, texts=bool(self.texts), option="data")
        if self.data is None:
            data = Data(model_texts(loaded.model, self.model.name, self.texts, limit=self.limit))
        else:
            data = load_data(
                self.data, loaded, labels=self.labels, limit=self.limit, seed=self.model.seed, labelled=labelled
            )
        facts = (*loaded.facts, *data.facts, *calibrated(loaded, data.dataset))
        loaded.model.to(where)
        return loaded, data, facts


@contextlib.contextmanager
def progress(title: str) -> Iterator[Reporter]:
    """A bar where standard error is a terminal, else lines; closed at the end."""
    report = progress_for(True, title)
    report(0, None, "loading")
    try:
        yield report
    finally:
        report.close()
