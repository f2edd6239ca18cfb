"""Every singular value of a map that is known only through products.

Products with unit vectors give the map's rows or columns, whichever are fewer. Where those fit the memory their float64
Gram matrix follows, and the error of each product is that of a singular value; otherwise products with JᵀJ or JJᵀ give
that matrix itself, at twice the products, and their error is that of a squared singular value.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from rankscope.spectra.certificate import norm_bound
from rankscope.spectra.gram import spectrum_of_gram
from rankscope.spectra.lanczos import SquaredMap, product_error
from rankscope.spectra.scale import exponent_near, times_two_to
from rankscope.spectra.spectrum import Spectrum

__all__ = ["CHUNK", "exact_bytes", "exact_spectrum", "matrix_bytes"]

CHUNK = 256  # unit vectors at once
_BLOCK = 2**24  # entries that are converted to float64 at once


def exact_bytes(size: int) -> int:
    """What the dense float64 Gram matrix, the copy that its eigenvalues need, and a chunk of columns take."""
    return 8 * size * (2 * size + 3 * min(CHUNK, size))


def matrix_bytes(shape: tuple[int, int], dtype: torch.dtype) -> int:
    """What the whole matrix takes beside its Gram matrix and a chunk of its rows or columns."""
    size, other = min(shape), max(shape)
    return exact_bytes(size) + dtype.itemsize * size * other + 16 * min(CHUNK, size) * other + 8 * _BLOCK


def exact_spectrum(
    operator: SquaredMap, *, exact: SquaredMap | None = None, error_probes: int = 6, budget: int | None = None
) -> Spectrum:
    """Every singular value, by the whole matrix where it fits ``budget`` bytes, by squared products beyond.

    Float32 products without ``exact`` give a spectrum that is not certified.
    """
    if budget is None or matrix_bytes(operator.shape, operator.dtype) <= budget:
        return _of_matrix(operator, exact, error_probes)
    return _of_squares(operator, exact, error_probes)


def _of_matrix(operator: SquaredMap, exact: SquaredMap | None, error_probes: int) -> Spectrum:
    """A is the side with fewer products: J where it has fewer columns, Jᵀ otherwise. Its singular values are J's."""
    size, other = operator.size, max(operator.shape)
    matrix = torch.empty(other, size, dtype=operator.dtype, device=operator.device)
    for start in range(0, size, CHUNK):
        unit = _unit_vectors(operator, start)
        matrix[:, start : start + unit.shape[1]] = operator.one_way(unit)
    exponent = -int(exponent_near(matrix))
    drawn = torch.randn(size, error_probes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn.to(operator.device)
    gram = torch.zeros(size, size, dtype=torch.float64, device=operator.device)
    found = torch.empty(other, error_probes, dtype=torch.float64, device=operator.device)
    step = max(_BLOCK // max(size, 1), 1)
    for start in range(0, other, step):
        part = times_two_to(matrix[start : start + step], exponent)
        gram.addmm_(part.T, part)
        found[start : start + step] = part @ drawn
    error = operator.presumed_error
    if exact is not None:
        error = norm_bound(found - times_two_to(exact.one_way(drawn, once=True).to(found), exponent))
    return spectrum_of_gram(
        gram,
        operator.shape,
        dtype=operator.precision,
        error_bound=float(np.ldexp(error, -exponent)),
        summed=other,
        exponent=-exponent,
    )


def _of_squares(operator: SquaredMap, exact: SquaredMap | None, error_probes: int) -> Spectrum:
    size = operator.size
    generator = torch.Generator().manual_seed(0)
    operator.rescale(torch.randn(size, 1, generator=generator, dtype=torch.float64).to(operator.device))
    gram = torch.empty(size, size, dtype=torch.float64, device=operator.device)
    for start in range(0, size, CHUNK):
        unit = _unit_vectors(operator, start)
        gram[:, start : start + unit.shape[1]] = operator(unit)
    skew = float(torch.linalg.matrix_norm(gram - gram.T)) / 2 if size else 0.0
    gram = (gram + gram.T) / 2
    error = operator.presumed_error
    if exact is not None:
        error = product_error(operator, exact, error_probes, generator)
    found = spectrum_of_gram(
        gram,
        operator.shape,
        dtype=operator.precision,
        error_bound=math.nan if math.isnan(error) else 0.0,
        summed=max(operator.shape),
        exponent=0,
    )
    exponent = operator.exponent or 0
    square = found.square_error + (0.0 if math.isnan(error) else error) + skew
    # |σ̂² − σ²| ≤ e also bounds |σ̂ − σ| by √e; the squares themselves may be no numbers in the units of σ
    extreme = abs(exponent) > 400
    own = float(np.ldexp(math.sqrt(square), exponent)) if extreme else 0.0
    return Spectrum(
        np.ldexp(found.singular_values, exponent),
        operator.shape,
        found.dtype,
        error_bound=found.error_bound + own,
        square_error=0.0 if extreme else float(np.ldexp(square, 2 * exponent)),
    )


def _unit_vectors(operator: SquaredMap, start: int) -> Tensor:
    width = min(CHUNK, operator.size - start)
    unit = torch.zeros(operator.size, width, dtype=torch.float64, device=operator.device)
    unit[range(start, start + width), range(width)] = 1.0
    return unit
