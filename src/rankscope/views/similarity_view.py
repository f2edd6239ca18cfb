"""How alike layers are, as text for the terminal and as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rankscope._base.facts import Fact
from rankscope._base.style import COLUMN_WIDTH, TEXT_WIDTH, figure_style, new_axes, plain_text
from rankscope._base.text import one_line
from rankscope.views.phrases import counted, in_columns
from rankscope.views.sentences import note

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_similarity", "similarity_text"]

_NAMED = 40  # layers that have a name each along an axis
_SHOWN = 10  # columns on a terminal


def similarity_text(
    values: NDArray[np.float64],
    first: Sequence[str],
    second: Sequence[str],
    debiased: bool,
    samples: int,
    facts: Sequence[Fact],
) -> str:
    """One line per layer of the first source; of many columns the first, the last and some between."""
    places = np.unique(np.linspace(0, len(second) - 1, min(len(second), _SHOWN)).round().astype(int)).tolist()
    body = [
        [one_line(name), *("–" if np.isnan(row[i]) else f"{row[i]:.3f}" for i in places)]
        for name, row in zip(first, values, strict=True)
    ]
    kind = "debiased" if debiased else "not debiased"
    head = ["layer", *(one_line(second[i]) for i in places)]
    return "\n".join(
        [f"Linear CKA ({kind}, {counted(samples, 'sample')})", *in_columns([head, *body]), *map(note, facts)]
    )


def plot_similarity(
    values: NDArray[np.float64],
    first: Sequence[str],
    second: Sequence[str],
    *,
    debiased: bool,
    ax: Axes | None = None,
) -> Axes:
    """Layers of the first source downwards, of the second to the right, from 0 to 1."""
    with figure_style():
        if ax is None:
            side = max(COLUMN_WIDTH, min(TEXT_WIDTH, 0.2 * max(len(first), len(second)) + 1.6))
            ax = new_axes(side, side * 0.85)
        ax.set_facecolor("#bbbbbb")
        image = ax.imshow(np.ma.masked_invalid(values), vmin=0, vmax=1, cmap="cividis", interpolation="nearest")
        if len(first) <= _NAMED:
            ax.set_yticks(range(len(first)), [plain_text(name, 30) for name in first])
        if len(second) <= _NAMED:
            ax.set_xticks(range(len(second)), [plain_text(name, 30) for name in second], rotation=90)
        ax.spines[["left", "bottom"]].set_visible(False)
        label = "linear CKA (debiased)" if debiased else "linear CKA (not debiased)"
        ax.figure.colorbar(image, ax=ax, label=label, pad=0.01)
    return ax
