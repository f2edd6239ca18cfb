"""A steep function behind a kink: the certificate has to see what rounding before it does to its derivative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rankscope as rs


class Root(nn.Module):
    """Half of the units at 1e-4 or so, where the root's derivative is 50 and changes by that of rounding's size."""

    def forward(self, h: Tensor) -> Tensor:
        return torch.sqrt(torch.clamp(h, min=1e-5))


def test_every_singular_value_lies_within_the_certified_error() -> None:
    for seed in range(12):
        torch.manual_seed(seed)
        near = nn.Linear(40, 12)
        with torch.no_grad():
            near.weight.mul_(10)
        x = torch.randn(1, 40)
        with torch.no_grad():  # inputs of size 30 that all but cancel
            near.bias.copy_(-(near.weight.double() @ x[0].double()).float() + 1e-4)
        model = nn.Sequential(near, Root(), nn.Linear(12, 12)).eval()
        profile = rs.jacobian_rank(model, x, progress=False)
        leaf = x.double().requires_grad_()
        output = nn.Sequential(near, Root(), model[2]).double()(leaf)[0]
        exact = torch.linalg.svdvals(
            torch.stack([torch.autograd.grad(o, leaf, retain_graph=True)[0][0] for o in output])
        )
        model.float()
        found = profile.layers[-1].spectra[0]
        assert found is not None
        gap = (torch.from_numpy(found.singular_values.copy())[:12] - exact).abs().max()
        assert found.rank().certified
        assert float(gap) <= found.error_bound + found.square_error / exact.min() ** 0.5 + 1e-12
