"""Tangent rules of matrix products: the chunk joins the rows of one large product wherever it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MATRIX_RULES"]

aten = torch.ops.aten
_LOOP = 16  # up to this many matrices one product each, without copying the constant factor for every tangent


def _times_constant(tangent: Tensor, constant: Tensor) -> Tensor:
    """(chunk, n, k) times (k, m)."""
    chunk, n, k = tangent.shape
    return (tangent.reshape(chunk * n, k) @ constant).view(chunk, n, constant.shape[1])


def _product(left: int, right: int) -> Callable[..., Any]:
    """Rule of args[left] @ args[right] of two matrices."""

    def make(args: Any, kwargs: Any, out: Tensor, which: Sequence[bool]) -> Any:
        a, b = args[left], args[right]
        scale = float(kwargs.get("alpha", 1))
        depends = [i for i, w in enumerate(which) if w]
        bias = left == 1 and which[0]
        if bias and (args[0].shape != out.shape or float(kwargs.get("beta", 1)) != 1):
            return None
        if scale != 1:
            return None

        def push(t: Sequence[Any], reuse: Sequence[bool]) -> Any:
            given = dict(zip(depends, t, strict=True)) if len(depends) == len(t) else None
            if given is None:  # one tensor stands in two places
                given = dict.fromkeys(depends, t[0])
            total = given.get(0) if bias else None
            if given.get(left) is not None:
                part = _times_constant(given[left], b)
                total = part if total is None else part.add_(total)
            if given.get(right) is not None:
                part = torch.matmul(a, given[right])
                total = part if total is None else total + part
            return total

        return push

    return make


def _batched_product(args: Any, kwargs: Any, out: Tensor, which: Sequence[bool]) -> Any:
    """(b, n, k) @ (b, k, m); either or both factors carry tangents."""
    a, b = args[0], args[1]
    batch, n, _ = a.shape
    m = b.shape[2]
    depends = [i for i, w in enumerate(which) if w]

    def push(t: Sequence[Any], reuse: Sequence[bool]) -> Any:
        given = dict(zip(depends, t, strict=True)) if len(depends) == len(t) else dict.fromkeys(depends, t[0])
        left: Any = given.get(0)
        right: Any = given.get(1)
        if left is None and right is None:
            return None
        chunk = (left if left is not None else right).shape[0]
        if batch <= _LOOP:
            total = a.new_empty(batch, chunk, n, m)
            for i in range(batch):
                if left is not None:
                    torch.mm(left[:, i].reshape(chunk * n, -1), b[i], out=total[i].view(chunk * n, m))
                    if right is not None:
                        total[i].baddbmm_(a[i].expand(chunk, -1, -1), right[:, i])
                else:
                    torch.bmm(a[i].expand(chunk, -1, -1), right[:, i], out=total[i])
            return total.transpose(0, 1)
        flat = None
        if left is not None:
            flat = torch.bmm(
                left.reshape(chunk * batch, n, -1), b.expand(chunk, -1, -1, -1).reshape(chunk * batch, -1, m)
            )
        if right is not None:
            constant = a.expand(chunk, -1, -1, -1).reshape(chunk * batch, n, -1)
            varying = right.reshape(chunk * batch, -1, m)
            flat = torch.bmm(constant, varying) if flat is None else flat.baddbmm_(constant, varying)
        assert flat is not None
        return flat.view(chunk, batch, n, m)

    return push


MATRIX_RULES: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _product(0, 1),
    aten.addmm.default: _product(1, 2),
    aten.bmm.default: _batched_product,
}
