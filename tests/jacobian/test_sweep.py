"""One sweep: what its Gram matrices and products are of, and which rows it looks for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev

from rankscope._base.threads import single_core_threads
from rankscope.jacobian import finish
from rankscope.jacobian.combinations import Combinations
from rankscope.jacobian.sweep import Sweep, SweepResult
from rankscope.jacobian.unsettled import Unsettled
from rankscope.linear.derivative import Derivative, Settings
from rankscope.linear.regions import Region
from rankscope.slicing import Patch, Sample, measuring, trace
from rankscope.slicing.columns import All

CPU = torch.device("cpu")


class _Some(nn.Module):
    """Half of the hidden units are dead, so that rows of zeros lie among those that can be reached."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3, padding=1)
        nn.init.constant_(self.first.bias, 0.0)
        with torch.no_grad():
            self.first.bias[:2] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def swept(dtype: torch.dtype, *, dense: bool, chunk: int, budget: int = 2**30, rows: int = 1) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = _Some().to(dtype).eval()
    sample = Sample(torch.randn(rows, 1, 9, 9, dtype=dtype), "image")
    patch = Patch(2)
    calls = [c for c in trace(model, Sample(sample.x[:1], "image")).calls if c.depends]
    settings = Settings(chunk_size=chunk, budget=budget, certify=True, device=CPU, dtype=dtype, columns=patch)
    derivative = Derivative(model, calls, settings)
    combinations = Combinations(patch, (1, 9, 9), CPU, dtype)
    region = Region.around(patch.coordinates((1, 9, 9)), (1, 9, 9))
    with measuring(model, CPU), derivative.runner.hooked():
        derivative.prepare(Sample(sample.x[:1], "image"))
        assert derivative.linearised is not None
        jacobian = derivative.at(sample).within(region)
        sweep = Sweep(jacobian, chunk=chunk, budget=budget, combinations=combinations, dense=dense)
        result = sweep.run(certified=True)
    places = patch.coordinates((1, 9, 9))

    def outputs(x: Tensor, k: int) -> Tensor:
        hidden = model.first(x[None])
        return (hidden if k == 0 else model.second(torch.relu(hidden))).flatten()

    truth = [[jacrev(lambda x, k=k: outputs(x, k))(one).flatten(1)[:, places].double() for one in sample.x]
             for k in range(2)]  # fmt: skip
    return sweep, result, truth, combinations.weights


def same(result: SweepResult, truth: list[list[Tensor]], weights: Tensor, dtype: torch.dtype) -> None:
    """Against rows by reverse mode; sums of at most 2^10 products of entries below 1."""
    rounding = 2**10 * torch.finfo(dtype).eps
    for k, images in enumerate(truth):
        for i, matrix in enumerate(images):
            scale = 4.0 ** result.exponents[k][i]
            assert not result.transposed[k][i]
            torch.testing.assert_close(result.grams[k][i] * scale, matrix.T @ matrix, rtol=rounding, atol=rounding)
        found = torch.zeros(len(weights), len(images) * result.rows[k], dtype=torch.float64)
        found[:, result.support[k]] = result.products[k]
        torch.testing.assert_close(found, weights @ torch.cat(images).T, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("chunk", "budget"), [(4, 2**30), (3, 2**30), (4, 4 * 50 * 8), (1, 4 * 7 * 8)])
@pytest.mark.parametrize("images", [1, 3])
def test_a_sweep_is_of_the_rows_by_reverse_mode(
    dtype: torch.dtype, dense: bool, chunk: int, budget: int, images: int
) -> None:
    _, result, truth, weights = swept(dtype, dense=dense, chunk=chunk, budget=budget, rows=images)
    same(result, truth, weights, dtype)


def test_rows_of_zeros_are_left_out_unless_few_others_can_be_reached() -> None:
    looked, result, truth, _ = swept(torch.float64, dense=False, chunk=4)
    assert [len(s) for s in result.support] == [int((m[0] != 0).any(1).sum()) for m in truth]
    assert not looked.dense  # the dead units are reached and are zero
    _, every, _, _ = swept(torch.float64, dense=True, chunk=4)
    assert len(every.support[0]) == 4 * 4 * 4  # 2 × 2 pixels through a kernel of 3 × 3, four channels
    assert set(result.support[1].tolist()) <= set(every.support[1].tolist())


def test_a_sweep_says_whether_it_kept_nearly_all() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)).double().eval()
    sample = Sample(torch.randn(1, 4, dtype=torch.float64), "sample")
    calls = [c for c in trace(model, sample).calls if c.depends]
    columns = All()
    settings = Settings(chunk_size=4, budget=2**30, certify=True, device=CPU, dtype=torch.float64, columns=columns)
    derivative = Derivative(model, calls, settings)
    with measuring(model, CPU), derivative.runner.hooked():
        derivative.prepare(sample)
        combinations = Combinations(columns, (4,), CPU, torch.float64)
        sweep = Sweep(derivative.at(sample), chunk=4, budget=2**30, combinations=combinations)
        sweep.run(certified=False)
    assert sweep.dense


def test_what_is_open_is_decided_once_and_when_it_is_asked_for() -> None:
    asked: list[str] = []

    def decide() -> Any:
        asked.append("decided")
        return lambda: ["finished"]

    one = Unsettled(decide)
    assert asked == []
    one.settle()
    one.settle()
    assert asked == ["decided"]
    assert one() == ["finished"]
    assert Unsettled(decide)() == ["finished"]


def test_an_error_while_deciding_comes_again() -> None:
    def fails() -> Any:
        raise ValueError("no room")

    one = Unsettled(fails)
    for _ in range(2):
        with pytest.raises(ValueError, match="no room"):
            one.settle()


def test_eigenvalues_on_the_host_are_those_of_numpy() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    gram = rows.T @ rows
    found = finish._host_eigenvalues(gram)
    assert found is not None
    expected = np.linalg.eigvalsh(gram.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=30 * np.finfo(float).eps * expected[-1])
    assert finish._host_eigenvalues(torch.zeros(0, 0, dtype=torch.float64)).shape == (0,)  # type: ignore[union-attr]
    assert finish._host_eigenvalues(gram.fill_diagonal_(torch.nan)) is None


def test_solvers_work_alone_and_leave_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with single_core_threads(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
