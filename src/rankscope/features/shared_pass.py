"""Whether samples can share a pass of a model: only where each gives there what it gives in any other company.

Three things forbid it. Values decide what the model computes, so that samples in one pass share a branch. Or the
samples of a pass change each other: statistics of the batch, a sequence module that takes them for steps, a convolution
that takes them for channels. Or what a sample gives depends on its place in the pass, or on how many share it: a
position encoding that takes samples for steps. Then each sample is called alone, which is what a sample is here.

It is decided by rule first: a pass of each number of samples is followed through its operators to what is computed of
several samples (``followed_pass``), whatever the values. What the rules allow is looked at all the same. Two samples
far apart may be the only ones that change each other. So a whole batch is looked at, in passes that change some of its
samples and leave the others: for any two there is one that changes the one and leaves the other. In one more pass each
sample takes the next one's place, and some samples are looked at alone.
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
from rankscope.features.followed_pass import followed_pass
from rankscope.slicing.apart import APART, worst_gap
from rankscope.slicing.batches import run_forward, turned
from rankscope.slicing.calls import Call
from rankscope.slicing.one_sample import CallFailedError
from rankscope.slicing.sample import Sample
from rankscope.slicing.value_reads import reads_values

__all__ = ["SharedPass"]

_REPEATS = 10  # a pass with other neighbours differs by more than this many times what the same pass differs by
_STEPS = 16  # of a half-precision dtype, between a sample by itself and in a batch: several roundings
_BY_ITSELF = 8  # samples of a batch that are looked at alone, from the first to the last


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
        self._followed: set[Any] = set()  # shapes, with a number of samples whose pass was followed
        self._looked = False

    def alone(self, call: Call) -> bool:
        """Whether samples of the shape that those of a call have are to be called alone.

        Raises
        ------
        CallFailedError
            Where the model takes several samples and fails on one: they are none.
        """
        first, count = call.rows(0, 1, "a sample"), len(call)
        key = _shapes(first)
        if self._alone.get(key, False):
            return True
        if count > self._most.get(key, 0):
            # a single sample shows nothing of its neighbours, and the next one of its shape may come with some
            if count == 1 and self._looked:
                return False
            self._looked = True
            values = reads_values(first.x, lambda x: run_forward(self.model, replace(first, x=x), self.device))
            about = {"coupled": False} if values else self._company(call) if count > 1 else {}
            if about is None:  # the next batch of this shape decides; alone is right for this one in any case
                return True
            if values or count > 1:
                self._most[key] = count
        elif count > 1 and (key, count) not in self._followed:  # branches on the number of samples
            about = followed_pass(call, self.outputs)
        else:
            return False
        if count > 1:
            self._followed.add((key, count))
        self._alone[key] = bool(about)
        fact = Fact(FactKind.CALLED_ALONE, about)
        if about and fact not in self.facts:
            self.facts.append(fact)
        return self._alone[key]

    def look_again(self) -> None:
        """Further layers are measured: decide anew."""
        self._alone = {key: alone for key, alone in self._alone.items() if alone}
        self._most.clear()
        self._followed.clear()

    def _company(self, call: Call) -> dict[str, Any] | None:
        """What a fact says of samples that have to be called alone; nothing where they can share a pass, and ``None``
        where no other values could be put beside them.
        """
        count = len(call)
        first, several = self._by_itself(call, 0), call.rows(0, count, "a batch")  # the first: it has to be a sample
        found = self._kept(several)
        by_rule = followed_pass(call, self.outputs)
        if by_rule:
            return by_rule
        coupled = self._coupled(several, found)
        if coupled or coupled is None:
            return None if coupled is None else {"coupled": True}
        places = {round(k * (count - 1) / (_BY_ITSELF - 1)) for k in range(_BY_ITSELF)} - {0}
        alone = {0: first, **{place: self._by_itself(call, place) for place in sorted(places)}}
        placed = self._depends_on_place(alone, several, turned(call).rows(0, count, "a batch"), found)
        return {"coupled": True, "place": True} if placed else {}

    def _coupled(self, several: Sample, found: Mapping[str, Tensor]) -> bool | None:
        """Whether samples change each other; ``None`` where no other values could be put beside them."""
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

    def _depends_on_place(
        self,
        alone: Mapping[int, Mapping[str, Tensor]],
        several: Sample,
        turned_round: Sample,
        found: Mapping[str, Tensor],
    ) -> bool:
        """Whether a sample gives something else by itself, or in another place of the same pass.

        ``alone`` are rows by place. Kernels add in another order there, so that here rounding counts.
        """
        every = torch.ones(len(several.x), dtype=torch.bool)
        by_itself = {name: rows.clone() for name, rows in found.items()}
        for place, rows in alone.items():
            for name in found.keys() & rows.keys():
                if rows[name].shape[1:] != found[name].shape[1:]:
                    return True
                by_itself[name][place] = rows[name][0]
        places = {name: rows.roll(-1, 0) for name, rows in found.items()}
        gap = max(_gap(self._kept(turned_round), places, every), _gap(by_itself, found, every))
        if gap <= max([APART, *(_STEPS * torch.finfo(rows.dtype).eps for rows in found.values())]):
            return False
        return not gap <= _REPEATS * _gap(self._kept(several), found, every)

    def _by_itself(self, call: Call, place: int) -> dict[str, Tensor]:
        """What is called with several has to take one: rows of an image without its batch dimension it does not."""
        try:
            return self._kept(call.rows(place, place + 1, "a sample"))
        except CallFailedError:
            raise
        except RankscopeError:  # a layer whose rows do not count a single sample: the batch decides
            return {}

    def _kept(self, samples: Sample) -> dict[str, Tensor]:
        count = len(samples.x)
        made = self.outputs(samples)
        return {
            name: (rows if rows.is_floating_point() else rows.double()).detach().reshape(count, -1)
            for name, rows in made.items()  # of each pass its own, as the hooks keep them
            if not rows.is_complex() and rows.ndim and len(rows) and len(rows) % count == 0
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
