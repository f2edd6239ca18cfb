"""``linear_map`` on random networks: every row against one float64 reverse pass a row, and both modes of one matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fuzzing.calls import make_call
from fuzzing.choices import Choices
from fuzzing.judge import _wanted
from fuzzing.networks import make
from fuzzing.oracle import truth_of
from fuzzing.unchanged import difference, picture

import rankscope as rs

# every kind of stage, argument and ending among them
SEEDS = (0, 3, 6, 11, 25, 28, 30, 31, 32, 38, 39, 41, 45, 54, 55, 62, 67, 72, 73, 74)


@pytest.mark.parametrize("seed", SEEDS)
def test_products_are_those_of_the_true_jacobian(seed: int) -> None:
    choices = Choices(seed)
    model, call = make_call(choices, make(choices))
    one = call.samples[0]
    truth = truth_of(model, one.x, one.keyword, one.extra, torch.float64)
    x = one.x.double()
    before = picture(model, x)
    given = x if one.keyword is None and not one.extra else {one.keyword or "x": x, **one.extra}
    options: dict[str, Any] = {"differentiate": one.keyword, "shared": tuple(one.extra), "dtype": "float64"}
    J = rs.linear_map(model, given, cut_points="all", **options)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(3, *J.input_shape, generator=generator, dtype=torch.float64)
    u = torch.randn(3, J.shape[0], generator=generator, dtype=torch.float64)
    pushed, pulled = J.push(v), J.pull(u)
    wanted = []
    for name, rows in J.rows.items():
        jacobian = _wanted(truth, name)
        assert not isinstance(jacobian, str), name
        assert jacobian.shape == (len(rows), J.shape[1]), name
        wanted.append(jacobian)
    whole = torch.cat(wanted)
    # float64 sums of some thousand terms in another order, and NaN where the truth has none either
    scale = 1e-9 * float(whole.abs().nan_to_num(0.0, 0.0, 0.0).max()) + 1e-300
    torch.testing.assert_close(pushed, v.flatten(1) @ whole.T, rtol=1e-8, atol=scale * 30, equal_nan=True)
    if bool(torch.isfinite(whole).all()):
        torch.testing.assert_close(pulled.flatten(1), u @ whole, rtol=1e-8, atol=scale * 300)
        gap = ((u * pushed).sum(1) - (pulled * v).flatten(1).sum(1)).abs()
        assert bool((gap <= 1e-10 * u.norm(dim=1) * pushed.norm(dim=1) + 1e-300).all())
    assert not difference(before, picture(model, x))
