"""Constants and memory that a model makes in float32 inside do not keep it from its float64 certificate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rankscope as rs


class Sampled(nn.Module):
    """A grid of its own, as in optical flow and deformable layers; its numbers are exact in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.tensor([-0.5, 0.25, 0.75])
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).expand(len(x), -1, -1, -1)
        return self.linear(F.grid_sample(self.conv(x).tanh(), grid, align_corners=False).flatten(1))


class Blurred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.tensor([1.0, 2.0, 1.0])
        return self.linear(
            F.conv2d(x.tanh(), torch.outer(kernel, kernel)[None, None] / 16, stride=2)[..., :2, :2].flatten(1)
        )


class Averaged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tril(torch.ones(6, 6)) @ self.linear(x[:, 0]).sin()


class Scattered(nn.Module):
    """Experts add into memory that the model makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x[:, 0]).tanh()
        return torch.zeros(*h.shape).index_add(1, torch.tensor([0, 0, 1, 2, 3, 4]), h)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x[:, 0])
        made = torch.zeros(*h.shape)
        made[..., :4] = h[..., 2:].tanh()
        return made


class Emptied(nn.Module):
    """Memory in bfloat16: what is written is rounded, which is in the bound."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x[:, 0]).tanh()
        made = torch.empty(h.shape, dtype=torch.bfloat16)
        made[:] = h
        return made.to(h.dtype).cumsum(-1)


def _rows(model: nn.Module, x: Tensor) -> Tensor:
    """Every row of the Jacobian by float64 reverse mode of one sample; what the model makes is float64 too."""
    exact = copy.deepcopy(model).double()
    torch.set_default_dtype(torch.float64)
    try:
        leaf = x.double().requires_grad_()
        out = exact(leaf).flatten()
        rows = [torch.autograd.grad(o, leaf, retain_graph=True)[0].flatten() for o in out]
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.stack(rows)


@pytest.mark.parametrize("made", [Sampled, Blurred, Averaged, Scattered, Written])
def test_what_a_model_makes_in_float32_is_certified(made: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = made().eval(), torch.randn(2, 1, 6, 6)
    layer = rs.jacobian_rank(model, x, columns="all", cut_points="output").layers[0]
    for i, spectrum in enumerate(layer.spectra):
        assert spectrum is not None
        true = torch.linalg.svdvals(_rows(model, x[i : i + 1]))
        found = torch.from_numpy(spectrum.singular_values.copy())
        # NaN, where nothing was certified, fails; rounding of a few float32 operations is far below 1e-4 of the largest
        assert spectrum.error_bound < 1e-4 * float(true[0])
        # forming the Gram matrix moves a singular value that is zero by up to the root of the square's error
        assert bool(((found - true).abs() <= spectrum.error_bound + spectrum.square_error**0.5).all())
        rank = spectrum.rank(1e-3)
        assert rank.lower <= int((true >= 1e-3 * true[0]).sum()) <= rank.upper


def test_rounding_into_narrow_memory_is_in_the_bound() -> None:
    torch.manual_seed(0)
    model, x = Emptied().eval(), torch.randn(1, 1, 6, 6)
    profile = rs.jacobian_rank(model, x, columns="all", cut_points="output")
    (spectrum,) = profile.layers[0].spectra
    assert spectrum is not None
    leaf = x.double().requires_grad_()
    exact = copy.deepcopy(model).double()
    out = exact.linear(leaf[:, 0]).tanh().cumsum(-1).flatten()  # the same without the rounding
    true = torch.linalg.svdvals(
        torch.stack([torch.autograd.grad(o, leaf, retain_graph=True)[0].flatten() for o in out])
    )
    found = torch.from_numpy(spectrum.singular_values.copy())
    assert spectrum.error_bound > 1e-6 * float(true[0])  # bfloat16 rounds to 2e-3; float32 alone would give 1e-7
    assert bool(((found - true).abs() <= spectrum.error_bound + spectrum.square_error**0.5).all())
