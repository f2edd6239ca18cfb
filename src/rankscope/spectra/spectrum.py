"""The ``Spectrum`` record: singular values with what is known of their error, and everything read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope._base.arrays import dense
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, UsageError
from rankscope._base.records import ByValue
from rankscope.spectra import measures
from rankscope.spectra.ranks import count_ranks
from rankscope.spectra.tolerance import ToleranceLike, as_tolerance
from rankscope.views.phrases import bounds

__all__ = ["RankEstimate", "Spectrum"]


@dataclass(frozen=True)
class RankEstimate:
    """A numerical rank and how sure it is.

    Attributes
    ----------
    value : int
        Singular values at or above the threshold.
    lower, upper : int
        The rank of the exact matrix is between these, given the spectrum's error bound.
    threshold : float
        τ, in the units of the singular values.
    margin : float
        Relative distance |σ − τ|/τ from the threshold to the nearest singular value; infinite when there is none.
    near : int
        Singular values that the error could carry across the threshold: ``upper - lower``.
    tolerance : str
        Name of the tolerance that set τ.
    dtype : str
        What the matrix was computed in.
    certified : bool
        Whether an error bound was measured or derived; without one, ``lower`` and ``upper`` are the trivial 0 and
        min(rows, columns).
    """

    value: int
    lower: int
    upper: int
    threshold: float
    margin: float
    tolerance: str = ""
    dtype: str = "float64"
    certified: bool = True

    @property
    def near(self) -> int:
        return self.upper - self.lower

    def __int__(self) -> int:
        return self.value

    def __str__(self) -> str:
        certain = bounds(self.lower, self.upper) if self.certified else "not certified"
        flag = f", {self.near:,} near the threshold" if self.certified and self.near else ""
        return f"{self.value:,} {certain} ({self.tolerance}, {self.dtype}{flag})"


def _tensor(matrix: Any) -> torch.Tensor:
    """Lists become float64, not torch's default float32: 1e-60 is not zero."""
    if isinstance(matrix, torch.Tensor) or np.ma.is_masked(matrix):
        return dense(matrix, "the matrix")
    try:
        array = np.asarray(matrix)
        if array.dtype == object:
            raise TypeError("entries of different kinds")
        return torch.from_numpy(np.array(array))  # a copy has no negative strides
    except (TypeError, ValueError) as error:
        raise DataError(f"a {type(matrix).__name__} is not a matrix of numbers: {error}") from None


