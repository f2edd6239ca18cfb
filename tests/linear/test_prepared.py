"""Weights that are not numbers are refused, those whose sum alone is none are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankscope._base.errors import ModelError
from rankscope.linear.prepared import finite_weights

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_every_value_is_seen(dtype: torch.dtype, bad: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        finite_weights(model)
        place = int(torch.randint(0, 35, (), generator=generator))
        with torch.no_grad():
            model[0].weight.view(-1)[place] = bad
            if place % 2 and bad == torch.inf:  # their sum is no infinity
                model[0].weight.view(-1)[place - 1] = -torch.inf
        count = 2 if place % 2 and bad == torch.inf else 1
        with pytest.raises(ModelError, match=rf"'0\.weight' hold {count} NaN or infinite values"):
            finite_weights(model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_whose_sum_overflows_are_numbers(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 3)
    model.weight.data = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    assert not bool(torch.isfinite(model.weight.sum()))
    finite_weights(model)


def test_infinity_may_be_meant_in_a_buffer_and_nan_never() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    finite_weights(model)
    model.mask[0] = torch.nan
    with pytest.raises(ModelError, match="'mask' hold 2 NaN or infinite values"):
        finite_weights(model)


def test_the_first_of_several_faults_is_named() -> None:
    late, early = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))
    with torch.no_grad():
        late[0].bias[0] = torch.nan
        early[1].bias[0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinite"):
        finite_weights(late)
    with pytest.raises(ModelError, match="not made yet"):
        finite_weights(early)
