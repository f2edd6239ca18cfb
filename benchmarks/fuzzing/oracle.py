"""The truth: the Jacobian of every module call for one sample alone, by one float64 reverse pass a row.

Written apart from the package, of which it imports nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fuzzing.decisions import Decisions

__all__ = ["Truth", "tensors_in", "truth_of"]

Key = tuple[str, int]  # the name of a module, "" for the network itself, and which of its calls


@dataclass
class Truth:
    """Of one sample: for every module call the Jacobian of each tensor that it returned, in the order of the calls.

    ``kink`` tells whether rounding in the working precision decides the linear piece, so that there is no one truth.
    ``paths`` names the tensors that each call returned: ``logits``, ``aux.1``, nothing for a plain tensor. Two calls
    that returned the very same tensor share one Jacobian object.
    """

    jacobians: dict[Key, list[Tensor]]
    kink: bool
    paths: dict[Key, list[str]]


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in a module's output, with its place in it."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_in(part, f"{path}.{key}" if path else str(key))
    elif isinstance(value, tuple | list):
        for key, part in enumerate(value):
            yield from tensors_in(part, f"{path}.{key}" if path else str(key))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _call(model: nn.Module, x: Tensor, keyword: str | None, extra: Mapping[str, Any]) -> Any:
    return model(x, **extra) if keyword is None else model(**{keyword: x}, **extra)


def truth_of(
    model: nn.Module, x: Tensor, keyword: str | None, extra: Mapping[str, Any], work: torch.dtype = torch.float32
) -> Truth:
    """Differentiate a float64 copy of the model in evaluation mode; ``x`` and weights are first those of ``work``.

    ``detach`` makes a constant; ``torch.no_grad()`` does not, since the function is the same with and without it.
    """
    x, extra = x.to(work), {k: _cast(v, work) for k, v in extra.items()}
    before = copy.deepcopy(model).to(work).eval()
    exact = copy.deepcopy(before).double()
    seen: dict[Key, list[Tensor]] = {}
    copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # a container returns the very tensor of its last part
    counts: dict[str, int] = {}
    paths: dict[Key, list[str]] = {}

    def hook(name: str) -> Any:
        def take(module: nn.Module, _: Any, output: Any) -> None:
            index = counts.get(name, 0)
            counts[name] = index + 1
            found = list(tensors_in(output))
            paths[(name, index)] = [path for path, _ in found]
            parts = []
            for _, tensor in found:
                same = (id(tensor), tensor._version)
                if same not in copies or copies[same][0] is not tensor:
                    copies[same] = (tensor, tensor.reshape(-1).clone())
                parts.append(copies[same][1])
            seen[(name, index)] = parts

        return take

    for name, module in exact.named_modules():
        module.register_forward_hook(hook(name))
    leaf = x.double().clone().requires_grad_()
    with torch.random.fork_rng(devices=[]), sdpa_kernel([SDPBackend.MATH]), torch.enable_grad(), _plain():
        _call(exact, leaf * 1, keyword, {k: _cast(v, torch.float64) for k, v in extra.items()})
        rows: dict[int, Tensor] = {}
        for tensor in (t for parts in seen.values() for t in parts):
            if id(tensor) not in rows:
                rows[id(tensor)] = _rows(tensor, leaf)
        jacobians = {key: [rows[id(t)] for t in parts] for key, parts in seen.items()}
    if not all(bool(torch.isfinite(j).all()) for parts in jacobians.values() for j in parts):
        _zero_where_constant(before, x, keyword, extra, jacobians)
    kink = False
    if work != torch.float64:
        kink = _rounding_decides(before, x, keyword, extra)
    return Truth(jacobians, kink, paths)


def _zero_where_constant(
    model: nn.Module, x: Tensor, keyword: str | None, extra: Mapping[str, Any], jacobians: dict[Key, list[Tensor]]
) -> None:
    """Reverse mode multiplies a zero by the infinite derivative of 1/0 and says NaN where the function is constant.

    What no input moves at all, by two steps in both directions, has the Jacobian zero.
    """

    def outputs(moved: Tensor) -> dict[Key, list[Tensor]]:
        one = copy.deepcopy(model).double()
        counts: dict[str, int] = {}
        seen: dict[Key, list[Tensor]] = {}

        def hook(name: str) -> Any:
            def take(module: nn.Module, _: Any, output: Any) -> None:
                index = counts.get(name, 0)
                counts[name] = index + 1
                seen[(name, index)] = [t.reshape(-1).clone() for _, t in tensors_in(output)]

            return take

        for name, module in one.named_modules():
            module.register_forward_hook(hook(name))
        with torch.random.fork_rng(devices=[]), torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), _plain():
            _call(one, moved, keyword, {k: _cast(v, torch.float64) for k, v in extra.items()})
        return seen

    here = outputs(x.double())
    steps = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
    moved = [outputs(x.double() + size * step) for step in steps for size in (1e-4, -1e-4, 1e-6, -1e-6)]
    for key, parts in jacobians.items():
        for k, jacobian in enumerate(parts):
            beside = [other[key][k] for other in moved if key in other and len(other[key]) == len(parts)]
            constant = len(beside) == len(moved) and all(torch.equal(b, here[key][k]) for b in beside)
            if constant and not torch.isfinite(jacobian).all():
                parts[k] = torch.zeros_like(jacobian)


@contextmanager
def _plain() -> Iterator[None]:
    """``no_grad`` without effect, and batch and instance normalisation written out.

    torch's backward kernel of these is wrong on the CPU for one image whose gradient is laid out channels-last: it
    differs from central differences by as much as the derivative itself.
    """

    def batch_norm(x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
                   momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        if training or mean is None:
            return _by_own_statistics(x, [0, *range(2, x.ndim)], weight, bias, eps)
        return _by_statistics(x, mean, var, weight, bias, eps)

    def instance_norm(x: Tensor, mean: Any = None, var: Any = None, weight: Any = None, bias: Any = None,
                      use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:  # fmt: skip
        if use_input_stats or mean is None:
            return _by_own_statistics(x, [*range(2, x.ndim)], weight, bias, eps)
        return _by_statistics(x, mean, var, weight, bias, eps)

    with (
        mock.patch.object(torch.no_grad, "__enter__", return_value=None),
        mock.patch.object(torch.no_grad, "__exit__", return_value=None),
        mock.patch.object(F, "batch_norm", batch_norm),
        mock.patch.object(F, "instance_norm", instance_norm),
    ):
        yield


def _by_own_statistics(x: Tensor, over: list[int], weight: Any, bias: Any, eps: float) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    centred = x - x.mean(over, keepdim=True)
    out = centred * torch.rsqrt((centred * centred).mean(over, keepdim=True) + eps)
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _by_statistics(x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = torch.rsqrt(var + eps) * (1 if weight is None else weight)
    shift = -mean * scale + (0 if bias is None else bias)
    return x * scale.view(shape) + shift.view(shape)


def _rows(output: Tensor, leaf: Tensor) -> Tensor:
    rows = torch.zeros(output.numel(), leaf.numel(), dtype=torch.float64)
    if output.requires_grad:
        for k, value in enumerate(output):
            (grad,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
            if grad is not None:
                rows[k] = grad.reshape(-1)
    return rows


def _rounding_decides(model: nn.Module, x: Tensor, keyword: str | None, extra: Mapping[str, Any]) -> bool:
    taken = []
    for dtype in (x.dtype, torch.float64):
        one = copy.deepcopy(model).to(dtype)
        with torch.no_grad(), sdpa_kernel([SDPBackend.MATH]), Decisions() as decisions:
            _call(one, x.to(dtype), keyword, {k: _cast(v, dtype) for k, v in extra.items()})
        taken.append(decisions)
    return not taken[0].same_as(taken[1])
