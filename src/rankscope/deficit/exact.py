"""Which classes are exact linear combinations of the others, decided for each from its own row, never from counts.

Class i is one where some null vector of the scaled columns has an entry at i: P_ii > 0, P the projector on the null
space. Fewer features than classes leave a null space, but a class that it does not touch depends on nothing: of weight
rows (1,0,0), (2,0,0), (0,1,0), (0,0,1) only the first two do. Columns are centred where the fit has an intercept.
"""

from __future__ import annotations

import torch

__all__ = ["exactly_dependent"]

_EPS = torch.finfo(torch.float64).eps
# P_ii below which the combination would need coefficients a thousand times as large as the class's own column
_TOUCHED = 1e-6
# Rounding errors of arithmetic on top of that of storing the logits: a network's sums are off by a few units
_UNITS = 8.0
# Rounding that leaves no two digits decides nothing
_COARSE = 1e-2


def exactly_dependent(
    eigenvalues: torch.Tensor, touch: torch.Tensor, level: torch.Tensor, roundoff: float
) -> torch.Tensor:
    """Whether each column is an exact combination of the others, (c,) Booleans, up to rounding of the logits.

    Parameters
    ----------
    eigenvalues : torch.Tensor
        Of the Gram matrix of the columns scaled to unit length (those of XXᵀ where there are fewer rows), ascending.
    touch : torch.Tensor
        Squared entries of its eigenvectors in the c columns, (k, c): eigenvector k at column j.
    level : torch.Tensor
        ‖z_j‖ before centring over that after, (c,): rounding of the logits is relative to what is stored.
    roundoff : float
        Unit roundoff of the logits' dtype.

    Examples
    --------
    >>> gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> values, vectors = torch.linalg.eigh(gram)
    >>> exactly_dependent(values, vectors.T.square(), torch.ones(3), 1e-16)
    tensor([ True,  True, False])
    """
    noise = _UNITS * roundoff * float(level.square().sum()) ** 0.5
    if noise > _COARSE:
        return torch.zeros(touch.shape[1], dtype=torch.bool, device=touch.device)
    count = touch.shape[1]
    floor = max(noise**2, 4 * count * _EPS * float(eigenvalues.max()))
    spanned = touch[eigenvalues > floor].sum(0)  # 1 − P_ii
    return 1 - spanned > _TOUCHED
