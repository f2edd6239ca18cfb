"""The choices of pooling and of maxima and minima: which entries the working precision took, without their values.

Rounding decides between two entries that are all but equal. The certificate's float64 pass then has to take the same
one, but with the value and the tangent that float64 itself gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CHOOSING", "Choice", "given"]

# (function, spatial dimensions, the twin that also tells the places); the arguments are the same
_WINDOWS: dict[Callable[..., Any], tuple[int, Callable[..., Any]]] = {
    functional.max_pool1d: (1, functional.max_pool1d_with_indices),
    functional.max_pool2d: (2, functional.max_pool2d_with_indices),
    functional.max_pool3d: (3, functional.max_pool3d_with_indices),
    functional.max_pool1d_with_indices: (1, functional.max_pool1d_with_indices),
    functional.max_pool2d_with_indices: (2, functional.max_pool2d_with_indices),
    functional.max_pool3d_with_indices: (3, functional.max_pool3d_with_indices),
    torch.max_pool1d: (1, functional.max_pool1d_with_indices),
    torch.max_pool2d: (2, functional.max_pool2d_with_indices),
    torch.max_pool3d: (3, functional.max_pool3d_with_indices),
    functional.adaptive_max_pool1d: (1, functional.adaptive_max_pool1d_with_indices),
    functional.adaptive_max_pool2d: (2, functional.adaptive_max_pool2d_with_indices),
    functional.adaptive_max_pool3d: (3, functional.adaptive_max_pool3d_with_indices),
    functional.adaptive_max_pool1d_with_indices: (1, functional.adaptive_max_pool1d_with_indices),
    functional.adaptive_max_pool2d_with_indices: (2, functional.adaptive_max_pool2d_with_indices),
    functional.adaptive_max_pool3d_with_indices: (3, functional.adaptive_max_pool3d_with_indices),
}
# those that return the places too, whether or not they are asked
_WITH_PLACES = frozenset(twin for _, twin in _WINDOWS.values())
_SPREAD = frozenset({torch.amax, Tensor.amax, torch.amin, Tensor.amin})
_ALONG = frozenset({torch.max, Tensor.max, torch.min, Tensor.min})

CHOOSING = frozenset([*_WINDOWS, *_SPREAD, *_ALONG])


@dataclass(frozen=True)
class Choice:
    """What one call took: ``of(x)`` is what the function makes of another ``x`` if it takes the same entries.

    ``taken`` holds the places, or says of every entry whether it was taken; ``shared`` are the dimensions along which
    entries share one choice, where it is the latter.
    """

    of: Callable[[Tensor], Any]
    taken: Tensor
    shared: tuple[int, ...] = ()

    def apart(self, other: Choice) -> Tensor:
        """Which of the choices are not those of another call of the same function."""
        differ = self.taken != other.taken
        return differ.sum(self.shared, dtype=torch.bool) if self.shared else differ

    @classmethod
    def made(
        cls, func: Callable[..., Any], chosen: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Choice | None:
        """The choice of ``func(chosen, *args, **kwargs)``; ``None`` for a function that makes none."""
        if func in _WINDOWS:
            return _of_windows(func, chosen, args, kwargs)
        if func in _SPREAD:
            return _of_all_equal(func, chosen, args, kwargs)
        if func in _ALONG:
            return _along(func, chosen, args, kwargs)
        return None


def given(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    """What a function was called with beside its input, by position or by name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def _of_windows(func: Callable[..., Any], chosen: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice:
    dims, twin = _WINDOWS[func]
    options = {k: v for k, v in kwargs.items() if k != "return_indices"}
    asked = bool(kwargs.get("return_indices")) or func in _WITH_PLACES
    places: Tensor = twin(chosen, *args, **options)[1]

    def of(x: Tensor) -> Any:
        taken = x.flatten(-dims).gather(-1, places.flatten(-dims)).unflatten(-1, places.shape[-dims:])
        return (taken, places) if asked else taken

    return Choice(of, places)


def _of_all_equal(func: Callable[..., Any], chosen: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice:
    """``amax`` and ``amin``: entries that are exactly equal share the derivative evenly."""
    dim = given(args, kwargs, 0, "dim", ())
    keepdim = bool(given(args, kwargs, 1, "keepdim", False))
    dims = list(range(chosen.ndim)) if dim == () or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    equal = chosen == func(chosen, dims, keepdim=True)
    share = equal.sum(dims, keepdim=True)

    def of(x: Tensor) -> Tensor:
        return (torch.where(equal, x, torch.zeros_like(x)) / share).sum(dims, keepdim=keepdim)

    return Choice(of, equal, tuple(dims))


def _along(func: Callable[..., Any], chosen: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Choice | None:
    """``max`` and ``min`` along one dimension take one entry; over everything they share it as ``amax`` does."""
    first = given(args, kwargs, 0, "dim")
    if isinstance(first, Tensor) or isinstance(kwargs.get("other"), Tensor):
        return None
    if first is None:
        return _of_all_equal(torch.amax if func in (torch.max, Tensor.max) else torch.amin, chosen, (), {})
    made = func(chosen, *args, **kwargs)
    keepdim = bool(given(args, kwargs, 1, "keepdim", False))
    dim: int = first
    places = made.indices if keepdim or not chosen.ndim else made.indices.unsqueeze(dim)

    def of(x: Tensor) -> Any:
        taken = x if not x.ndim else x.gather(dim, places)
        return type(made)((taken if keepdim or not x.ndim else taken.squeeze(dim), made.indices))

    return Choice(of, places)
