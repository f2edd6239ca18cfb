"""Evaluation-mode BatchNorm behind a convolution: for tangents its scale belongs into the convolution's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from rankscope.linear.layer_rules import convolution
from rankscope.linear.rule import Call, Derived

__all__ = ["fold_normalisation"]

aten = torch.ops.aten
_NORMS = (
    aten.native_batch_norm.default,
    aten.cudnn_batch_norm.default,
    aten._native_batch_norm_legit_no_training.default,
)


def fold_normalisation(
    nodes: Sequence[fx.Node], constants: Mapping[str, Any], depends: set[str]
) -> dict[str, Callable[[Call], Derived]]:
    """Rules for pairs of a convolution and the BatchNorm that alone uses it, both with constant parameters.

    The convolution gets the scaled weights, the normalisation passes its tangent on. Exact but for rounding: the
    certificate covers that.
    """
    found: dict[str, Callable[[Call], Derived]] = {}
    for node in nodes:
        if node.op != "call_function" or node.target not in _NORMS:
            continue
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.target is not aten.convolution.default or len(before.users) != 1:
            continue
        x, weight, _, stride, padding, dilation, transposed, output_padding, groups = before.args
        if transposed or not isinstance(weight, fx.Node) or weight.name not in constants:
            continue
        if not isinstance(x, fx.Node) or x.name not in depends:
            continue
        scale = _scale(node, constants)
        if scale is None:
            continue
        kernel: Tensor = constants[weight.name]
        scaled = kernel * scale.view(-1, *(1,) * (kernel.ndim - 1)).to(kernel.dtype)
        rest = (stride, padding, dilation, transposed, output_padding, groups)
        found[before.name] = partial(convolution, weight=scaled, rest=rest)
        found[node.name] = _passed_on
    return found


def _passed_on(call: Call) -> Derived:
    rest = [None] * (len(call.out) - 1)
    return Derived(lambda t, _: None if t[0] is None else [t[0], *rest], [call.region, *rest])


def _scale(node: fx.Node, constants: Mapping[str, Any]) -> Tensor | None:
    """weight/√(variance + eps) in float64, where all of them are constants and running statistics are used."""
    if node.target is aten._native_batch_norm_legit_no_training.default:
        _, gain, _, _, variance, _, eps = node.args
    else:
        _, gain, _, _, variance, training, _, eps = node.args[:8]
        if training:
            return None
    if not isinstance(variance, fx.Node) or variance.name not in constants:
        return None
    scale: Tensor = torch.rsqrt(constants[variance.name].double() + eps)
    if gain is None:
        return scale
    if not isinstance(gain, fx.Node) or gain.name not in constants:
        return None
    product: Tensor = scale * constants[gain.name].double()
    return product
