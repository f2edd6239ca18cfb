"""Accumulators of the features of every layer, and the record that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from rankscope._base.errors import DataError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.provenance import versions
from rankscope.features.accumulate import (
    Accumulator,
    choose_accumulator,
    exact_bytes,
    fair_shares,
    layer_features,
    least_bytes,
)
from rankscope.features.feature_profile import FeatureProfile, LayerFeatures
from rankscope.features.moments import CentredMoments
from rankscope.features.precision import check_real, unit_roundoff
from rankscope.features.reduction import Channels, Reduce, coarse_square, reduce_output
from rankscope.features.sample_axis import check_rows
from rankscope.features.sketch import RowStore
from rankscope.spectra.scale import power_of_two

__all__ = ["LayerStore", "profile_of"]


class LayerStore:
    """Accumulators by layer, chosen when a layer's first batch comes."""

    def __init__(
        self,
        reduce: Reduce,
        channels: Channels,
        samples: int | None,
        memory: float,
        *,
        rounding: bool = True,
    ) -> None:
        self.rounding = rounding
        self.reduce, self.channels, self.samples, self.memory = reduce, channels, samples, memory
        self.input_shape: Sequence[int] | None = None
        self.facts: list[Fact] = []
        self._kept: dict[str, Accumulator] = {}
        self._expected: dict[str, int] = {}  # rows, where their number is known
        self._roundoff: dict[str, float] = {}
        self._magnitude: dict[str, torch.Tensor] = {}
        self._first: dict[str, torch.Tensor] = {}
        self._varies: dict[str, torch.Tensor] = {}
        self._scale: dict[str, float] = {}
        self._granted = 0.0

    def add(self, outputs: Mapping[str, torch.Tensor], batch: int, input_shape: Sequence[int] | None = None) -> None:
        """Take in what one batch left at every layer; ``input_shape`` is that of the model's input."""
        self.input_shape = input_shape
        for name, output in outputs.items():
            check_rows(name, output, batch)
        rows = {
            name: reduce_output(output, self.reduce, channels=self.channels, input_shape=self.input_shape)
            for name, output in outputs.items()
        }
        # integers and Booleans are exact numbers; differences of unsigned ones would wrap around
        exact = (torch.float64 if not (p.is_floating_point() or p.is_complex()) else p.dtype for p in rows.values())
        rows = {name: part.to(dtype) for (name, part), dtype in zip(rows.items(), exact, strict=True)}
        for name, part in rows.items():
            check_real(part, name)
            known = self._first[name].shape[1] if name in self._first else part.shape[1]
            if part.shape[1] != known:
                raise DataError(
                    f"{name}: {part.shape[1]:,} dimensions for one sample and {known:,} for another, which have other "
                    f"shapes; give {parameter('reduce', 'pool')} where the channels stay the same, or measure each "
                    "shape by itself"
                )
            if name not in self._scale:
                largest = float(part.abs().max()) if part.dtype == torch.float64 and part.numel() else 0.0
                self._scale[name] = power_of_two(largest)
            if self._scale[name] != 1:
                rows[name] = part / self._scale[name]
        new = {name: part for name, part in rows.items() if name not in self._kept}
        if new:
            self._choose(new, batch)
        for name, part in rows.items():
            self._kept[name].update(part)
            self._summed_up(name, part)
            self._look(name, outputs[name], part)

    def _summed_up(self, name: str, part: torch.Tensor) -> None:
        """Moments in place of all rows, where more came than were expected, and more than there are dimensions."""
        kept = self._kept[name]
        if isinstance(kept, RowStore) and kept.count > max(kept.width, self._expected[name]):
            self._kept[name] = CentredMoments(kept.width, name=name).to(part.device)
            self._kept[name].update(kept.rows)

    def _look(self, name: str, output: torch.Tensor, rows: torch.Tensor) -> None:
        """Keep what the accumulator does not: how coarse the output's dtype is, and whether any two rows differ."""
        if not len(rows):
            return
        first = self._first.setdefault(name, rows[:1].clone())
        differs = (rows != first).any()
        self._varies[name] = differs | self._varies[name] if name in self._varies else differs
        # float64, which integers are turned into, rounds those beyond 2⁵³
        coarse = unit_roundoff(output.dtype) or unit_roundoff(torch.float64)
        self._roundoff[name] = max(coarse, self._roundoff.get(name, 0.0))
        square = coarse_square(output, self.reduce, channels=self.channels, input_shape=self.input_shape)
        if square is not None:
            self._magnitude[name] = self._magnitude.get(name, torch.zeros_like(square)) + square

    @property
    def filled(self) -> bool:
        """Whether any rows have come in."""
        return bool(self._kept)

    def mergeable(self, name: str) -> bool:
        """Whether other processes' rows of this layer can be added: moments, not divided by a scale of their own."""
        return isinstance(self._kept.get(name), CentredMoments) and self._scale.get(name, 1.0) == 1

    def merge_processes(self, name: str) -> None:
        """Gather the moments of every process: each calls this, and each then holds the rows of all.

        Raises
        ------
        DataError
            Fewer than two rows over all processes.
        """
        moments = self._kept[name]
        assert isinstance(moments, CentredMoments)
        moments.compute()
        self._varies.pop(name, None)  # of this process's rows alone; the variance tells of all

    def layer(self, name: str) -> LayerFeatures:
        """The record of one layer."""
        magnitude = self._magnitude.get(name)
        return layer_features(
            name,
            self._kept[name],
            self.reduce,
            roundoff=self._roundoff.get(name, 0.0) if self.rounding else 0.0,
            magnitude=None if magnitude is None else float(magnitude),
            varies=bool(self._varies[name]) if name in self._varies else None,
            scale=self._scale.get(name, 1.0),
        )

    def _choose(self, rows: Mapping[str, torch.Tensor], batch: int) -> None:
        totals = {
            name: None if self.samples is None else self.samples * max(len(part) // max(batch, 1), 1)
            for name, part in rows.items()
        }
        wanted = {name: min(exact_bytes(p.shape[1], totals[name], p.element_size())) for name, p in rows.items()}
        left = max(self.memory - self._granted, 0.0)  # layers that only later samples call take what the others leave
        shares = fair_shares(wanted, left, {name: least_bytes(p.shape[1]) for name, p in rows.items()})
        for name, part in rows.items():
            self._kept[name], found = choose_accumulator(
                name,
                part.shape[1],
                samples=totals[name],
                memory=shares[name],
                itemsize=part.element_size(),
                device=part.device,
            )
            self.facts += found
        self._expected |= {name: total for name, total in totals.items() if total is not None}
        self._granted += sum(min(wanted[name], shares[name]) for name in rows)

    def profile(self, kind: str, provenance: dict[str, Any], names: Mapping[str, str]) -> FeatureProfile:
        """The record of the layers in ``names``, in that order, each under the name that it gives."""
        if not self._kept:
            raise DataError("the data hold no batch; give at least two samples")
        layers = [replace(self.layer(name), name=called) for name, called in names.items() if name in self._kept]
        return profile_of(layers, kind, self.facts, provenance)


def profile_of(
    layers: Sequence[LayerFeatures], kind: str, facts: Sequence[Fact], provenance: dict[str, Any]
) -> FeatureProfile:
    """The record of all layers; constant ones are named, unless nothing varies at all.

    Raises
    ------
    DataError
        When every layer is constant: then the inputs are the same, or none of the layers lies on their way.
    """
    constant = [layer for layer in layers if layer.constant]
    if len(constant) == len(layers):
        raise DataError(
            f"{layers[0].name}: the features are constant: all {layers[0].samples} samples give the same; check that "
            "inputs differ and that the layer depends on them"
        )
    found = list(facts)
    found += [Fact(FactKind.CONSTANT_LAYER, {"name": one.name, "samples": one.samples}) for one in constant]
    for layer in layers:
        if layer.limited_by == "precision":
            low, high = layer.pca_bounds
            found.append(Fact(FactKind.ROUNDED_LAYER, {"name": layer.name, "low": low, "high": high}))
    return FeatureProfile(tuple(layers), kind, tuple(found), {"versions": versions(), **provenance})
