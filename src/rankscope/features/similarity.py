"""Linear CKA: how alike two representations of the same samples are, between layers and between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from rankscope._base.checks import count_of, refuse_unused
from rankscope._base.errors import DataError
from rankscope._base.facts import Fact, FactKind, unsaid
from rankscope._base.progress import Progress
from rankscope._base.provenance import versions
from rankscope._base.records import Record
from rankscope.features.data_digests import DataDigests
from rankscope.features.layer_rows import layer_rows
from rankscope.features.principal import from_first
from rankscope.features.reduction import Channels, Reduce, check_reduce
from rankscope.slicing import CutPointsLike
from rankscope.views.noted import Noted
from rankscope.views.similarity_view import plot_similarity, similarity_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Similarity", "linear_cka"]

_LEAST = 4  # samples: the debiased estimate divides by N − 3


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(Noted, Record):
    """Linear CKA of every layer of one source with every layer of another.

    Attributes
    ----------
    first, second : tuple of str
        Names of the layers: rows and columns of ``values``.
    values : ndarray
        (rows, columns) float64; NaN where it is not defined (a constant layer, or too few samples).
    debiased : bool
        Whether HSIC was estimated without bias; such values may lie a little below 0.
    samples : int
        N.
    facts : tuple of Fact
        What is to be known of the layers.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    values: NDArray[np.float64]
    debiased: bool
    samples: int
    facts: tuple[Fact, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def table(self) -> pd.DataFrame:
        """One row per layer of the first source, one column per layer of the second."""
        import pandas as pd

        return pd.DataFrame(self.values, index=list(self.first), columns=list(self.second))

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """A heat map from 0 to 1."""
        return plot_similarity(self.values, self.first, self.second, debiased=self.debiased, ax=ax)

    def __str__(self) -> str:
        return similarity_text(self.values, self.first, self.second, self.debiased, self.samples, self.facts)

    def __repr__(self) -> str:
        return str(self)


def linear_cka(
    first: Any,
    second: Any = None,
    data: Any = None,
    *,
    debiased: bool = True,
    cut_points: CutPointsLike = "blocks",
    reduce: Reduce = "pool",
    channels: Channels = "auto",
    batch_size: int = 64,
    progress: bool | Progress | None = None,
) -> Similarity:
    """Linear centred kernel alignment of layers (Kornblith et al., ICML 2019), between 0 (unrelated) and 1 (equal up to
    rotation and scale).

    CKA = HSIC(X, Y)/√(HSIC(X, X)·HSIC(Y, Y)) with linear kernels. The plain estimate of HSIC, ‖XᵀY‖²_F of centred X and
    Y, is biased: with few samples and many dimensions unrelated layers have a CKA near 1. By default HSIC is estimated
    without bias (Song et al., JMLR 2012; Nguyen et al., ICLR 2021). Both are computed in float64 without approximation.

    Parameters
    ----------
    first, second : nn.Module, array, or mapping of name → array
        Arrays are (N, …) with samples first, the same samples in the same order in both. ``second=None``: the layers of
        ``first`` with each other.
    data : optional
        Inputs for the models, as ``feature_rank`` takes them.
    debiased : bool
        Which estimate of HSIC.
    cut_points, reduce, channels, batch_size
        As in ``feature_rank``. The rows of all layers are held at once.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    DataError
        Fewer than four samples, other numbers of samples, NaN or complex rows, or data that hold other values when
        they are read for the second model.
    UsageError
        A model without data, or data without a model.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    >>> found = linear_cka({"a": x, "scaled": 3 * x, "other": torch.randn(50, 6)})
    >>> round(float(found.values[0, 1]), 6)
    1.0
    """
    check_reduce(reduce, channels)
    options: dict[str, Any] = {"cut_points": cut_points, "reduce": reduce, "channels": channels}
    options |= {"batch_size": count_of(batch_size, "batch_size"), "progress": progress}
    if data is not None and not any(isinstance(source, nn.Module) for source in (first, second)):
        refuse_unused(["data"], "where neither source is a model")
    read, again = DataDigests(), DataDigests()
    rows, facts = layer_rows(first, data, digests=read, **options)
    others, found = rows, list(facts)
    if second is not None:
        others, more = layer_rows(second, data, digests=again, **options)
        found += unsaid(more, found)
    count = len(next(iter(rows.values())))
    if len(next(iter(others.values()))) != count:
        raise DataError(
            f"{count:,} samples of the first and {len(next(iter(others.values()))):,} of the second; give the same ones"
        )
    other = read.first_other(again)
    if other is not None:
        raise DataError(
            f"sample {other} of the data has other values for the second model than for the first; give one tensor, or "
            "a data set without random transforms and in a fixed order"
        )
    if count < _LEAST:
        raise DataError(f"CKA needs {_LEAST} samples; {count} are given")
    left = [_Centred(part) for part in rows.values()]
    right = left if second is None else [_Centred(part) for part in others.values()]
    for names, side in ((rows, left), (others, right)):
        constant = [name for name, one in zip(names, side, strict=True) if not one.varies]
        found += unsaid([Fact(FactKind.CONSTANT_LAYER, {"name": n, "samples": count}) for n in constant], found)
    values = _values(left, right, debiased)
    return Similarity(tuple(rows), tuple(others), values, bool(debiased), count, tuple(found), {"versions": versions()})


class _Centred:
    """Centred rows of Frobenius norm 1 in float64 (CKA does not depend on the scale), and their squared lengths."""

    def __init__(self, rows: Tensor) -> None:
        x, _ = from_first(rows)
        x = x - x.mean(0)
        norm = float(x.norm())
        # equal rows leave exact zeros
        self.varies = norm > 0
        self.rows = x / norm if self.varies else x
        self.squares = self.rows.square().sum(1)

    def aligned(self, other: _Centred) -> float:
        """‖XᵀY‖²_F, by way of whichever product is smaller: d × d', or N × N."""
        n, d, e = len(self.rows), self.rows.shape[1], other.rows.shape[1]
        if d * e <= n * (d + e):
            return float((self.rows.T @ other.rows).square().sum())
        return float(((self.rows @ self.rows.T) * (other.rows @ other.rows.T)).sum())

    def hsic(self, other: _Centred, debiased: bool) -> float:
        """HSIC up to a factor that cancels; see below for the debiased one.

        Song et al.'s HSIC₁ of K̃ = K − diag K is [tr K̃L̃ + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1]/(n(n−3)). Of centred
        rows K1 = 0, so that K̃1 = −diag K =: −k, and the bracket is ‖XᵀY‖²_F − n/(n−2)·kᵀl + (Σk)(Σl)/((n−1)(n−2)).
        """
        plain = self.aligned(other)
        if not debiased:
            return plain
        n = len(self.rows)
        return (
            plain
            - float(self.squares @ other.squares) * n / (n - 2)
            + float(self.squares.sum() * other.squares.sum()) / ((n - 1) * (n - 2))
        )


def _values(left: Sequence[_Centred], right: Sequence[_Centred], debiased: bool) -> NDArray[np.float64]:
    own = [one.hsic(one, debiased) if one.varies else 0.0 for one in left]
    others = own if right is left else [one.hsic(one, debiased) if one.varies else 0.0 for one in right]
    # what is left of a difference of numbers near 1 is no estimate below their rounding
    least = 1e-12 if debiased else 0.0
    made = np.full((len(left), len(right)), np.nan)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            if right is left and j < i:
                made[i, j] = made[j, i]
            elif own[i] > least and others[j] > least:
                made[i, j] = one.hsic(other, debiased) / (own[i] * others[j]) ** 0.5
    return made
