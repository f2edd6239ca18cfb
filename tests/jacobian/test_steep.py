"""A steep function behind a kink: the certificate has to see what rounding before it does to its derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rankscope as rs


class Root(nn.Module):
    """Half of the units at 1e-4 or so, where the root's derivative is 50 and changes by that of rounding's size."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.sqrt(torch.clamp(h, min=1e-5))


class Chosen(nn.Module):
    """The root of the larger of two numbers."""

    def __init__(self, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, h: Tensor) -> Tensor:
        return torch.sqrt(self.choose(h.unflatten(1, (-1, 2))))


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool1d": lambda h: functional.max_pool1d(h, 2).flatten(1),
    "max_pool2d": lambda h: functional.max_pool2d(h[:, None], (1, 2)).flatten(1),
    "max_pool2d and its places": lambda h: functional.max_pool2d(h[:, None], (1, 2), return_indices=True)[0].flatten(1),
    "max_pool3d": lambda h: functional.max_pool3d(h[:, None, None], (1, 1, 2)).flatten(1),
    "torch.max_pool1d": lambda h: torch.max_pool1d(h, 2).flatten(1),
    "module": lambda h: nn.MaxPool1d(2)(h).flatten(1),
    "adaptive_max_pool1d": lambda h: functional.adaptive_max_pool1d(h, 1).flatten(1),
    "adaptive_max_pool2d": lambda h: functional.adaptive_max_pool2d(h[:, None], (12, 1)).flatten(1),
    "amax": lambda h: h.amax(2),
    "amin": lambda h: -(-h).amin(dim=2, keepdim=True)[:, :, 0],
    "max along": lambda h: h.max(2).values,
    "max along, kept": lambda h: torch.max(h, dim=2, keepdim=True)[0][:, :, 0],
    "min along": lambda h: -torch.min(-h, -1).values,
    "max of all": lambda h: torch.stack([row.max() for row in h[0]])[None],
}


def cancelling(seed: int, offsets: Tensor) -> tuple[nn.Linear, Tensor]:
    """A layer whose outputs are the offsets, as sums of numbers of size 30 that all but cancel; and its input."""
    torch.manual_seed(seed)
    near = nn.Linear(40, len(offsets))
    with torch.no_grad():
        near.weight.mul_(10)
    x = torch.randn(1, 40)
    with torch.no_grad():
        near.bias.copy_(-(near.weight.double() @ x[0].double()).float() + offsets)
    return near, x


def within_the_bound(model: nn.Module, x: Tensor) -> None:
    profile = rs.jacobian_rank(model.eval(), x, progress=False)
    leaf = x.double().requires_grad_()
    output = copy.deepcopy(model).double()(leaf)[0]
    exact = torch.linalg.svdvals(torch.stack([torch.autograd.grad(o, leaf, retain_graph=True)[0][0] for o in output]))
    found = profile.layers[-1].spectra[0]
    assert found is not None
    gap = (torch.from_numpy(found.singular_values.copy())[: len(exact)] - exact).abs().max()
    assert found.rank().certified
    assert float(gap) <= found.error_bound + found.square_error / exact.min() ** 0.5 + 1e-12


def test_every_singular_value_lies_within_the_certified_error() -> None:
    for seed in range(12):
        near, x = cancelling(seed, torch.full((12,), 1e-4))
        within_the_bound(nn.Sequential(near, Root(), nn.Linear(12, 12)), x)


@pytest.mark.parametrize("name", CHOICES)
def test_rounding_before_a_maximum_is_in_the_bound(name: str) -> None:
    """The larger is so by 1.5e-4, some ten times what rounding does to either."""
    for seed in range(3):
        near, x = cancelling(seed, torch.tensor([2e-4, 5e-5]).repeat(12))
        within_the_bound(nn.Sequential(near, Chosen(CHOICES[name]), nn.Linear(12, 12)), x)


BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "hard-swish": functional.hardswish,
    "clamp": lambda h: torch.clamp(h, -3.0, 3.0) ** 2,
    "clamp of one side": lambda h: h.clamp(max=3.0) ** 2,
    "clamp_min": lambda h: h.clamp_min(-3.0) ** 2,
    "clamp to a tensor": lambda h: torch.clip(h, torch.full((12,), -3.0, dtype=h.dtype)) ** 2,
    "more bounds than inputs": lambda h: h.clamp(min=torch.full((2, 12), -3.0, dtype=h.dtype)).mean(0, True) ** 2,
    "hardtanh": lambda h: functional.hardtanh(h, max_val=3.0, min_val=-3.0) ** 2,
    "relu6": lambda h: functional.relu6(h + 3) ** 2,
    "threshold": lambda h: functional.threshold(h, -3.0, -3.0) ** 2,
}


