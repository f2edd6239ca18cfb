"""Moments of layers too wide for a covariance: all rows kept, or a sketch of them whose error is known."""

from __future__ import annotations

import torch

from rankscope._base.errors import DataError, UsageError
from rankscope.features._inputs import first_bad_row
from rankscope.features.precision import check_real

__all__ = ["FrequentDirections", "RowStore"]


class RowStore:
    """All rows, as they come, in the dtype they have; eigenvalues through the N × N Gram matrix of the centred rows.

    The non-zero eigenvalues of XᵀX and XXᵀ are the same, so nothing is approximated. Memory: N·d entries, 8·N² bytes.

    >>> store = RowStore(3)
    >>> store.update(torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0]]))
    >>> store.eigenvalues()
    tensor([2., 0.], dtype=torch.float64)
    """

    def __init__(self, width: int, *, name: str = "features") -> None:
        self.width, self.name, self.count = width, name, 0
        self._rows: list[torch.Tensor] = []

    def update(self, rows: torch.Tensor) -> None:
        """Keep (n, d) rows."""
        _check(rows, self.width, self.name, self.count)
        self._rows.append(rows.detach().clone())
        self.count += len(rows)

    @property
    def rows(self) -> torch.Tensor:
        """(N, d) rows in order."""
        return torch.cat(self._rows) if self._rows else torch.zeros(0, self.width)

    def eigenvalues(self) -> torch.Tensor:
        """The min(N, d) largest eigenvalues of the scatter matrix, descending, float64."""
        return self.both_eigenvalues()[0]

    def both_eigenvalues(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and those of XᵀX with the mean left in."""
        rows = self.rows
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        along, level = torch.zeros(len(rows), dtype=torch.float64, device=rows.device), 0.0
        for part in rows.split(8192, dim=1):
            values = part.to(torch.float64)
            # differences of near numbers are exact: the mean of the features themselves would be off by its rounding
            values = values - values[:1]
            centred = values - values.mean(0)
            gram.addmm_(centred, centred.T)
            mean = part.to(torch.float64).mean(0)
            along += centred @ mean
            level += float(mean.square().sum())
        # XXᵀ = X_c X_cᵀ + (X_c m)1ᵀ + 1(X_c m)ᵀ + ‖m‖² 11ᵀ
        raw = gram + along[:, None] + along[None, :] + level
        return tuple(torch.linalg.eigvalsh(m).clamp_min_(0).flip(0)[: self.width] for m in (gram, raw))


class FrequentDirections:
    """A sketch B (size × d) of centred rows with 0 ≤ λ_i(scatter) − λ_i(BᵀB) ≤ ``error`` for every i, never estimated.

    Frequent Directions (Liberty 2013; Ghashami et al. 2016), with the shrinkage summed up as it happens: ``error`` is
    that sum, at most ‖X − X_k‖²_F/(size − k) for every k < size. The mean is taken off exactly: a batch enters as its
    own centred rows and one row √(n·m/(n+m))·(mean_a − mean_b). Memory: 2·size·d·8 bytes.

    >>> sketch = FrequentDirections(3, size=2)
    >>> sketch.update(torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0]]))
    >>> sketch.eigenvalues().round(decimals=6), round(sketch.error, 6)
    (tensor([2., 0.], dtype=torch.float64), 0.0)
    """

    def __init__(self, width: int, *, size: int = 256, name: str = "features") -> None:
        if size < 1:
            raise UsageError(f"the sketch's size is {size}; it keeps one row or more")
        self.width, self.size, self.name = width, size, name
        self.count, self.error, self.trace = 0, 0.0, 0.0
        self.mean: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None
        self._filled = 0

    def update(self, rows: torch.Tensor) -> None:
        """Add (n, d) rows."""
        _check(rows, self.width, self.name, self.count)
        for part in rows.detach().split(self.size):
            self._add(part.to(torch.float64))

    def _add(self, part: torch.Tensor) -> None:
        if self._buffer is None or self.mean is None:
            self._buffer = torch.zeros(2 * self.size + 1, self.width, dtype=torch.float64, device=part.device)
            self.mean = torch.zeros(self.width, dtype=torch.float64, device=part.device)
        n, m = self.count, len(part)
        mean = part.mean(0)
        weight = (n * m / (n + m)) ** 0.5
        fresh = torch.cat([part - mean, (weight * (mean - self.mean))[None]])
        self.trace += float(fresh.square().sum())
        self.mean += (mean - self.mean) * (m / (n + m))
        self.count += m
        if self._filled + len(fresh) > len(self._buffer):
            self._shrink()
        self._buffer[self._filled : self._filled + len(fresh)] = fresh
        self._filled += len(fresh)

    def _shrink(self) -> None:
        """Keep ``size`` orthogonal rows and take the next squared length off all of them."""
        assert self._buffer is not None
        rows = self._buffer[: self._filled]
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        values, vectors = values.clamp_min(0).flip(0), vectors.flip(1)
        off = float(values[self.size]) if len(values) > self.size else 0.0
        kept = int((values[: self.size] > max(off, 1e-14 * float(values[0]))).sum())
        scale = ((values[:kept] - off) / values[:kept]).sqrt()
        self._buffer[:kept] = (vectors[:, :kept] * scale).T @ rows
        # directions dropped as rounding: their squared length counts as error too
        dropped = float(values[kept]) if kept < len(values) else 0.0
        self.error += max(off, dropped)
        self._filled = kept

    def uncentred_eigenvalues(self) -> torch.Tensor:
        """Those of BᵀB + N·mean·meanᵀ, descending: lower bounds on those of XᵀX."""
        self.eigenvalues()
        assert self._buffer is not None
        assert self.mean is not None
        rows = torch.cat([self._buffer[: self._filled], self.count**0.5 * self.mean[None]])
        return torch.linalg.eigvalsh(rows @ rows.T).clamp_min(0).flip(0)[: self.width].cpu()

    def eigenvalues(self) -> torch.Tensor:
        """The ``size`` largest eigenvalues of BᵀB, descending: lower bounds on those of the scatter matrix."""
        if self._buffer is None:
            raise DataError(f"{self.name}: a covariance needs two samples; it got none")
        self._shrink()
        rows = self._buffer[: self._filled]
        out = torch.zeros(min(self.size, self.width), dtype=torch.float64)
        found = rows.square().sum(1).sort(descending=True).values.cpu()[: len(out)]
        out[: len(found)] = found
        return out


def _check(rows: torch.Tensor, width: int, name: str, before: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DataError(f"{name}: rows of shape {tuple(rows.shape)}; (n, {width}) are expected")
    check_real(rows, name)
    bad = first_bad_row(rows)
    if bad is not None:
        raise DataError(
            f"{name}: sample {before + bad} holds a NaN or infinite value; remove it, or look for an overflow in the "
            "layers before"
        )
