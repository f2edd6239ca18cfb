"""J·T of a function of one sample for many tangents T, by the first way that works."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from rankscope._base.errors import MeasurementError, RankscopeError

__all__ = ["METHODS", "choose_method", "products", "value"]

Function = Callable[[Tensor], Tensor]
_ROWS = 64
METHODS = ("vmap(jvp)", "jvp one by one", "vmap(vjp) of every row")


def _forward(f: Function, x: Tensor, tangents: Tensor) -> Tensor:
    def push(t: Tensor) -> Tensor:
        return jvp(f, (x,), (t,))[1]

    return vmap(push, randomness="same")(tangents)


def _one_by_one(f: Function, x: Tensor, tangents: Tensor) -> Tensor:
    return torch.stack([jvp(f, (x,), (t,))[1] for t in tangents])


def _reverse(f: Function, x: Tensor, tangents: Tensor) -> Tensor:
    output, pull = vjp(f, x)[:2]

    def row(r: Tensor) -> Tensor:
        return pull(r)[0]

    flat = tangents.flatten(1)
    out = flat.new_empty(len(flat), output.numel())
    for start in range(0, output.numel(), _ROWS):
        stop = min(start + _ROWS, output.numel())
        rows = torch.zeros(stop - start, output.numel(), dtype=output.dtype, device=output.device)
        rows.diagonal(start).fill_(1.0)
        pulled = vmap(row, randomness="same")(rows.view(-1, *output.shape))
        out[:, start:stop] = flat @ pulled.flatten(1).T
    return out.view(-1, *output.shape)


_HOW = dict(zip(METHODS, (_forward, _one_by_one, _reverse), strict=True))


def choose_method(f: Function, x: Tensor) -> str:
    """The first of ``METHODS`` that two tangents pass; raises ``MeasurementError`` when none does."""
    failures = []
    for name, how in _HOW.items():
        try:
            how(f, x, torch.stack([x, -x]))
        except Exception as error:  # whatever a component's code raises: it did run outside of the transforms
            cause = error.__cause__ if isinstance(error, RankscopeError) and error.__cause__ else error
            failures.append(f"{name}: {(str(cause).splitlines() or [type(cause).__name__])[0]}")
            continue
        return name
    raise MeasurementError("no way of differentiating works here; " + "; ".join(failures))


def value(method: str, f: Function, x: Tensor) -> Tensor:
    """f(x) as the method itself evaluates it: a random mask drawn inside is the one that its products saw."""

    def primal(t: Tensor) -> Tensor:
        return jvp(f, (x,), (t,))[0]

    return vmap(primal, randomness="same")(x[None])[0] if method == METHODS[0] else f(x)


def products(method: str, f: Function, x: Tensor, tangents: Iterator[Tensor]) -> Iterator[Tensor]:
    """For each chunk of tangents (k, *x.shape) the products J·t as a matrix (k, outputs)."""
    # reverse mode computes every row of J, so it takes all tangents at once
    for chunk in [torch.cat(list(tangents))] if method == METHODS[2] else tangents:
        out = _HOW[method](f, x, chunk)
        yield out.reshape(len(chunk), -1)
