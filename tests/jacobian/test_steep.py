"""A steep function behind a kink: the certificate has to see what rounding before it does to its derivative."""

from __future__ import annotations

import copy
from collections.abc import Callable

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
