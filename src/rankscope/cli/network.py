"""The model of a command and the images that it is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankscope._base.checks import count_of
from rankscope._base.errors import DataError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Reporter
from rankscope.cli.chosen_model import ChosenModel
from rankscope.cli.texts import check_kind, check_texts, model_texts
from rankscope.loading import Images, LoadedModel, calibrate_batchnorm, load_images
from rankscope.loading.images import check_images
from rankscope.slicing import example_sample

__all__ = ["Network"]

_CALIBRATION = 32  # images a batch; BatchNorm statistics want at least 8
_DIGITS = 32
_NOISE = 16


@dataclass(frozen=True)
class Network:
    """What the options name; nothing is loaded yet.

    Raises
    ------
    UsageError
        For a limit below one.
    """

    model: ChosenModel
    images: str | None
    limit: int | None
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.limit is not None:
            count_of(self.limit, "limit")
        check_texts(self.texts, self.model.name, images=self.images)
        if self.images is not None:
            check_images(self.images)

    def load(
        self, report: Reporter | None = None, *, loaded: LoadedModel | None = None
    ) -> tuple[LoadedModel, Any, Images | None, tuple[Fact, ...]]:
        """The model, what to measure it on, the images that this consists of (``None`` for other inputs), and facts.

        ``loaded`` is the model where the caller has it already.

        Random weights have seen the images, so that BatchNorm has statistics of them.
        """
        say = report if report is not None else Reporter()
        say(0, None, f"loading {self.model.name}")
        if loaded is None:
            loaded = self.model.load()
        if self.texts or self.images is not None:
            check_kind(loaded.model, self.model.name, texts=bool(self.texts), option="images")
        if self.texts:
            return loaded, model_texts(loaded.model, self.model.name, self.texts, limit=self.limit), None, loaded.facts
        say(0, None, "reading images")
        # a count here would be one of images that are measured
        reading = Reporter(lambda done, total, text: say(0, None, f"{text}: {done:,} of {total or 0:,}"))
        inputs, images, facts = self._inputs(loaded, reading)
        if loaded.random and images is not None:
            # on the CPU, where it repeats exactly: finished images are found again by the weights they belong to
            facts += _calibrate(loaded, images, self.model.seed)
        return loaded, inputs, images, (*loaded.facts, *facts)

    def _inputs(self, loaded: LoadedModel, reading: Reporter) -> tuple[Any, Images | None, list[Fact]]:
        """What to measure on, the images it consists of (``None`` for other inputs), and facts."""
        if loaded.preprocessing is None and self.images in (None, "noise"):
            sample = example_sample(loaded.model)
            found = Fact(FactKind.EXAMPLE_INPUT, {"shape": tuple(sample.x.shape[1:])})
            inputs = sample.x if sample.keyword is None else {sample.keyword: sample.x, **sample.extra}
            return inputs, None, [found]
        source, limit = self.images, self.limit
        if source is None:
            digits = loaded.input_size == (1, 8, 8)
            source = "digits" if digits else "photos"
        images = load_images(
            source, preprocessing=loaded.preprocessing, limit=limit, seed=self.model.seed, progress=reading
        )
        if self.images is None and source == "digits" and limit is None:
            images = images.first(_DIGITS)  # those of the guides: a draw would give other numbers
        about = Fact(FactKind.IMAGES, {"source": str(source), "preprocessing": str(images.preprocessing)})
        return images, images, [about]


def _calibrate(loaded: LoadedModel, images: Images, seed: int) -> list[Fact]:
    try:
        done = calibrate_batchnorm(loaded.model, images.batches(_CALIBRATION))
    except DataError:
        # too few images for the statistics of a layer that sees one value per channel
        noise = load_images("noise", preprocessing=loaded.preprocessing, limit=_NOISE, seed=seed)
        done = calibrate_batchnorm(loaded.model, noise.batches(_NOISE))
        done = None if done is None else Fact(done.kind, {**done.values, "source": "noise"})
    return [] if done is None else [done]
