"""The leading eigenvalues of a map known through products, one by one, and a bound on all others: low ranks exactly.

The share of a few random probes says little of a rank of ten among 150,000. There the leading eigenvectors are taken
out instead. With Q orthonormal, H = QᵀAQ, R = AQ − QH and C = (I − QQᵀ)A(I − QQᵀ), and for every x > ‖C‖₂,

    #{eigenvalues of H ≥ x}  ≤  #{eigenvalues of A ≥ x}  ≤  #{eigenvalues of H ≥ x − ‖R‖₂²/(x − ‖C‖₂)}:

the left side by Cauchy's interlacing, the right one since A − x and its Schur complement H − x + Rᵀ(x − C)⁻¹R have as
many eigenvalues that are not negative (Haynsworth 1968), and 0 ≤ Rᵀ(x − C)⁻¹R ≤ ‖R‖₂²/(x − ‖C‖₂). Q need not be
accurate and C need not be known: its norm is bounded from Lanczos steps with fresh probes (``topvalue``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankscope.spectra.lanczos import LanczosProcess, SquaredMap
from rankscope.spectra.quadrature import gauss_rule
from rankscope.spectra.topvalue import largest_eigenvalue_bound

__all__ = ["Leading", "leading_part"]

_UNIT = 2.0**-53
_STEPS = 40  # of the fresh probes: their bound on ‖C‖₂ is then 1% above the largest Ritz value
_NEAR = 0.5  # Ritz vectors with at least this share of the squared threshold are taken out
_ALIKE = 1e-6  # squared length of what a Ritz vector adds to those at hand, below which it adds nothing
_MOST = 1_024  # vectors


@dataclass(frozen=True)
class Leading:
    """What was found of the leading eigenvalues, in the units of the products.

    Attributes
    ----------
    values : numpy.ndarray
        Eigenvalues of H, descending.
    residual : float
        ‖R‖_F.
    rest : float
        Bound on ‖C‖₂, which fails with probability at most the ``failure`` it was made for.
    error : float
        What rounding and products that are not symmetric may have done to H, beside the products' own error.
    """

    values: NDArray[np.float64]
    residual: float
    rest: float
    error: float


@dataclass
class _Deflated:
    """C, as products with columns."""

    operator: SquaredMap
    basis: Tensor

    @property
    def size(self) -> int:
        return self.operator.size

    @property
    def device(self) -> torch.device | str:
        return self.operator.device

    def again(self, columns: Tensor) -> Tensor:
        return _without(self.operator.again(_without(columns, self.basis)), self.basis)


def _without(columns: Tensor, basis: Tensor) -> Tensor:
    """The components outside the span of an orthonormal basis, twice, which leaves rounding alone."""
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    return columns


def leading_part(
    process: LanczosProcess,
    operator: SquaredMap,
    threshold: float,
    *,
    generator: torch.Generator,
    product_error: float,
    failure: float,
    products: int,
    budget: int,
) -> Leading | None:
    """The eigenvalues above ``threshold`` and a bound on all others that is below it; ``None`` where that takes more.

    Parameters
    ----------
    process : LanczosProcess
        Finished; its Ritz vectors are the first that are taken out. It cannot be extended afterwards.
    threshold : float
        In the units of the products.
    products : int
        The most products of single vectors.
    budget : int
        Bytes.
    """
    size, probes = operator.size, len(process.steps)
    basis = torch.zeros(size, 0, dtype=torch.float64, device=operator.device)
    images = basis.clone()
    used, rounds = 0, 0
    while True:
        chosen = _ritz_weights(process, _NEAR * threshold)
        count = sum(weights.shape[1] for weights in chosen)
        held = 8 * size * (2 * basis.shape[1] + 3 * count)
        if basis.shape[1] + count > _MOST or used + count > products or process.held + held > budget:
            return None
        new = _orthonormal(_combined(process, chosen), basis)
        process.forget()
        if rounds and not new.shape[1]:
            return None
        used += new.shape[1]
        images = torch.cat([images, *(operator(part) for part in new.split(probes, 1))], 1)
        basis = torch.cat([basis, new], 1)
        rounds += 1
        process = LanczosProcess(_Deflated(operator, basis), probes, generator)
        process.extend(min(_STEPS, size))
        used += probes * process.taken
        # the first round that succeeds ends the search, so the rounds share the failure probability
        rest = _largest(process, size, product_error, failure * 2.0**-rounds)
        if rest < threshold:
            return _read(basis, images, rest)


def _combined(process: LanczosProcess, weights: list[Tensor]) -> Tensor:
    return torch.cat([process.combined(probe, chosen) for probe, chosen in enumerate(weights)], 1)


def _ritz_weights(process: LanczosProcess, cut: float) -> list[Tensor]:
    """Of each probe, the Ritz vectors with a Ritz value of at least ``cut`` in its own basis, as columns."""
    found = []
    alpha, beta = process.alpha.numpy(), process.beta.numpy()
    for probe, steps in enumerate(process.steps.tolist()):
        beside = beta[probe, : steps - 1]
        values, vectors = np.linalg.eigh(np.diag(alpha[probe, :steps]) + np.diag(beside, 1) + np.diag(beside, -1))
        found.append(torch.from_numpy(np.ascontiguousarray(vectors[:, values >= cut])))
    return found


def _orthonormal(columns: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what columns of length 1 add to an orthonormal one."""
    columns = _without(columns, basis)
    values, vectors = torch.linalg.eigh(columns.T @ columns)
    kept = values > _ALIKE
    added = columns @ (vectors[:, kept] / values[kept].sqrt())
    return torch.linalg.qr(_without(added, basis))[0] if added.shape[1] else added


def _largest(process: LanczosProcess, size: int, product_error: float, failure: float) -> float:
    """Bound on the largest eigenvalue of C."""
    alpha, beta = process.alpha.numpy(), process.beta.numpy()
    tops = [gauss_rule(alpha[p, :m], beta[p, : m - 1])[0][0] for p, m in enumerate(process.steps.tolist())]
    top = max(float(max(tops)), 0.0)
    errors = product_error + process.removed.numpy() + 8 * _UNIT * (process.taken + math.sqrt(size)) * top
    squares = process.squared_norms.numpy()
    bound = largest_eigenvalue_bound(
        top,
        size=size,
        steps=int(process.steps.min()),
        probes=len(tops),
        failure=failure,
        forms=float((squares * (np.maximum(alpha[:, 0], 0.0) + errors)).max()),
        invariant=bool((beta[np.arange(len(tops)), process.steps.numpy() - 1] == 0).all()),
    )
    return bound + 2 * float(errors.max())


def _read(basis: Tensor, images: Tensor, rest: float) -> Leading:
    product = basis.T @ images
    matrix = (product + product.T) / 2
    values = torch.linalg.eigvalsh(matrix).flip(0).cpu().numpy()
    residual = float(torch.linalg.matrix_norm(_without(images, basis)))
    skew = float(torch.linalg.matrix_norm(product - product.T)) / 2
    rounding = 8 * _UNIT * (len(values) + math.sqrt(len(basis))) * float(np.abs(values).max())
    return Leading(values, residual, rest, skew + rounding)
