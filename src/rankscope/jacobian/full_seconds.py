"""How long one sample is expected to take: the counted work at the prices of a few timed products. It decides nothing.

Three cut points of each way are timed; between them the price of a product is taken to grow evenly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankscope._base.errors import RankscopeError
from rankscope.jacobian.full_plan import Plan
from rankscope.jacobian.full_work import Compared, Work, work_of
from rankscope.jacobian.products import Products, unchecked_products
from rankscope.jacobian.shared_passes import SharedPasses
from rankscope.spectra.certificate import norm_bound
from rankscope.spectra.lanczos import SquaredMap
from rankscope.spectra.matrix_free import may_be_too_rough, too_rough

__all__ = ["expected_seconds"]

_AT_ONCE = {True: 256, False: 32}  # unit vectors that the exact way is timed with; by whether it is a GPU
_RATIO = 2.0  # float64 to float32, where a few products of the one beside many of the other are not worth timing
_SIDE, _LENGTH, _BLOCK = 512, 2**14, 32  # of the linear algebra that is timed


@dataclass(frozen=True)
class _Price:
    """Seconds of a single product in both precisions, and whether Lanczos steps are expected to need float64."""

    own: float
    other: float
    precise: bool = False
    once: float = 0.0
    """Of recording a product, where a GPU replays it."""

    def of(self, work: Work) -> float:
        return self.once + self.own * work.own.total + self.other * work.other.total


def expected_seconds(plan: Plan, passes: SharedPasses, compared: Compared) -> float:
    """Of all cut points of one sample; 0 where no product can be timed."""
    prices: dict[int, _Price] = {}
    for way in ("exact", "lanczos"):
        places = [place for place, each in enumerate(plan.ways) if each == way]
        prices |= _between({place: _timed(plan, passes, place, compared) for place in _three(places)}, places)
    work = {
        place: work_of(plan, place, compared, precise=price.precise) for place, price in prices.items()
    }  # what cannot be timed is measured, or refused, later
    seconds = sum(price.of(work[place]) for place, price in prices.items())
    return seconds + sum(_algebra(plan, work, passes.derivative.settings.device))


def _three(places: Sequence[int]) -> list[int]:
    """The first, one in the middle and the last."""
    return sorted({places[0], places[len(places) // 2], places[-1]}) if places else []


def _between(timed: dict[int, _Price | None], places: Sequence[int]) -> dict[int, _Price]:
    known = {place: price for place, price in timed.items() if price is not None}
    if not known:
        return {}
    at = list(known)
    own, other, once = (
        np.interp(list(places), at, [getattr(price, name) for price in known.values()])
        for name in ("own", "other", "once")
    )
    precise = [known[min(at, key=lambda k: abs(k - place))].precise for place in places]
    made = zip(places, own, other, precise, once, strict=True)
    return {place: _Price(float(a), float(b), c, float(d)) for place, a, b, c, d in made}


def _timed(plan: Plan, passes: SharedPasses, place: int, compared: Compared) -> _Price | None:
    """``None`` where the products fail, which is said later."""
    try:
        work = unchecked_products(passes, place)
        found = passes.exact(place) if compared is Compared.PROBES else None
        other = None if found is None else Products(found[0], work.sizes, passes.budget, passes.chunk(exact=True))
        own = work.squared()
        if plan.ways[place] == "exact":
            return _exactly(own, None if other is None or not plan.doubled(place) else other.squared())
        return _by_steps(plan, own, None if other is None else other.squared())
    except (RuntimeError, RankscopeError):
        return None


def _exactly(own: SquaredMap, other: SquaredMap | None) -> _Price:
    """By products with unit vectors, in the precision that most of them are in."""
    bulk = own if other is None else other
    device = torch.device(bulk.device)
    width = min(_AT_ONCE[device.type == "cuda"], bulk.size)
    unit = torch.eye(bulk.size, width, dtype=torch.float64, device=device)
    bulk.one_way(unit[:, :1])
    price = _seconds(lambda: bulk.one_way(unit), device) / max(width, 1)
    return _Price(price, price * _RATIO) if other is None else _Price(price / _RATIO, price)


def _by_steps(plan: Plan, own: SquaredMap, other: SquaredMap | None) -> _Price:
    """By products with as many columns as there are probes. Those also show about how far the precisions differ."""
    device, probes, tolerance = torch.device(own.device), plan.settings.probes, plan.asked.tolerance
    drawn = torch.randn(own.size, probes, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    pushed = own(drawn)
    basis = torch.linalg.qr(pushed)[0]
    price, once, product = _replayed(own, basis)
    if other is None or not may_be_too_rough(own.shape, own.dtype, tolerance):
        return _Price(price, price * _RATIO, once=once)
    other.exponent = own.exponent
    error = norm_bound(pushed[:, :1] - other(drawn[:, :1]))
    top = float(torch.linalg.eigvalsh(basis.T @ product).max())
    if too_rough(error, top, own, tolerance):
        again, recorded, _ = _replayed(other, basis)
        return _Price(price, again, precise=True, once=once + recorded)
    return _Price(price, price * _RATIO, once=once)


def _replayed(operator: SquaredMap, columns: Tensor) -> tuple[float, float, Tensor]:
    """Seconds of a single product there or back, those of recording it, and the product."""
    device, once = torch.device(operator.device), 0.0
    operator.rescale(columns)
    if operator.record is not None:
        once = _seconds(lambda: (operator.again(columns), operator.again(columns)), device)  # the second records
    product: list[Tensor] = []
    price = _seconds(lambda: product.append(operator.again(columns)), device)
    return price / columns.shape[1] / 2, once, product[0]


def _algebra(plan: Plan, work: dict[int, Work], device: torch.device) -> list[float]:
    """Seconds of the Gram matrices, their eigenvalues and the orthogonalisation of Lanczos vectors."""
    exact = [each for each in work.values() if each.side]
    steps = {place: each.steps for place, each in work.items() if each.steps}
    found = [0.0]
    if exact:
        side = min(_SIDE, max(each.side for each in exact))
        a = torch.rand(side, side, dtype=torch.float64, device=device)
        gram = a.T @ a
        formed = _seconds(lambda: gram.addmm_(a.T, a), device) / side**3
        torch.linalg.eigvalsh(gram)
        solved = _seconds(lambda: torch.linalg.eigvalsh(gram), device) / side**3
        found += [formed * each.side**2 * each.rows + solved * each.side**3 for each in exact]
    if steps:
        probes, length = plan.settings.probes, min(_LENGTH, max(plan.sizes))
        block = torch.zeros(probes, _BLOCK, length, dtype=torch.float64, device=device)
        one = torch.zeros(probes, length, 1, dtype=torch.float64, device=device)

        def orthogonalised() -> Tensor:
            return one - torch.bmm(block.transpose(1, 2), torch.bmm(block, one))

        orthogonalised()
        each = 2 * _seconds(orthogonalised, device) / max(length, 1)  # two times a step
        for place, taken in steps.items():
            blocks = sum(count // _BLOCK * (count // _BLOCK + 1) / 2 * _BLOCK
                         + count % _BLOCK * (count // _BLOCK + 1) for count in taken)  # fmt: skip
            found.append(each * plan.sizes[place] * blocks)
    return found


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = _now(device)
    work()
    return _now(device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
