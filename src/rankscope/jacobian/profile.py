"""The record that a measurement leaves: spectra of every image and cut point, and everything that led to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rankscope._base.checks import path_of
from rankscope._base.encoding import frozen, plain
from rankscope._base.errors import UsageError, nearest
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope._base.records import Record
from rankscope.jacobian.against_random import AgainstRandom, against_random
from rankscope.jacobian.directions import Directions
from rankscope.jacobian.layer import Layer
from rankscope.jacobian.profile_files import SCHEMA_VERSION, load_fields, save_fields
from rankscope.jacobian.reading import Reading
from rankscope.slicing import Stretch
from rankscope.spectra import Tolerance, ToleranceLike, as_tolerance
from rankscope.views.noted import Noted
from rankscope.views.phrases import counted, number
from rankscope.views.profile_figure import plot_profile
from rankscope.views.profile_text import profile_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["SCHEMA_VERSION", "JacobianProfile", "Layer"]

_KEPT, _NOT_CERTIFIED = Fact(FactKind.KEPT_IMAGES), Fact(FactKind.NOT_CERTIFIED)


@dataclass(frozen=True, eq=False, repr=False)
class JacobianProfile(Noted, Record):
    """Jacobian rank of every sub-network of a model, on one or more images. Equal to itself after a file.

    Attributes
    ----------
    layers : tuple of Layer
        Measured cut points in depth order.
    tolerance : Tolerance
        What turns spectra into ranks; every method takes another one.
    unmeasured : mapping
        Requested cut points that could not be measured, and why.
    output : str
        The layer that holds what the network returns, empty where it was not measured; ``profile["output"]`` is it.
    columns : Directions
        The input directions: their kind, their number K (``columns.counts``: that of each sample, where they differ),
        and words for them.
    input_shapes : tuple of shapes
        That of every sample without the batch dimension, where they differ; else empty. ``input_shape`` is the first's.
    method : Fact
        How tangents were pushed: kind ``PUSHED`` or ``LINEARISED`` with the ``name`` of the way, or ``KEPT_IMAGES``.
    failed_methods : tuple of Fact
        Why faster ways were not used: kinds ``WAY_FAILED``, ``WAY_DIFFERS``, ``WAY_GIVEN_UP``.
    certificate : Fact
        What bounds the error: kind ``PROBES``, an estimate, or that there is none.
    adjoint_error : float or None
        Relative disagreement of forward and reverse mode on the first image; ``None`` where reverse mode fails.
    kinks : tuple of int
        For each image, units that rounding puts on the other side of their kink, and maxima of which it chooses another
        entry. Bounds hold for the working precision's side.
    facts : tuple of Fact
        What a reader has to know to trust the numbers; ``notes`` are their sentences.
    provenance : mapping
        Plain values that the caller gave to be kept.
    """

    model: str
    layers: tuple[Layer, ...]
    images: tuple[str, ...]
    tolerance: Tolerance
    columns: Directions
    background: str
    device: str
    dtype: str
    versions: Mapping[str, str]
    weights: str = "as given"
    input_shape: tuple[int, ...] = ()
    cut_points: str = "blocks"
    method: Fact = _KEPT
    failed_methods: tuple[Fact, ...] = ()
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    adjoint_error: float | None = None
    kinks: tuple[int, ...] = ()
    certificate: Fact = _NOT_CERTIFIED
    facts: tuple[Fact, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    chunk_size: int = 0
    peak_memory: int | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", frozen(dict(self.provenance)))

    def with_tolerance(self, tolerance: ToleranceLike) -> JacobianProfile:
        """The same spectra read with another tolerance."""
        return replace(self, tolerance=as_tolerance(tolerance))

    def __getitem__(self, name: str) -> Layer:
        for wanted in (name, self.output if name == "output" else name):
            for layer in self.layers:
                if layer.name == wanted:
                    return layer
        if name in self.unmeasured:
            raise UsageError(f"{name!r} was not measured: {self.unmeasured[name]}")
        raise UsageError(f"{name!r} is not in this profile; {nearest(name, [x.name for x in self.layers])}")

    @cached_property
    def reading(self) -> Reading:
        """The spectra read with the profile's tolerance, once: arrays of shape (cut points, images)."""
        return Reading(self.layers, self.tolerance)

    @property
    def function_rank(self) -> tuple[int, ...]:
        """Largest rank over the images (paper, Eq. 3), one integer a measured cut point, in depth order."""
        return self.reading.function_rank

    def rises(self) -> dict[str, int]:
        """True cuts whose function rank exceeds the smallest before them, and by how much.

        Exact rank cannot rise along true cuts; numerical rank can (its threshold follows each layer's own σ₁).
        """
        return dict(self.reading.rises)

    def summary(self, layer: Layer) -> dict[str, Any]:
        """What ``profile.json`` holds of one cut point: rank over the images, bounds, flags."""
        row = self.reading.row(layer)
        return {**row, "rank": dict(row["rank"]), "function_rank": dict(row["function_rank"])}

    def table(self, tolerance: ToleranceLike | None = None) -> pd.DataFrame:
        """One row per cut point, in depth order: sizes, rank over the images, bounds, soft ranks, flags.

        Where Lanczos probes were used, also the function rank's ``method``, ``standard_error`` and ``bracket``.
        """
        import pandas as pd

        profile = self if tolerance is None else self.with_tolerance(tolerance)
        rows = []
        for layer in profile.layers:
            row = profile.summary(layer)
            rank = row.pop("rank")
            function = row.pop("function_rank")
            head = {"layer": row.pop("name"), "rows": row.pop("rows"), "columns": row.pop("columns")}
            rows.append({**head, **rank, "function_rank": function["value"], **row})
        return pd.DataFrame(rows)

    def per_image(self, tolerance: ToleranceLike | None = None) -> pd.DataFrame:
        """One row per cut point and image: ``layer``, ``image``, ``rank``, ``lower``, ``upper``, ``margin``.

        Where samples have several shapes, also their own ``rows``, ``columns`` (K) and ``threshold`` (τ). Where Lanczos
        probes were used, also ``standard_error``, ``bracket`` (a share of min(rows, columns)) and ``method``.
        """
        import pandas as pd

        found = (self if tolerance is None else self.with_tolerance(tolerance)).reading
        seen = found.rank >= 0
        ranks = {name: getattr(found, name).astype(object) for name in ("rank", "lower", "upper", "margin")}
        for values in ranks.values():
            values[~seen] = None
        if not found.one_size:
            ranks["threshold"] = found.threshold.astype(object)
            ranks["threshold"][~seen] = None
        flat: dict[str, Any] = {name: values.ravel().tolist() for name, values in ranks.items()}
        if found.probed.any():
            flat |= {name: getattr(found, name).ravel().tolist() for name in ("standard_error", "bracket")}
            ways = np.where(found.probed, "Lanczos", "exact").astype(object)
            ways[~seen] = None
            flat["method"] = ways.ravel().tolist()
        if not found.one_size:
            shapes = [(None, None) if s is None else s.shape for layer in self.layers for s in layer.spectra]
            flat |= {"rows": [rows for rows, _ in shapes], "columns": [columns for _, columns in shapes]}
        names = [layer.name for layer in self.layers]
        frame = {"layer": np.repeat(names, len(self.images)), "image": list(self.images) * len(names), **flat}
        return pd.DataFrame(frame)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the spectra themselves go to safetensors (``save``)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "jacobian_profile",
            "model": self.model,
            "weights": self.weights,
            "input_shape": list(self.input_shape),
            **({"input_shapes": [list(shape) for shape in self.input_shapes]} if self.input_shapes else {}),
            "images": list(self.images),
            "cut_points": self.cut_points,
            "tolerance": plain(self.tolerance.to_dict()),
            "columns": plain(self.columns),
            "background": self.background,
            "device": self.device,
            "dtype": self.dtype,
            "method": self.method.to_dict(),
            "failed_methods": [fact.to_dict() for fact in self.failed_methods],
            "certificate": self.certificate.to_dict(),
            "adjoint_error": _finite(self.adjoint_error),
            "kinks": list(self.kinks),
            "chunk_size": self.chunk_size,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "versions": dict(self.versions),
            "facts": [fact.to_dict() for fact in self.facts],
            "notes": list(self.notes),
            "provenance": plain(self.provenance),
            "skipped": dict(self.skipped),
            "unmeasured": dict(self.unmeasured),
            "output": self.output,
            "rises": self.rises(),
            "layers": [{**row, **_mixing(x)} for x, row in zip(self.layers, self.reading.rows, strict=True)],
        }

    def save(self, path: str | Path) -> Path:
        """Write ``profile.json`` and ``profile.safetensors`` into a folder (made if absent); returns the folder."""
        return save_fields(self.to_dict(), {f.name: getattr(self, f.name) for f in fields(self)}, path_of(path, "path"))

    @classmethod
    def load(cls, path: str | Path) -> JacobianProfile:
        """Read back what ``save`` wrote: the folder or its ``profile.json``."""
        return cls(**load_fields(path_of(path, "path")))

    def against_random(self) -> AgainstRandom:
        """This profile beside the Gaussian prediction for a chain of the same widths and mixing layers.

        Raises ``UsageError`` when the tolerance has an absolute part, and where samples have several shapes.
        """
        return self._against_random

    @property
    def comparable(self) -> bool:
        """Whether ``against_random`` has an answer: the tolerance is relative, and all samples have one shape."""
        return not self.tolerance.atol and self.reading.one_size

    @cached_property
    def _against_random(self) -> AgainstRandom:
        return against_random(
            self.reading,
            model=self.model,
            dtype=self.dtype,
            inputs=math.prod(self.input_shape) if self.columns.random and self.input_shape else None,
        )

    def plot(
        self, *, ax: Axes | None = None, label: str | None = None, theory: bool = False, colour: str | None = None
    ) -> Axes:
        """Rank over depth: function rank as a line, the range over the images as a band, bounds as whiskers.

        ``theory`` lays the prediction for random layers of the same widths over it (``against_random``). ``colour`` is
        one of matplotlib's; by default an untrained network is orange and another one blue, and every further profile
        in the same axes takes the next of a palette.
        """
        return plot_profile(
            self.reading.rows,
            label=label or f"{self.model} ({self.tolerance.name})",
            title=f"{self.columns.title}, tolerance: {self.tolerance.name}",
            images=len(self.images),
            predicted=[x.predicted for x in self.against_random().layers] if theory else None,
            colour=colour,
            untrained=bool(of_kind(self.facts, FactKind.RANDOM_WEIGHTS)),
            ax=ax,
        )

    def __str__(self) -> str:
        kind = "image" if len(self.input_shape) == 3 else "sample"
        return profile_text(
            self.reading.rows,
            head=(
                f"Jacobian rank of {self.model} on {counted(len(self.images), kind)}, {self.columns}",
                f"tolerance: {self.tolerance.name}, background: {self.background}, {self.dtype} on {self.device}, "
                f"weights: {self.weights}",
            ),
            certificate=self.certificate,
            method=self.method,
            adjoint_error=self.adjoint_error,
            kinks=self.kinks,
            unmeasured=self.unmeasured,
            skipped=self.skipped,
            facts=self.facts,
        )

    def __repr__(self) -> str:
        ranks = " → ".join(map(number, self.function_rank))
        return f"JacobianProfile({self.model}, {counted(len(self.images), 'image')}, {self.tolerance.name}: {ranks})"


def _finite(value: float | None) -> float | None:
    return value if value is not None and value - value == 0 else None


def _mixing(layer: Layer) -> dict[str, Any]:
    found = Stretch.of(layer.mixes)
    return {
        "mixes": bool(found),
        "mixing_operations": found.operations,
        "mixing_sizes": [list(size) for size in found.sizes],
    }
