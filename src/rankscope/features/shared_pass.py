"""Whether samples can share a pass of a model: only where each gives there what it gives in any other company.

Two things forbid it. Values decide what the model computes, so that samples in one pass share a branch. Or the samples
of a pass change each other: statistics of the batch, a sequence module that takes them for steps, a convolution that
takes them for channels. Then each sample is called alone, which is what a sample is here.

Two samples far apart may be the only ones that change each other. So a whole batch is looked at, in passes that change
some of its samples and leave the others: for any two there is one that changes the one and leaves the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import RankscopeError
from rankscope._base.facts import Fact, FactKind
from rankscope.slicing.apart import worst_gap
from rankscope.slicing.batches import run_forward
from rankscope.slicing.one_sample import CallFailedError
from rankscope.slicing.sample import Sample
from rankscope.slicing.value_reads import reads_values

__all__ = ["SharedPass"]

_REPEATS = 10  # a pass with other neighbours differs by more than this many times what the same pass differs by


class SharedPass:
    """Decides it for each shape of samples, in its largest batch so far; ``facts`` say why some were called alone.

    ``outputs`` makes a pass and gives what is measured of it, first dimension samples (or rows of samples, in order).
    """

    def __init__(
        self, model: nn.Module, device: torch.device, outputs: Callable[[Sample], Mapping[str, Tensor]]
    ) -> None:
        self.model, self.device, self.outputs = model, device, outputs
        self.facts: list[Fact] = []
        self._alone: dict[Any, bool] = {}
        self._most: dict[Any, int] = {}  # samples that were looked at together
        self._looked = False

    def alone(self, first: Sample, several: Sample) -> bool:
        """Whether samples of this shape have to be called alone; ``several`` are those of a pass, ``first`` is one.

        Raises
        ------
        CallFailedError
            Where the model takes several samples and fails on one: they are none.
        """
        key = _shapes(first)
        open_ = not self._alone.get(key, False) and len(several.x) > self._most.get(key, 0)
        # a single sample shows nothing of its neighbours, and the next one of its shape may come with some
        if open_ and (len(several.x) > 1 or not self._looked):
            self._looked = True
            values = reads_values(first.x, lambda x: run_forward(self.model, replace(first, x=x), self.device))
            coupled = not values and len(several.x) > 1 and self._coupled(first, several)
            if coupled is None:  # the next batch of this shape decides; alone is right for this one in any case
                return True
            if values or len(several.x) > 1:
                self._alone[key], self._most[key] = values or coupled, len(several.x)
            fact = Fact(FactKind.CALLED_ALONE, {"coupled": coupled})
            if (values or coupled) and fact not in self.facts:
                self.facts.append(fact)
        return self._alone.get(key, False)

    def look_again(self) -> None:
        """Further layers are measured: decide anew."""
        self._alone = {key: alone for key, alone in self._alone.items() if alone}
        self._most.clear()

    def _coupled(self, first: Sample, several: Sample) -> bool | None:
        """Whether samples change each other; ``None`` where no other values could be put beside them."""
        self._refuse_parts(first)
        found = self._kept(several)
        shown = False
        for changed in _patterns(len(several.x)):
            x = _changed(several.x, changed)
            if torch.equal(x, several.x):
                continue
            try:
                beside = self._kept(replace(several, x=x))
            except RankscopeError:  # values that the model does not take show nothing
                continue
            shown = True
            gap = _gap(beside, found, ~changed)
            # a pass whose rows do not depend on each other gives the same bits, whatever the others are
            if not gap <= 0 and not gap <= _REPEATS * _gap(self._kept(several), found, ~changed):
                return True
        return False if shown else None

    def _refuse_parts(self, first: Sample) -> None:
        """What is called with several has to take one: rows of an image without its batch dimension it does not."""
        try:
            run_forward(self.model, first, self.device)
        except CallFailedError:
            raise
        except RankscopeError:  # a layer whose rows do not count a single sample: the batch decides
            return

    def _kept(self, samples: Sample) -> dict[str, Tensor]:
        count = len(samples.x)
        made = self.outputs(samples)
        return {
            name: rows.detach().reshape(count, -1)  # of each pass its own, as the hooks keep them
            for name, rows in made.items()
            if rows.is_floating_point() and rows.ndim and len(rows) and len(rows) % count == 0
        }


def _patterns(count: int) -> list[Tensor]:
    """Which samples are changed, pass by pass, (count,) Booleans: for any two of them one pass changes the first alone.

    Each sample is changed in half of the passes and no two in the same ones (Sperner): 8 passes for 64 samples, where
    the bits of their numbers and the complements would take 12.

    >>> [pattern.tolist() for pattern in _patterns(2)]
    [[True, False], [False, True]]
    """
    passes = next(n for n in range(2, count + 2) if math.comb(n, n // 2) >= count)
    own = list(islice(combinations(range(passes), passes // 2), count))
    return [torch.tensor([k in chosen for chosen in own]) for k in range(passes)]


def _shapes(sample: Sample) -> tuple[Any, ...]:
    beside = [(k, tuple(v.shape)) for k, v in sample.extra.items() if isinstance(v, Tensor)]
    return (sample.x.dtype, tuple(sample.x.shape[1:]), *beside)


def _gap(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], rows: Tensor) -> float:
    gaps = [worst_gap(found[k][rows], v[rows]) for k, v in expected.items() if k in found]
    return max((float("inf") if gap != gap else gap for gap in gaps), default=0.0)


def _changed(x: Tensor, rows: Tensor) -> Tensor:
    """``x`` with other values in some rows, of the range that the values have: of another size and direction.

    Equal samples and zeros stay what they are under that; then ones are added, or ids become others of the batch.
    """
    if not x.is_floating_point():
        other = x.roll(1, 0)
        made = other.flip(-1) if x.ndim > 1 else other
    else:
        made = 0.5 * x + 0.25 * x.roll(1, 0)
    same = (made == x).reshape(len(x), -1).all(1)
    return torch.where(_along(rows, x), torch.where(_along(same, x), _moved(x), made), x)


def _moved(x: Tensor) -> Tensor:
    """Other values in every row: ids that no sample holds may be none of the model's, so that a lone one stays."""
    if x.is_floating_point():
        return x + 1
    if x.dtype is torch.bool:
        return ~x
    ids, places = x.unique(return_inverse=True)
    return ids[(places + 1) % len(ids)]


def _along(rows: Tensor, x: Tensor) -> Tensor:
    return rows.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
