"""Keep float32 and float64 on the same linear piece of a network, and count the units where rounding decides the piece.

A ReLU whose input lies within rounding of zero falls to either side. The float64 network then is another linear map,
and the difference of the two Jacobians says nothing of rounding in the derivative. So the certificate's float64 pass
takes the inputs that the two passes have on different pieces from the float32 pass (their tangents stay float64), and
the units that had to be moved across their kink are counted by themselves.

Only those units are moved. What rounding did to the others belongs to the error that the certificate measures: a
square root behind a clamp is steep, and its derivative shows it. Of a maximum, likewise, only the choice is taken over
(``choices``), never the value; a choice that float64 makes otherwise counts as one unit. What is in neither list, and
what cannot be decided, keeps the piece that its own precision gives it, so that the error holds the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rankscope.linear.choices import CHOOSING, Choice, given

__all__ = ["SamePiece"]

_Bounds = tuple[float | Tensor | None, ...]


def _at_zero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bounds:
    return (0.0,)


def _of_hardtanh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bounds:
    return given(args, kwargs, 0, "min_val", -1.0), given(args, kwargs, 1, "max_val", 1.0)


def _of_clamp(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bounds:
    return given(args, kwargs, 0, "min"), given(args, kwargs, 1, "max")


def _of_min(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bounds:
    return (given(args, kwargs, 0, "min"),)


def _of_max(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bounds:
    return (given(args, kwargs, 0, "max"),)


# where each function has its kinks, from what it is called with beside its input
_KINKS: dict[Callable[..., Any], Callable[[tuple[Any, ...], dict[str, Any]], _Bounds]] = {
    functional.relu: _at_zero,
    functional.relu_: _at_zero,
    functional.relu6: lambda args, kwargs: (0.0, 6.0),
    functional.leaky_relu: _at_zero,
    functional.leaky_relu_: _at_zero,
    functional.hardtanh: _of_hardtanh,
    functional.hardtanh_: _of_hardtanh,
    functional.hardswish: lambda args, kwargs: (-3.0, 3.0),
    functional.hardsigmoid: lambda args, kwargs: (-3.0, 3.0),
    functional.threshold: lambda args, kwargs: (given(args, kwargs, 0, "threshold"),),
    functional.prelu: _at_zero,
    torch.relu: _at_zero,
    torch.relu_: _at_zero,
    torch.clamp: _of_clamp,
    torch.clamp_min: _of_min,
    torch.clamp_max: _of_max,
    torch.clip: _of_clamp,
    torch.abs: _at_zero,
    Tensor.relu: _at_zero,
    Tensor.relu_: _at_zero,
    Tensor.clamp: _of_clamp,
    Tensor.clamp_: _of_clamp,
    Tensor.clamp_min: _of_min,
    Tensor.clamp_min_: _of_min,
    Tensor.clamp_max: _of_max,
    Tensor.clamp_max_: _of_max,
    Tensor.clip: _of_clamp,
    Tensor.clip_: _of_clamp,
    Tensor.abs: _at_zero,
}
_KINKED = frozenset([*_KINKS, *CHOOSING])
# where the functions that can work in place without a name that says so take that argument
_IN_PLACE = {
    functional.relu: 1,
    functional.relu6: 1,
    functional.hardswish: 1,
    functional.hardsigmoid: 1,
    functional.leaky_relu: 2,
    functional.hardtanh: 3,
    functional.threshold: 3,
}


def _works_in_place(func: Any, args: Any, kwargs: Any) -> bool:
    place = _IN_PLACE.get(func)
    if place is None:
        return bool(func.__name__.endswith("_"))
    return bool(given(args, kwargs, place, "inplace", False))


@dataclass(frozen=True)
class _Called:
    """A piecewise linear function and what it is called with beside its input."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apart(self, x: Tensor, wanted: Tensor) -> Tensor | None:
        """Where the two inputs lie on different sides of a kink, or only one exactly at it.

        By comparisons, each in its own precision: arithmetic rounds, and hard-swish bends between its kinks too.
        ``None`` where a tensor of bounds has more entries than the input.
        """
        apart = torch.zeros_like(x, dtype=torch.bool)
        for bound in _KINKS[self.func](self.args, self.kwargs):
            if bound is not None:
                apart = apart | ((x > bound) != (wanted > bound)) | ((x < bound) != (wanted < bound))
        return apart if apart.shape == x.shape else None


