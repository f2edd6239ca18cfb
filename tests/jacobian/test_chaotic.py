"""Networks that enlarge every rounding error until no digit of the derivative is left. Oracle: 80 decimal digits."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind


class Logistic(nn.Module):
    """x → 4x(1 − x) again and again, each entry by itself: an error doubles at every step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps, self.factor = steps, nn.Parameter(torch.tensor(4.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = self.factor * x * (1 - x)
        return x


def slopes(start: Tensor, steps: int) -> list[float]:
    found = []
    with localcontext() as context:
        context.prec = 80
        for entry in start.tolist():
            x, slope = Decimal(entry), Decimal(1)
            for _ in range(steps):
                x, slope = 4 * x * (1 - x), slope * 4 * (1 - 2 * x)
            found.append(float(abs(slope)))
    return found


@pytest.mark.parametrize(
    ("steps", "sure"),
    [
        (10, True),
        (36, True),  # float32 has no digit left there, float64 some
        (60, False),  # nor has float64
    ],
)
@pytest.mark.parametrize("method", ["auto", rs.Lanczos(probes=2, steps=2)])
def test_digits_that_chaos_takes_are_not_certified(steps: int, sure: bool, method: Any) -> None:
    """At 60 steps ranks such as [6, 6] where 2 is right were certified: float64 was taken to err by 2⁻²⁵ of float32."""
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    profile = rs.jacobian_rank(
        Logistic(steps), x, cut_points=["output"], columns="all", method=method, tolerance=0.2, progress=False
    )
    for start, spectrum in zip(x, profile["output"].spectra, strict=True):
        assert spectrum is not None
        wanted = slopes(start, steps)
        for tolerance in (0.5, 0.3, 0.2, 0.1):
            estimate = spectrum.rank(tolerance)
            assert estimate.certified is sure
            assert estimate.lower <= sum(s >= tolerance * max(wanted) for s in wanted) <= estimate.upper
    assert (FactKind.NO_ESTIMATE not in {f.kind for f in profile.facts}) is sure


def test_a_saturated_derivative_that_float64_cancels() -> None:
    """1 − tanh² is 0 or a few 2⁻⁵³ there, where the derivative is 4e-15 to 3e-17: ranks of it were certified."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False).double(), nn.Tanh())
    model[0].weight.data = torch.eye(3, dtype=torch.float64)
    x = torch.tensor([[17.2, 19.4, 19.8]], dtype=torch.float64)
    profile = rs.jacobian_rank(model, x, cut_points=["output"], progress=False)
    spectrum = profile["output"].spectra[0]
    assert spectrum is not None
    wanted = (1 / torch.cosh(x[0]) ** 2).tolist()
    for tolerance in (0.1, 1e-3, 1e-5):
        estimate = spectrum.rank(tolerance)
        assert estimate.lower <= sum(s >= tolerance * max(wanted) for s in wanted) <= estimate.upper
