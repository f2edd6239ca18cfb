"""Custom operators (``torch.autograd.Function``) against the functions that they are a derivative of.

Forward mode by double backward and reverse mode both take a backward formula at its word, in every precision, so no
certificate sees a wrong one. A difference of the operator's own outputs does: in float64, at the very inputs that a
sample leads to, since the formula may be wrong on one branch, for one unit, or for one sample alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, _SingleLevelFunction

from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Runner
from rankscope.slicing import Sample
from rankscope.spectra import scaled_norm

__all__ = ["any_operators", "custom_operators", "wrongly_derived"]

_STEP = 1e-8  # of the input's size: rounding then leaves some 2e-8 of the slope
_LIMIT = 1e-6  # a wrong unit among 10⁵ makes some 3e-3
_NEARBY = 1e-3  # an input exactly at a kink has one slope on either side; a random point this close by has not
_TRIES = 4


_ROOM = 2**30  # bytes of copied arguments, weights among them, that are kept at once


@dataclass
class _Application:
    operator: type
    args: tuple[Any, ...]

    @property
    def bytes(self) -> int:
        return sum(a.nbytes for a in self.args if isinstance(a, Tensor))


class _Seen:
    """Applications by number: those from ``start`` on, as many as there is room for, and how many there were."""

    def __init__(self, start: int) -> None:
        self.start, self.count = start, 0
        self.kept: list[_Application] = []

    def take(self, operator: type, args: Sequence[Any]) -> None:
        place, self.count = self.count, self.count + 1
        if place != self.start + len(self.kept):  # one before, or one behind the first without room
            return
        held = sum(one.bytes for one in self.kept)
        if not self.kept or held + sum(a.nbytes for a in args if isinstance(a, Tensor)) <= _ROOM:
            self.kept.append(_Application(operator, tuple(_kept(a) for a in args)))


def custom_operators(outputs: Sequence[Tensor]) -> list[frozenset[type]]:
    """The custom operators that each tensor's graph goes through.

    >>> custom_operators([torch.ones(2, requires_grad=True) * 2])
    [frozenset()]
    """
    return [frozenset(any_operators([out])) for out in outputs]


def any_operators(outputs: Sequence[Tensor]) -> set[type]:
    """The same of all of them together, in one walk."""
    waiting, seen, found = [out.grad_fn for out in outputs], set(), set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            found.add(type(node)._forward_cls)  # type: ignore[attr-defined]
        waiting += [following for following, _ in node.next_functions]
    return found


def wrongly_derived(runner: Runner, sample: Sample) -> dict[int, str]:
    """The cut points that a custom operator leads to whose backward is not its derivative here, and its name.

    ``runner`` is hooked and of float64, ``sample`` one image in its dtype. An operator that cannot be looked at counts
    as wrong.
    """
    through = custom_operators(_recorded(runner, sample))
    operators = frozenset().union(*through)
    if not operators:
        return {}
    wrong, looked_at = set[type](), set[type]()
    count, done = 1, 0
    while done < count:  # what is applied late is kept in a pass of its own, where there is no room for all at once
        with _applied(operators, done) as seen:
            _recorded(runner, sample)
        if not seen.kept:
            break
        count, done = seen.count, done + len(seen.kept)
        looked_at |= {one.operator for one in seen.kept}
        wrong |= {one.operator for one in seen.kept if one.operator not in wrong and not _is_derivative(one)}
    wrong |= operators if done < count else operators - looked_at
    return {k: min(c.__name__ for c in held & wrong) for k, held in enumerate(through) if held & wrong}


def _recorded(runner: Runner, sample: Sample) -> tuple[Tensor, ...]:
    with reverse_mode(sample.x.device):
        x = sample.x.detach().clone().requires_grad_()
        return runner.outputs(sample, x * 1)


@contextmanager
def _applied(operators: frozenset[type], start: int) -> Iterator[_Seen]:
    """What each operator is applied to inside: its ``forward`` is watched, as ``apply`` may be bound elsewhere."""
    seen = _Seen(start)
    before = {operator: operator.__dict__.get("forward") for operator in operators}
    every: list[Any] = list(operators)
    forwards = {operator: operator.forward for operator in every}  # one may inherit another's, which is watched too

    def watched(operator: Any) -> Any:
        forward = forwards[operator]
        with_context = operator.setup_context is _SingleLevelFunction.setup_context

        def run(*args: Any) -> Any:
            own = args[1:] if with_context else args
            seen.take(operator, own)
            return forward(*args)

        return staticmethod(run)

    try:
        for operator in operators:
            operator.forward = watched(operator)  # type: ignore[attr-defined]
        yield seen
    finally:
        for operator, forward in before.items():
            if forward is None:
                del operator.forward  # type: ignore[attr-defined]
            else:
                operator.forward = forward  # type: ignore[attr-defined]


def _kept(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _is_derivative(one: _Application) -> bool:
    """Whether ⟨w, f(x + hv) − f(x − hv)⟩/2h is ⟨Jᵀw, v⟩ for random v and w, at x or at a point close by."""
    generator = torch.Generator().manual_seed(0xC05)
    places = [k for k, a in enumerate(one.args) if isinstance(a, Tensor) and a.requires_grad]
    inputs = [one.args[k].detach() for k in places]

    def like(x: Tensor) -> Tensor:
        """A random tensor of the size of ``x``."""
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        return noise * ((float(scaled_norm(x.double().reshape(-1), 0)) or 1.0) / max(x.numel(), 1) ** 0.5)

    def apply(values: Sequence[Tensor]) -> list[Tensor]:
        args = [a.clone() if isinstance(a, Tensor) else a for a in one.args]
        for k, value in zip(places, values, strict=True):
            args[k] = value * 1  # an operator may write into its input, which must not be a leaf
        made = one.operator.apply(*args)  # type: ignore[attr-defined]
        found = [m for m in (made if isinstance(made, tuple | list) else (made,)) if isinstance(m, Tensor)]
        return [m for m in found if m.is_floating_point()]

    try:
        for attempt in range(_TRIES):
            at = [x + (_NEARBY * like(x) if attempt else 0.0) for x in inputs]
            if _agree(apply, at, [like(x) for x in inputs], generator):
                return True
    except Exception:  # the operator's own code may raise anything; what cannot be looked at is not certified
        return False
    return False


def _agree(apply: Any, at: list[Tensor], direction: list[Tensor], generator: torch.Generator) -> bool:
    with torch.no_grad():
        ahead, behind = (apply([x + s * _STEP * v for x, v in zip(at, direction, strict=True)]) for s in (1.0, -1.0))
    with reverse_mode(at[0].device):
        leaves = [x.clone().requires_grad_() for x in at]
        made = apply(leaves)
        live = [k for k, m in enumerate(made) if m.requires_grad]
        weights = [torch.randn(m.shape, generator=generator, dtype=torch.float64).to(m) for m in made]
        grads = torch.autograd.grad([made[k] for k in live], leaves, [weights[k] for k in live], materialize_grads=True)
    slopes = [(a.double() - b.double()) / (2 * _STEP) for a, b in zip(ahead, behind, strict=True)]
    secant = sum(float((weights[k].double() * slopes[k]).sum()) for k in live)
    back = sum(float((g.double() * v.double()).sum()) for g, v in zip(grads, direction, strict=True))
    size = sum(float((weights[k].double() * slopes[k]).square().sum()) for k in live) ** 0.5
    pulled = sum(float((g.double() * v.double()).square().sum()) for g, v in zip(grads, direction, strict=True)) ** 0.5
    rounding = sum(float(ahead[k].double().square().sum()) for k in live) ** 0.5 * 1e-15 / _STEP
    return abs(secant - back) <= _LIMIT * max(size, pulled) + rounding