_Move = Tensor | Choice | None
"""What to add to a function's input, or the choice to make in its place."""


class _Visit(TorchFunctionMode):
    """Calls ``visit(position, call, input)`` before every piecewise linear function and does what it says."""

    def __init__(self, visit: Callable[[int, _Called, Tensor], _Move]) -> None:
        super().__init__()
        self.visit = visit
        self.position = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _KINKED and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            move = self.visit(self.position, _Called(func, tuple(args[1:]), kwargs), args[0])
            self.position += 1
            if isinstance(move, Choice):
                return move.of(args[0])
            if move is not None:
                first = args[0].add_(move) if _works_in_place(func, args, kwargs) else args[0] + move
                args = (first, *args[1:])
        return func(*args, **kwargs)


class SamePiece:
    """Record a forward pass in one precision, align one in another to it, replay the alignment under transforms."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.moves: list[_Move] = []
        self.flips: Tensor | None = None
        self.apart: Tensor | None = None

    def by_image(self, images: int, alone: Sequence[torch.Size]) -> list[tuple[Tensor, bool]] | None:
        """What a batch recorded, with a first dimension that counts images where it is of the images (``True``).

        ``alone`` are the shapes of one image alone; ``None`` where the batch does not fit them.
        """
        if len(alone) != len(self.inputs):
            return None
        found: list[tuple[Tensor, bool]] = []
        for whole, shape in zip(self.inputs, alone, strict=True):
            if whole.shape == shape:  # not of the images, say weights
                found.append((whole, False))
                continue
            differ = [d for d, (n, m) in enumerate(zip(whole.shape, shape, strict=False)) if n != m]
            if whole.ndim != len(shape) or len(differ) != 1 or whole.shape[differ[0]] != images * shape[differ[0]]:
                return None
            found.append((whole.unflatten(differ[0], (images, shape[differ[0]])).movedim(differ[0], 0), True))
        return found

    def recording(self) -> _Visit:
        """Around the forward pass in the working precision."""

        def visit(_: int, called: _Called, x: Tensor) -> None:
            self.inputs.append(x.detach().clone())  # a model may turn gradients on inside

        return _Visit(visit)

    def following(self) -> _Visit:
        """Around another pass in the working precision: it follows what was recorded; ``apart`` is how far it was off.

        ``apart`` is relative to the largest input of each function.
        """

        def visit(position: int, called: _Called, x: Tensor) -> Tensor | None:
            if position >= len(self.inputs) or self.inputs[position].shape != x.shape:
                self.apart = (
                    torch.full_like(self.apart, torch.inf) if self.apart is not None else x.new_tensor(torch.inf)
                )
                return None
            wanted = self.inputs[position]
            top = wanted.abs().max() if wanted.numel() else wanted.new_zeros(())
            gap = (wanted - x).abs().max() if wanted.numel() else wanted.new_zeros(())
            share = torch.where(top > 0, gap / top, gap)
            self.apart = share if self.apart is None else torch.maximum(self.apart, share)  # a NaN stays one
            return wanted - x

        return _Visit(visit)

    def aligning(self, images: int) -> _Visit:
        """Around the forward pass in the other precision: what keeps it on the piece; counts flips by image."""

        def visit(position: int, called: _Called, x: Tensor) -> _Move:
            if position >= len(self.inputs) or self.inputs[position].shape != x.shape:
                self.moves.append(None)
                return None
            wanted, x = self.inputs[position], x.detach()
            move: _Move = None
            if called.func in CHOOSING:
                move = Choice.made(called.func, wanted, called.args, called.kwargs)
                own = None if move is None else Choice.made(called.func, x, called.args, called.kwargs)
                apart = None if move is None or own is None else move.apart(own)
            else:
                apart = called.apart(x, wanted)
                if apart is not None:
                    move = torch.where(apart, wanted.to(x.dtype) - x, torch.zeros_like(x))
            if apart is not None and apart.numel() % images == 0:
                flipped = apart.reshape(images, -1).sum(1)
                self.flips = flipped if self.flips is None else self.flips + flipped
            self.moves.append(move)
            return move

        return _Visit(visit)

    def replaying(self) -> _Visit:
        """Around passes under transforms: the same moves, which carry no tangent, again in every pass."""

        def visit(position: int, called: _Called, x: Tensor) -> _Move:
            return self.moves[position % len(self.moves)] if self.moves else None

        return _Visit(visit)
