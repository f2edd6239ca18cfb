"""What numbers are divided by before they are squared."""

from __future__ import annotations

import math

import pytest
import torch

from rankscope.spectra.scale import power_of_two


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_of_what_is_left_are_normal_numbers(dtype):
    info = torch.finfo(dtype)
    lowest = math.frexp(info.tiny)[1] - 1
    for exponent in range(lowest, math.frexp(info.max)[1], 7):
        number = math.ldexp(1.5, exponent)
        unit = power_of_two(number, dtype)
        assert math.frexp(unit)[0] == 0.5  # a power of two
        # a thousand squares, and their products with the dtype's own eps
        assert info.tiny < (number / unit) ** 2 * info.eps
        assert (number / unit) ** 2 * 1000 < info.max
    assert power_of_two(0.0, dtype) == power_of_two(math.inf, dtype) == 1
