"""Fused kernels by their plain formulas: some have no forward-mode derivative, some none for float64.

Attention has a formula of plain products in torch. The products of a mixture of experts, a slice of the tokens for each
expert, have none (``torch._grouped_mm``: no forward mode, no float64 kernel), so they are computed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, dtype
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["grouped_products", "plain_kernels"]


def grouped_products(a: Tensor, b: Tensor, offs: Tensor | None = None, out_dtype: dtype | None = None) -> Tensor:
    """What ``torch.nn.functional.grouped_mm`` computes, one group after the other.

    ``offs`` holds each group's end along the dimension that the groups share out: the rows of ``a`` (S, K) beside ``b``
    (G, K, N), the columns of ``b`` (K, S) beside ``a`` (G, M, K), or the summed dimension of ``a`` (M, S) and ``b``
    (S, N), which gives (G, M, N). Without it both hold the groups along their first dimension. What lies behind the
    last end belongs to no group: torch leaves it undefined, here it is zero.

    >>> a, b = torch.arange(6.0).reshape(3, 2), torch.stack([torch.eye(2), 10 * torch.eye(2)])
    >>> grouped_products(a, b, torch.tensor([1, 3], dtype=torch.int32)).tolist()
    [[0.0, 1.0], [20.0, 30.0], [40.0, 50.0]]
    """
    if offs is None:
        made = a @ b
    else:
        ends = offs.tolist()  # one wait for the device
        for groups in (part.shape[0] for part in (a, b) if part.ndim == 3):
            if len(ends) != groups:
                raise RuntimeError(f"grouped_mm: {len(ends)} ends of groups for {groups} matrices")
        slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        if a.ndim == 2 and b.ndim == 2:
            made = torch.stack([a[:, s] @ b[s] for s in slices])
        elif a.ndim == 2:
            rest = a.new_zeros(len(a) - ends[-1], b.shape[-1])
            made = torch.cat([*(a[s] @ b[g] for g, s in enumerate(slices)), rest])
        else:
            rest = b.new_zeros(a.shape[-2], b.shape[-1] - ends[-1])
            made = torch.cat([*(a[g] @ b[:, s] for g, s in enumerate(slices)), rest], 1)
    return made if out_dtype is None else made.to(out_dtype)


def _form(
    input: Tensor,
    weight: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, dtype | None]:
    """A call's arguments in order, by transformers' names; torch calls the second ``mat2``."""
    return input, weight, offs, bias, out_dtype


def _by_groups(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*given: Any, **named: Any) -> Tensor:
        try:
            a, b, offs, bias, out_dtype = _form(*given, **{"weight" if k == "mat2" else k: v for k, v in named.items()})
        except TypeError:  # torch's own word on a call of another form
            return kernel(*given, **named)
        several = offs is not None and torch._C._functorch.is_batchedtensor(offs)
        if bias is not None or several:  # torch's own word on a bias; and groups of several sizes at once
            return kernel(*given, **named)
        return grouped_products(a, b, offs, out_dtype)

    return run


def _grouped_kernels() -> list[tuple[Any, str]]:
    """Where the kernels stand that multiply by groups: torch's, and that of transformers where torch's cannot run."""
    places = [(torch, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback")]
    return [(home, name) for home, name in places if hasattr(home, name)]


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Inside, attention and products by groups are computed by formulas that torch differentiates in every dtype."""
    kernels: list[tuple[Any, str, Any]] = [(home, name, getattr(home, name)) for home, name in _grouped_kernels()]
    with sdpa_kernel([SDPBackend.MATH]):
        try:
            for home, name, kernel in kernels:
                setattr(home, name, _by_groups(kernel))
            yield
        finally:
            for home, name, kernel in kernels:
                setattr(home, name, kernel)
