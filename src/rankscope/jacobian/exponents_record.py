"""The record of a real chain's exponents: one spectrum of rates an input, and its table, figure and JSON."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankscope._base.facts import Fact
from rankscope._base.records import Record
from rankscope._base.style import COLOURS, figure_style, new_axes, plain_text
from rankscope._base.text import one_line
from rankscope.jacobian import earlier
from rankscope.views.noted import Noted
from rankscope.views.phrases import counted, shape_of
from rankscope.views.sentences import note, phrase

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from rankscope.theory import LyapunovExponents

__all__ = ["ChainExponents"]


@dataclass(frozen=True, eq=False)
class ChainExponents(Noted, Record):
    """Lyapunov-style exponents of a network's chain of equal-width blocks. Prints as a table.

    Attributes
    ----------
    model : str
        Name of the model.
    blocks : tuple of str
        The cut points at which the blocks end, in the order in which they act.
    start : str
        The cut point at which the chain starts: what enters the first block.
    shape : tuple of int
        Of what every block takes and gives, without the batch dimension; its product is ``width``.
    images : tuple of str
        Names of the inputs.
    per_image : tuple of LyapunovExponents
        One record per input, exponents in nats per block.
    method : Fact
        How tangents were pushed: kind ``PUSHED``, the ``name`` of the way.
    dtype, device : str
        What was computed in, and where.
    failed_methods : tuple of Fact
        Why faster ways were not used.
    facts : tuple of Fact
        What a reader has to know; ``notes`` are their sentences.
    """

    model: str
    blocks: tuple[str, ...]
    start: str
    shape: tuple[int, ...]
    images: tuple[str, ...]
    per_image: tuple[LyapunovExponents, ...]
    method: Fact
    dtype: str
    device: str
    failed_methods: tuple[Fact, ...] = ()
    facts: tuple[Fact, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_earlier(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier files name the way, and say in words why faster ones were not used."""
        facts = {"failed_methods": [earlier.failed([fact])[0].to_dict() for fact in data.get("failed_methods", ())]}
        return {**data, "method": earlier.way(data["method"]).to_dict(), **facts}

    @staticmethod
    def late_types() -> dict[str, type]:
        """Types of fields that are imported only when a file is read: theory imports SciPy."""
        from rankscope.theory import LyapunovExponents

        return {"LyapunovExponents": LyapunovExponents}

    @property
    def width(self) -> int:
        """Numbers that pass from block to block."""
        return int(np.prod(self.shape))

    @property
    def exponents(self) -> NDArray[np.float64]:
        """λ_1 ≥ … ≥ λ_k of every input, nats per block, shape (inputs, k); −inf where the rank drops exactly."""
        return np.stack([found.exponents for found in self.per_image])

    @property
    def complete(self) -> bool:
        """Whether all exponents were tracked; their sum then is the mean of log|det J| over the blocks."""
        return self.exponents.shape[1] == self.width

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the inputs, shape (k,)."""
        return np.asarray(self.exponents.mean(axis=0))

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation over the inputs, shape (k,); NaN for a single one or an infinite exponent."""
        values = self.exponents
        if len(values) < 2:
            return np.full(values.shape[1], np.nan)
        with np.errstate(invalid="ignore"):
            return np.asarray(values.std(axis=0, ddof=1))

    @property
    def rank_drops(self) -> tuple[tuple[str, str, int], ...]:
        """(image, block, rank left of the frame) wherever a block's Jacobian is singular on the frame."""
        return tuple(
            (image, self.blocks[layer - 1], rank)
            for image, found in zip(self.images, self.per_image, strict=True)
            for layer, rank in found.rank_drops
        )

    def table(self) -> pd.DataFrame:
        """One row an exponent: ``k``, ``mean``, ``spread``, ``min`` and ``max`` over the inputs."""
        import pandas as pd

        values = self.exponents
        return pd.DataFrame(
            {
                "k": np.arange(1, values.shape[1] + 1),
                "mean": self.mean,
                "spread": self.spread,
                "min": values.min(axis=0),
                "max": values.max(axis=0),
            }
        )

    def frame(self) -> pd.DataFrame:
        """One row per input and exponent: ``image``, ``k``, ``exponent``."""
        import pandas as pd

        rows = [
            (image, k, value)
            for image, found in zip(self.images, self.per_image, strict=True)
            for k, value in enumerate(found.exponents.tolist(), 1)
        ]
        return pd.DataFrame(rows, columns=["image", "k", "exponent"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; −inf and NaN become None."""
        return {
            "schema_version": 1,
            "kind": "chain_exponents",
            "model": self.model,
            "start": self.start,
            "blocks": list(self.blocks),
            "shape": list(self.shape),
            "width": self.width,
            "tracked": self.exponents.shape[1],
            "images": list(self.images),
            "exponents": [_plain(row) for row in self.exponents],
            "mean": _plain(self.mean),
            "spread": _plain(self.spread),
            "rank_drops": [list(drop) for drop in self.rank_drops],
            "method": self.method.to_dict(),
            "failed_methods": [fact.to_dict() for fact in self.failed_methods],
            "dtype": self.dtype,
            "device": self.device,
            "facts": [fact.to_dict() for fact in self.facts],
            "notes": list(self.notes),
            "seconds": self.seconds,
            "versions": dict(self.versions),
        }

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Exponents by their index: mean as a line, range over the inputs as a band."""
        values = np.where(np.isfinite(self.exponents), self.exponents, np.nan)
        shown = np.isfinite(values).all(axis=0)
        k = np.arange(1, values.shape[1] + 1)
        with figure_style():
            if ax is None:
                ax = new_axes()
            if len(values) > 1 and shown.any():
                ax.fill_between(k, values.min(0), values.max(0), color=COLOURS[0], alpha=0.2, linewidth=0)
            few = len(k) <= 40
            ax.plot(k, values.mean(0), color=COLOURS[0], marker="o" if few else None, label=plain_text(self.model))
            ax.axhline(0, color="#777777", linewidth=0.7, linestyle=(0, (4, 2)))
            of = "" if self.complete else f" of {self.width:,}"
            ax.set_xlabel(f"index k (the leading {len(k)}{of})" if of else "index k")
            ax.set_ylabel("exponent λ_k (nats per block)".replace("λ_k", "$λ_k$"))
            title = f"{plain_text(self.model, 80)}: {counted(len(self.blocks), 'block')} of width {self.width:,}"
            ax.set_title("\n".join(_lines(title, 40)), loc="left")  # a column's width
        return ax

    def __str__(self) -> str:
        mean, spread = self.mean, self.spread
        tracked = f"all {len(mean):,}" if self.complete else f"{len(mean):,} leading"
        chain = f"{counted(len(self.blocks), 'block')} of width {self.width:,} ({shape_of(self.shape)})"
        lines = [
            f"{one_line(self.model)}: {tracked} exponents of {chain} on {counted(len(self.images), 'input')}",
            one_line(
                f"from {self.start} through {self.blocks[0]} to {self.blocks[-1]}, {self.dtype} on {self.device}, "
                f"{phrase(self.method)}"
            ),
            f"{'k':>7} {'nats per block':>15} {'spread over inputs':>19}",
        ]  # fmt: skip
        last = len(mean)
        for k in sorted(
            {1, 2, 3, 4, last, *np.linspace(1, last, 8).round().astype(int).tolist()} & {*range(1, last + 1)}
        ):
            deviation = "-" if np.isnan(spread[k - 1]) else f"{spread[k - 1]:.2g}"
            lines.append(f"{k:>7,} {mean[k - 1]:>15.5g} {deviation:>19}")
        for image, block, rank in self.rank_drops[:4]:
            lines.append(one_line(f"{block} is singular on {image}: rank {rank:,} of the frame is left"))
        if len(self.rank_drops) > 4:
            lines.append(f"and {counted(len(self.rank_drops) - 4, 'more such drop')}")
        return "\n".join([*lines, *map(note, self.facts)])

    __repr__ = __str__


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _lines(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters, broken after spaces and the punctuation of names.

    >>> _lines("timm:vit_tiny_patch16_224.augreg_in21k", 30)
    ['timm:vit_tiny_patch16_224.', 'augreg_in21k']
    """
    lines = [""]
    for piece in re.findall(r"[^\s/._:-]*[\s/._:-]?", text):
        for part in textwrap.wrap(piece, width, drop_whitespace=False):
            if len(lines[-1] + part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.strip() for line in lines]
