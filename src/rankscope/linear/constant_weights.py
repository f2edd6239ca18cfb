"""The tangents of layers with constant weights: of a linear layer and of a normalisation.

Torch's own formulas have tangents of the weights in them. Where there are none it makes symbolic zeros, and finds the
shape of each sum and product with those by code in Python: half of what such a layer takes. What is left out adds zero,
so the numbers are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

__all__ = ["CONSTANT_WEIGHTS"]


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None or weight is None:
        return None
    if not _only_first(x, running_mean, running_var, weight, bias):
        return None
    statistics = running_mean, running_var
    value = functional.batch_norm(_value(x), *statistics, weight, bias, False, momentum, eps)
    alone = functional.batch_norm(x, *statistics, None, None, False, momentum, eps)
    return forward_ad.make_dual(value, _tangent(alone) * weight.view(-1, *(1,) * (x.ndim - 2)))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if weight is None or not _only_first(x, weight, bias):
        return None
    value = functional.layer_norm(_value(x), normalized_shape, weight, bias, eps)
    alone = functional.layer_norm(x, normalized_shape, None, None, eps)
    return forward_ad.make_dual(value, _tangent(alone) * weight)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not _only_first(x, weight, bias):
        return None
    return forward_ad.make_dual(functional.linear(_value(x), weight, bias), functional.linear(_tangent(x), weight))


CONSTANT_WEIGHTS: dict[Any, Callable[..., Tensor | None]] = {
    functional.linear: _linear,
    functional.batch_norm: _batch_norm,
    functional.layer_norm: _layer_norm,
}
"""By torch's function, one of the same arguments that gives ``None`` where this is not the case here."""


def _only_first(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the first alone has a tangent, and all are plain tensors of one dtype."""
    given = [t for t in others if t is not None]
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.dtype == x.dtype for t in (x, *given))
        and x.is_floating_point()
        and _tangent(x) is not None
        and all(_tangent(t) is None for t in given)
    )


def _value(x: Tensor) -> Tensor:
    return forward_ad.unpack_dual(x).primal


def _tangent(x: Tensor) -> Any:
    return forward_ad.unpack_dual(x).tangent