@pytest.mark.parametrize("name", BENT)
def test_rounding_before_a_function_that_bends_between_its_kinks_is_in_the_bound(name: str) -> None:
    """Rounding moves these inputs by some 3e-3, and the derivative with them: no kink is near any."""

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return BENT[name](x + 1e5 - 1e5)

    near, x = cancelling(1, torch.linspace(-2, 2, 12))
    within_the_bound(nn.Sequential(near, Bent(), nn.Linear(12, 12)), x)


@pytest.mark.parametrize("bent", [functional.hardswish, lambda h: torch.sqrt(torch.clamp(h, min=-3.0) + 4)])
def test_the_same_of_a_float64_network(bent: Callable[[Tensor], Tensor]) -> None:
    """Against extended precision: rounding moves the inputs by 1e-11, and the derivatives with them."""
    torch.manual_seed(0)
    first, last = (nn.Linear(6, 6).double() for _ in range(2))

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return bent(x + 1e5 - 1e5)

    x = torch.randn(1, 6, dtype=torch.float64)
    profile = rs.jacobian_rank(nn.Sequential(first, Bent(), last).eval(), x, dtype="float64", progress=False)
    found = profile.layers[-1].spectra[0]
    assert found is not None
    assert found.rank().certified
    a, b, c = (t.detach().numpy().astype(np.longdouble) for t in (first.weight, first.bias, last.weight))
    h = a @ x[0].numpy().astype(np.longdouble) + b
    slope = (2 * h + 3) / 6 if bent is functional.hardswish else 1 / (2 * np.sqrt(h + 4))
    exact = np.linalg.svd((c @ (slope[:, None] * a)).astype(np.float64), compute_uv=False)
    gap = np.abs(found.singular_values - exact).max()
    assert gap <= found.error_bound + found.square_error / exact.min() + 1e-15 * exact[0]


KINKED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu": (functional.relu, 1),
    "relu6": (lambda h: functional.relu6(6 + h), 1),
    "hard-swish": (lambda h: functional.hardswish(h - 3), 1),
    "hard-sigmoid": (lambda h: functional.hardsigmoid(3 + h), 1),
    "clamp elsewhere": (lambda h: h.clamp(min=1.0), 0),
    "clamp": (lambda h: (h + 1).clamp(max=1.0), 1),
    "max_pool1d": (lambda h: functional.max_pool1d(1 + torch.stack([0 * h, h], 2), 2), 1),
    "max along": (lambda h: torch.stack([0 * h, h], 2).max(2).values, 1),
    "amax": (lambda h: torch.stack([0 * h, h], 2).amax(2), 1),
    "max of all": (lambda h: torch.cat([0 * h[:, :1], h.clamp(max=2.0**-20)], 1).max()[None], 1),
    "max with room": (lambda h: torch.stack([h, h - 1], 2).amax(2), 0),
}


@pytest.mark.parametrize("name", KINKED)
def test_every_kink_that_rounding_decides_is_counted(name: str) -> None:
    """2^-42 is zero in float32 beside 1 or 6, and in float64 it is beyond the kink; all other inputs are well clear."""
    kinked, count = KINKED[name]

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return kinked(1.0 + x - 1.0).flatten(1) if name != "max of all" else kinked(1.0 + x - 1.0)

    x = torch.tensor([[2.0**-42, -0.5, -0.25]])
    profile = rs.jacobian_rank(nn.Sequential(Net()).eval(), x, cut_points="output", progress=False)
    assert profile.kinks == (count,)


@pytest.mark.parametrize("name", CHOICES)
def test_the_certificate_makes_the_choices_that_float32_made(name: str) -> None:
    """The two of each pair differ by less than rounding: float64 alone would take the other of some, a wide bound."""
    near, x = cancelling(5, torch.full((24,), 1.0))
    plain = Chosen(lambda h: CHOICES[name](h) ** 2)
    with torch.no_grad():
        pairs = near(x).unflatten(1, (-1, 2))
        true = copy.deepcopy(near).double()(x.double()).unflatten(1, (-1, 2))
    assert bool((pairs.argmax(2) != true.argmax(2)).any()), "rounding decides in one pair at least"
    found = rs.jacobian_rank(nn.Sequential(near, plain).eval(), x, progress=False).layers[-1].spectra[0]
    assert found is not None
    assert found.error_bound <= 1e-4 * float(found.singular_values[0])
