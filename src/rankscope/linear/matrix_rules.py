"""Rules of matrix products: the chunk joins the rows of one large product wherever it can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rankscope.linear.regions import Region
from rankscope.linear.rule import Call, Derived, Rule

__all__ = ["MATRICES"]

aten = torch.ops.aten
_LOOP = 16  # up to this many matrices one product each, without copying the constant factor for every tangent


def _times_constant(tangent: Tensor, constant: Tensor) -> Tensor:
    """(chunk, n, k) times (k, m)."""
    chunk, n, k = tangent.shape
    return (tangent.reshape(chunk * n, k) @ constant).view(chunk, n, constant.shape[1])


def _along(constant: Tensor, dim: int, region: Region, at: int) -> Tensor:
    """The constant factor's part that meets the positions which a tangent's region has along its dimension ``at``."""
    shape = list(constant.shape)
    axes: list[Any] = [range(n) for n in shape]
    axes[dim] = region.axes[at]
    return Region(tuple(shape), tuple(axes)).cut(constant)


def _sum(parts: Sequence[tuple[Region, Tensor]], gives: Region) -> Tensor | None:
    """The sum of new tangents on several regions, which may be written to."""
    if not parts:
        return None
    (region, total), *rest = sorted(parts, key=lambda p: p[0] != gives)
    total = region.moved(total, gives)
    for other, value in rest:
        total = _add(total, gives, other, value)
    return total


def _add(total: Tensor, gives: Region, other: Region, value: Tensor) -> Tensor:
    place = gives.part(total, other)
    if place is None:
        return total.add_(other.moved(value, gives))
    place.add_(value)
    return total


def _product(left: int, right: int) -> Callable[[Call], Derived | None]:
    """Rule of args[left] @ args[right] of two matrices."""

    def derive(call: Call) -> Derived | None:
        if not call.distinct:
            return None
        args, kwargs, shape = call.args, call.kwargs, tuple(call.out.shape)
        a, b = args[left], args[right]
        bias = left == 1 and call.which[0]
        if bias and (args[0].shape != call.out.shape or float(kwargs.get("beta", 1)) != 1):
            return None
        if float(kwargs.get("alpha", 1)) != 1:
            return None
        depends = [i for i, w in enumerate(call.which) if w]
        regions = dict(zip(depends, call.regions, strict=True))
        made: dict[int, Region] = {}
        if bias:
            made[0] = regions[0]
        if left in regions:
            made[left] = Region(shape, (regions[left].axes[0], range(shape[1])))
            b = _along(b, 0, regions[left], 1)
        if right in regions:
            made[right] = Region(shape, (range(shape[0]), regions[right].axes[1]))
            a = _along(a, 1, regions[right], 0)
        gives = next(iter(made.values()))
        for region in made.values():
            gives = gives.union(region)

        def push(t: Sequence[Any], reuse: Sequence[bool]) -> Any:
            given = dict(zip(depends, t, strict=True))
            parts = []
            if given.get(left) is not None:
                parts.append((made[left], _times_constant(given[left], b)))
            if given.get(right) is not None:
                parts.append((made[right], torch.matmul(a, given[right])))
            total = _sum(parts, gives)
            if not bias or given[0] is None:
                return total
            if total is None:
                return made[0].moved(given[0], gives)
            return _add(total, gives, made[0], given[0])

        return Derived(push, gives)

    return derive


def _batched_product(call: Call) -> Derived | None:
    """(b, n, k) @ (b, k, m); either or both factors carry tangents."""
    if not call.distinct:
        return None
    shape = tuple(call.out.shape)
    a, b = call.args
    depends = [i for i, w in enumerate(call.which) if w]
    regions = dict(zip(depends, call.regions, strict=True))
    made: dict[int, Region] = {}
    if 0 in regions:
        made[0] = Region(shape, (regions[0].axes[0], regions[0].axes[1], range(shape[2])))
        b = _along(_along(b, 0, regions[0], 0), 1, regions[0], 2)
    if 1 in regions:
        made[1] = Region(shape, (regions[1].axes[0], range(shape[1]), regions[1].axes[2]))
        a = _along(_along(a, 0, regions[1], 0), 2, regions[1], 1)
    gives = next(iter(made.values()))
    for region in made.values():
        gives = gives.union(region)
    together = len(made) == 2 and made[0] == made[1]

    def push(t: Sequence[Any], reuse: Sequence[bool]) -> Any:
        given = dict(zip(depends, t, strict=True))
        left, right = given.get(0), given.get(1)
        if left is not None and right is not None and together:
            return _both(left, b, a, right)
        parts = []
        if left is not None:
            parts.append((made[0], _both(left, b, None, None)))
        if right is not None:
            parts.append((made[1], _both(None, None, a, right)))
        return _sum(parts, gives)

    return Derived(push, gives)


def _both(left: Tensor | None, b: Tensor | None, a: Tensor | None, right: Tensor | None) -> Tensor:
    """left @ b + a @ right, of tangents (chunk, batch, n, k) and constants (batch, k, m)."""
    if left is not None:
        assert b is not None
        (chunk, batch, n, _), m = left.shape, b.shape[2]
    else:
        assert right is not None
        assert a is not None
        (chunk, batch, _, m), n = right.shape, a.shape[1]
    if batch <= _LOOP and left is not None and right is not None and left.is_cuda and _rows_first(left, right):
        assert a is not None
        assert b is not None
        return _both_by_rows(left, b, a, right)
    if batch <= _LOOP:
        some = left if left is not None else right
        assert some is not None
        total = some.new_empty(batch, chunk, n, m)
        for i in range(batch):
            if left is not None:
                assert b is not None
                torch.mm(left[:, i].reshape(chunk * n, -1), b[i], out=total[i].view(chunk * n, m))
                if right is not None:
                    assert a is not None
                    total[i].baddbmm_(a[i].expand(chunk, -1, -1), right[:, i])
            else:
                assert right is not None
                assert a is not None
                torch.bmm(a[i].expand(chunk, -1, -1), right[:, i], out=total[i])
        return total.transpose(0, 1)
    flat: Tensor | None = None
    if left is not None:
        assert b is not None
        flat = torch.bmm(left.reshape(chunk * batch, n, -1), b.expand(chunk, -1, -1, -1).reshape(chunk * batch, -1, m))
    if right is not None:
        assert a is not None
        constant = a.expand(chunk, -1, -1, -1).reshape(chunk * batch, n, -1)
        varying = right.reshape(chunk * batch, -1, m)
        flat = torch.bmm(constant, varying) if flat is None else flat.baddbmm_(constant, varying)
    assert flat is not None
    return flat.view(chunk, batch, n, m)


def _rows_first(left: Tensor, right: Tensor) -> bool:
    """Whether one of the products can be of a whole chunk if the result's rows come before the chunk in memory."""
    return _joined(left[:, 0].transpose(0, 1), 0) or _joined(right[:, 0].transpose(0, 1), 1)


