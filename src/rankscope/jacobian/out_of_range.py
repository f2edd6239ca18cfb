"""What the products of a derivative may lose below the range of float64, which no wider precision can show.

Numbers that lie far enough from either end of the range lose nothing: three factors of one kernel, each above 2⁻³⁴⁰,
have a normal product. So a product is pushed once more and every operator on the way is looked at. Where one takes or
gives a number beyond that, each entry on the way may have lost half the smallest number there is, and what becomes of
it until a cut point is what cotangents are multiplied by on their way back. What was lost of a factor (the cube of a
small number, in the derivative of ``rsqrt``) is multiplied by a tangent before that, which may be great. A product that
is zero there may have lost all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rankscope._base.errors import MeasurementError, is_out_of_memory, raise_ours
from rankscope.linear.linear_map import LinearMap
from rankscope.slicing.operands import read_from
from rankscope.spectra import scaled_norms

__all__ = ["lost_below"]

_FAR = 2.0**-340  # three factors of one kernel then have a normal product
_MANY = {"pow", "prod", "cumprod", "_linalg_det"}  # more factors than that: zero from what is not zero
_MASK = torch.finfo(torch.float64).max  # or infinity: what hides something, and nothing is multiplied by
_DIVIDING = ("div", "norm")  # a great number makes a small one there
_LEAST = 2.0**-1074
_CHANCE = 2.0**10  # two random cotangents are both shorter than this along an entry with probability 10⁻⁶
_COTANGENTS = 2
_NOTHING = 2.0**-60  # of a product: less than its own rounding


def lost_below(own: LinearMap, tangents: Tensor) -> Tensor:
    """A bound of ‖(J − J₆₄)·g‖ by cut point and tangent, as far as it comes from numbers below the range.

    0 where no operator comes near the end of the range; NaN where what is lost cannot be bounded.
    """
    extent = _Extent(tangents)
    try:
        with extent:
            products = own.push(tangents)
    except Exception as error:  # some operators run in no such mode
        if is_out_of_memory(error):
            raise
        raise_ours(error)
        products, extent.entries = own.push(tangents), 0
    lengths = scaled_norms(products)
    if extent.entries and not bool(extent.near):
        return torch.zeros_like(lengths)
    places = list(range(len(products)))
    least = _smallest(tangents.device) * _CHANCE * max(extent.entries, 1) * extent.beside
    lost = (least * _gain(own, products, places)).expand(len(lengths), 1).clone()
    doubtful = (~(lost <= _NOTHING * lengths) & (lengths > 0)).any(1)
    if len(products) > 1:  # cut points before what enlarges do not suffer from it
        for place in doubtful.nonzero()[:, 0].tolist():
            lost[place] = least * _gain(own, products, [place])
    return lost.expand_as(lengths)


def _gain(own: LinearMap, products: Sequence[Tensor], places: list[int]) -> Tensor:
    """The largest entry of random cotangents of some cut points anywhere on their way back; NaN where none go back."""
    generator = torch.Generator().manual_seed(0)
    cotangents = []
    for place, product in enumerate(products):
        shape = _COTANGENTS, product.shape[1]
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64) if place in places else torch.zeros(shape)
        cotangents.append(drawn.to(product.device, product.dtype))
    seen = _Largest(products[0])
    try:
        own.pull(cotangents, watching=seen)
    except MeasurementError:
        return products[0].new_full((), torch.nan, dtype=torch.float64)
    return torch.where(torch.isfinite(seen.top), seen.top.clamp(min=1.0), torch.nan)


def _smallest(device: torch.device) -> float:
    """The least number that arithmetic gives there."""
    tiny = torch.finfo(torch.float64).tiny
    return _LEAST if float(torch.full((), tiny, dtype=torch.float64, device=device) / 2) else tiny


class _Extent(TorchDispatchMode):
    """Whether an operator takes or gives a number near the end of the range, and how many entries they all give.

    ``beside`` is the largest number that an operator takes together with one that is, or with what it became.
    """

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.entries = 0
        self.near = torch.zeros((), dtype=torch.bool, device=like.device)
        self.beside = torch.ones((), dtype=torch.float64, device=like.device)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # by memory: whether it is near the end, its largest number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if getattr(func, "is_view", False):
            return out
        name = func.name().split("::")[-1].split(".")[0].rstrip("_")
        # what it writes to may be memory that nothing has filled
        taken, given = _numbers(read_from(func, args, kwargs or {})), _numbers(out)
        if "empty" in name:  # whatever lay in memory
            return out
        self.entries += sum(t.numel() for t in given)
        near, top = torch.zeros_like(self.near), torch.ones_like(self.beside)
        for t in taken:
            place = t.untyped_storage().data_ptr()
            if place not in self._seen:  # weights, and the point itself
                self._seen[place] = self._look(t)
            near, top = near | self._seen[place][0], torch.maximum(top, self._seen[place][1])
        self.beside = torch.where(near, torch.maximum(self.beside, top), self.beside)
        if any(part in name for part in _DIVIDING):
            for t in taken:
                near = near | self._here((t.abs() > 1 / _FAR).any())
        if name in _MANY:
            for t in given:
                near = near | self._here((t == 0).any())
        found = [self._look(t) for t in given]
        for t, (small, largest) in zip(given, found, strict=True):
            # its zeros may be what became of a number
            self._seen[t.untyped_storage().data_ptr()] = small | near & self._here((t == 0).any()), largest
            self.near = self.near | small
        self.near = self.near | near
        return out

    def _look(self, t: Tensor) -> tuple[Tensor, Tensor]:
        size = t.abs()
        hidden = torch.where(size < _MASK, size, 0.0)
        return self._here(((size < _FAR) & (size > 0)).any()), self._here(hidden.amax()).double()

    def _here(self, found: Tensor) -> Tensor:
        return found.to(self.near.device)


class _Largest(TorchDispatchMode):
    """The largest number that operators give; NaN counts as infinite."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.top = torch.zeros((), dtype=torch.float64, device=like.device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in _numbers(out):
            top = t.abs().amax().to(self.top.device, torch.float64)
            self.top = torch.maximum(self.top, torch.where(top.isnan(), torch.inf, top))
        return out


def _numbers(found: Any) -> list[Tensor]:
    """Tensors of numbers that lie in memory; the zero tensors of forward mode do not."""
    tensors = [t for t in tree_leaves(found) if isinstance(t, Tensor) and t.layout is torch.strided and t.numel()]
    kinds = [t for t in tensors if t.is_floating_point() or t.is_complex()]
    return [t for t in kinds if not t.is_meta and not t._is_zerotensor()]
