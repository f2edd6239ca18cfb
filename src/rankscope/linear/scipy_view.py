"""A Jacobian's products as SciPy's ``LinearOperator``, which iterative solvers and ``svds`` take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankscope.linear.matrix import Matrix

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["linear_operator"]

_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
Product = Callable[[torch.Tensor], torch.Tensor]


def linear_operator(matrix: Matrix, push: Product, pull: Product) -> LinearOperator:
    """``push`` and ``pull`` multiply a matrix of columns by J and by Jᵀ."""
    from scipy.sparse.linalg import LinearOperator

    dtype = _DTYPES[matrix.map.dtype]

    def product(multiply: Product, array: Any) -> NDArray[Any]:
        array = np.asarray(array)
        if np.iscomplexobj(array):  # J is real
            whole = product(multiply, array.real) + 1j * product(multiply, array.imag)
            return np.asarray(whole)
        width = math.prod(array.shape[1:])  # SciPy may ask for no columns
        columns = array.reshape(len(array), width).astype(dtype)  # a copy, since SciPy may overwrite its own
        found = multiply(torch.from_numpy(columns).to(matrix.map.device)).cpu().numpy()
        return np.asarray(found.reshape(len(found), *array.shape[1:]))

    make: Any = LinearOperator  # the class returns one of several of its own
    found: LinearOperator = make(
        dtype=dtype,
        shape=matrix.shape,
        matvec=lambda v: product(push, v),
        rmatvec=lambda u: product(pull, u),
        matmat=lambda v: product(push, v),
        rmatmat=lambda u: product(pull, u),
    )
    return found