def _joined(tangent: Tensor, dim: int) -> bool:
    """Whether two neighbouring dimensions are one in memory."""
    return bool(tangent.stride(dim) == tangent.shape[dim + 1] * tangent.stride(dim + 1))


def _both_by_rows(left: Tensor, b: Tensor, a: Tensor, right: Tensor) -> Tensor:
    """The same, with the chunk behind the rows in memory: a @ right is then one product where its columns join.

    One product of a constant for every tangent, with few columns each, takes a GPU almost twice as long.
    """
    (chunk, batch, n, k), m = left.shape, b.shape[2]
    total = left.new_empty(batch, n, chunk, m)
    for i in range(batch):
        rows, columns = left[:, i].transpose(0, 1), right[:, i].transpose(0, 1)
        if _joined(rows, 0):
            torch.mm(rows.reshape(n * chunk, k), b[i], out=total[i].view(n * chunk, m))
        else:
            torch.bmm(rows, b[i].expand(n, -1, -1), out=total[i])
        if _joined(columns, 1):
            total[i].view(n, chunk * m).addmm_(a[i], columns.reshape(-1, chunk * m))
        else:
            total[i].transpose(0, 1).baddbmm_(a[i].expand(chunk, -1, -1), right[:, i])
    return total.permute(2, 0, 1, 3)


MATRICES: dict[Any, Rule] = {
    aten.mm.default: Rule(_product(0, 1)),
    aten.addmm.default: Rule(_product(1, 2)),
    aten.bmm.default: Rule(_batched_product),
}