@dataclass(frozen=True, eq=False)
class Spectrum(ByValue):
    """Singular values of one matrix, descending, in float64, and the error they carry. Two are equal by value.

    Attributes
    ----------
    singular_values : numpy.ndarray
        float64, shape (min(rows, columns),), descending.
    shape : tuple of int
        (rows, columns) of the matrix.
    dtype : str
        What the matrix's entries were computed in.
    error_bound : float
        Bound on ‖E‖₂ of the matrix's own error; by Weyl's inequality every singular value moves by at most this.
        NaN when unknown.
    square_error : float
        Bound on the error of each σ² from squaring the matrix into its Gram matrix; 0 where no Gram was formed.

    Raises
    ------
    DataError
        When values are not finite, negative, or their number is not min(rows, columns).

    Examples
    --------
    >>> spectrum = Spectrum.of([[3.0, 0.0], [0.0, 1e-9]])
    >>> spectrum.rank("paper").value
    1
    """

    singular_values: NDArray[np.float64]
    shape: tuple[int, int]
    dtype: str = "float64"
    error_bound: float = 0.0
    square_error: float = 0.0

    def __post_init__(self) -> None:
        sigma = np.array(self.singular_values, dtype=np.float64)
        if not np.isfinite(sigma).all():
            raise DataError(f"{int((~np.isfinite(sigma)).sum())} of {sigma.size} singular values are NaN or infinite")
        if sigma.ndim != 1 or len(sigma) != min(self.shape):
            raise DataError(f"a {self.shape} matrix has {min(self.shape)} singular values; {sigma.shape} were given")
        if (sigma < 0).any():
            raise DataError(f"a singular value is negative: {sigma.min():g}")
        sigma = np.ascontiguousarray(np.sort(sigma)[::-1])  # torch takes no negative strides
        sigma.setflags(write=False)
        object.__setattr__(self, "singular_values", sigma)

    @classmethod
    def of(cls, matrix: Any, *, error_bound: float | None = None) -> Spectrum:
        """The spectrum of any tensor, array or nested list with two dimensions, by float64 ``svdvals``.

        The error bound is the decomposition's backward error, max(rows, columns) · 2⁻⁵² · σ₁: the entries are taken
        as exact. Give ``error_bound`` when they carry an error of their own; the two are added.
        """
        tensor = _tensor(matrix)
        if tensor.ndim != 2:
            raise DataError(f"a spectrum needs a matrix; this has shape {tuple(tensor.shape)}")
        dtype = dtype_name(tensor.dtype)
        values = tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64)
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).sum())
            raise DataError(f"the matrix has {bad} NaN or infinite entries; no rank can be given")
        shape = (int(values.shape[0]), int(values.shape[1]))
        sigma = torch.linalg.svdvals(values).numpy() if min(shape) else np.zeros(0)
        own = max(shape) * float(np.finfo(np.float64).eps) * float(sigma.max(initial=0.0))
        return cls(sigma, shape, dtype, error_bound=own + (error_bound or 0.0))

    @property
    def sigma_max(self) -> float:
        """σ₁, or 0 for a matrix with an empty side."""
        return float(self.singular_values[0]) if len(self.singular_values) else 0.0

    @property
    def is_zero(self) -> bool:
        """Whether every singular value is zero; the rank is then 0 under every tolerance."""
        return self.sigma_max == 0.0

    def rank(self, tolerance: ToleranceLike = "paper") -> RankEstimate:
        """Number of singular values at or above the tolerance's threshold (paper, Eq. 4), with bounds.

        With ‖E‖₂ ≤ e, every σ, and σ₁ inside τ = rtol·σ₁, is known to ±e, so the exact matrix's rank is between
        #{σ ≥ τ + (1 + rtol)e} and #{σ ≥ τ − (1 + rtol)e}. A zero matrix has rank 0.
        """
        tol = as_tolerance(tolerance)
        errors = np.array([self.error_bound]), np.array([self.square_error])
        found = count_ranks(self.singular_values[None], self.shape, self.dtype, *errors, tol)
        return RankEstimate(
            value=int(found.value[0]),
            lower=int(found.lower[0]),
            upper=int(found.upper[0]),
            threshold=float(found.threshold[0]),
            margin=float(found.margin[0]),
            tolerance=tol.name,
            dtype=self.dtype,
            certified=bool(found.certified[0]),
        )

    def stability_radius(self, tolerance: ToleranceLike = "paper", *, direction: Any = None) -> float:
        """Theorem 1's δ_max: no perturbation δ·D with δ < δ_max changes the numerical rank.

        δ_max = min_i |σ_i − τ| / ((1 + rtol)·‖D‖₂). ``direction`` is D as a matrix, or its spectral norm as a number;
        by default ‖D‖₂ = 1, so the radius is a spectral norm. Infinite for a matrix with an empty side, and for D = 0.

        A D of another shape than the matrix is a ``DataError``, a norm that is negative or not finite a ``UsageError``.
        """
        tol = as_tolerance(tolerance)
        rtol = tol.relative(self.shape, getattr(torch, self.dtype, torch.float32))
        tau = self.rank(tol).threshold
        if not len(self.singular_values):
            return math.inf
        if direction is None:
            norm = 1.0
        elif isinstance(direction, Real):
            norm = float(direction)
            if not math.isfinite(norm) or norm < 0:
                raise UsageError(
                    f"direction is {direction!r}; give D itself, or its norm as a finite number of at least 0"
                )
        else:
            moved = Spectrum.of(direction)
            if moved.shape != self.shape:
                raise DataError(
                    f"direction has shape {moved.shape}, but the matrix has {self.shape}; D must be added to it"
                )
            norm = moved.sigma_max
        distance = float(np.abs(self.singular_values - tau).min())
        return math.inf if norm == 0 else distance / ((1 + rtol) * norm)

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of σ/‖σ‖₁ (Roy and Vetterli 2007)."""
        return measures.effective_rank(self.singular_values)

    @property
    def stable_rank(self) -> float:
        """‖A‖²_F/‖A‖²₂ (Rudelson and Vershynin 2007)."""
        return measures.stable_rank(self.singular_values)

    @property
    def participation_ratio(self) -> float:
        """(Σσ²)²/Σσ⁴ (Gao et al. 2017)."""
        return measures.participation_ratio(self.singular_values)

    @property
    def rankme(self) -> float:
        """exp of the entropy of σ/‖σ‖₁ + 1e-7 (Garrido et al. 2023)."""
        return measures.rankme(self.singular_values)

    def srank(self, delta: float = 0.01) -> int:
        """Least k whose top-k singular values hold a share 1 − δ of their sum (Kumar et al. 2021)."""
        return measures.srank(self.singular_values, delta)

    @property
    def nuclear_norm(self) -> float:
        """Σσ."""
        return measures.nuclear_norm(self.singular_values)

    @property
    def condition_number(self) -> float:
        """σ_max/σ_min; infinite for a singular matrix, NaN for a zero one."""
        return measures.condition_number(self.singular_values)

    def __repr__(self) -> str:
        rows, columns = self.shape
        return (
            f"Spectrum({rows}×{columns}, {self.dtype}, σ₁={self.sigma_max:.4g}, "
            f"rank {self.rank('paper').value} (paper), effective rank {self.effective_rank:.2f})"
        )
