"""The solver against scikit-learn, closed forms and the optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from rankscope.deficit import scaled
from rankscope.deficit._parallel import map_batches
from rankscope.deficit.lasso import eta_max, solve_lasso
from rankscope.deficit.operators import FactorGram, SharedGram, column_scale


def correlated(samples, classes, rank, seed, noise=0.1):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, classes, generator=g, dtype=torch.float64
    )
    z = z + noise * torch.randn(samples, classes, generator=g, dtype=torch.float64)
    return z * torch.logspace(-1, 1, classes, dtype=torch.float64)


def solve_shared(z, share, **options):
    gram = z.T @ z / len(z)
    own = torch.arange(z.shape[1])
    eta = share * eta_max(gram, own)
    return gram, eta, solve_lasso(SharedGram(gram), gram, gram.diagonal(), eta, own, **options)


def oracle(z, i, eta):
    others = np.arange(z.shape[1]) != i
    fit = Lasso(alpha=eta / 2, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    fit.fit(z.numpy()[:, others], z.numpy()[:, i])
    out = np.zeros(z.shape[1])
    out[others] = fit.coef_
    return out


@pytest.mark.parametrize("share", [0.9, 0.3, 0.03, 0.003])
def test_shared_gram_agrees_with_scikit_learn(share):
    z = correlated(300, 12, 5, seed=1, noise=0.5)
    _, eta, found = solve_shared(z, share, tol=1e-12)
    for i in range(12):
        expected = oracle(z, i, float(eta[i]))
        np.testing.assert_allclose(found.coefficients[i], expected, atol=1e-5 * np.abs(expected).max())
        residual = np.mean((z.numpy()[:, i] - z.numpy() @ expected) ** 2)
        assert float(found.residual[i]) == pytest.approx(residual, rel=1e-5)
    assert float(found.gap.max()) <= 1e-12


@pytest.mark.parametrize(("rows", "classes"), [(9, 20), (40, 20)])
def test_own_factor_agrees_with_scikit_learn(rows, classes):
    g = torch.Generator().manual_seed(3)
    samples = torch.randn(3, rows, classes, generator=g, dtype=torch.float64) + 1.0
    counts = torch.tensor([rows, rows - 3, rows])
    samples[1, rows - 3 :] = 0
    own = torch.tensor([0, 7, 19])
    target = torch.stack([samples[b, :, i] for b, i in enumerate(own)])
    cross = torch.stack([target[b] @ samples[b] / counts[b] for b in range(3)])
    square = (target**2).sum(1) / counts
    eta = 0.05 * eta_max(cross, own)
    found = solve_lasso(FactorGram.of(samples, counts), cross, square, eta, own, tol=1e-12)
    assert float(found.gap.max()) <= 1e-12
    for b in range(3):
        expected = oracle(samples[b, : counts[b]], int(own[b]), float(eta[b]))
        np.testing.assert_allclose(found.coefficients[b], expected, atol=1e-6)


def test_both_operators_are_the_same_matrix():
    z = correlated(30, 7, 4, seed=5)
    gram = z.T @ z / 30
    shared = SharedGram(gram)
    own = FactorGram.of(z.expand(2, -1, -1), torch.tensor([30, 30]))
    torch.testing.assert_close(own.scale[1], shared.scale)
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rho = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(own.apply(x), shared.apply(x))
    torch.testing.assert_close(own.ridge_solve(x, rho), shared.ridge_solve(x, rho))
    back = 2 * shared.apply(shared.ridge_solve(x, rho)) + rho * shared.ridge_solve(x, rho)
    torch.testing.assert_close(back, x)
    index = torch.tensor([[0, 3], [6, 2]])
    torch.testing.assert_close(own.block(index), shared.block(index))
    torch.testing.assert_close(shared.block(index)[1, 0, 1], shared.matrix[6, 2])
    torch.testing.assert_close(own.select(torch.tensor([1])).apply(x[1:]), shared.apply(x[1:]))


def test_column_of_zeros_is_left_alone():
    squares = torch.tensor([4.0, 1e-40, 0.0], dtype=torch.float64)
    assert column_scale(squares).tolist() == [2.0, 1e-20, 1.0]  # how large others are says nothing
    # a spread of 1e-20 is rounding beside a mean of 1, and none beside one of 1e-9
    assert column_scale(squares, torch.tensor([0.0, 1.0, 1.0])).tolist() == [2.0, 1.0, 1.0]
    assert column_scale(squares, torch.tensor([0.0, 1e-9, 1.0])).tolist() == [2.0, 1e-20, 1.0]


def rounding(gram, eta, coefficients):
    """What float64 leaves of a gap: slopes, sums of size 1 + |x|_1 in scaled units, against the least penalty."""
    scale = gram.diagonal().sqrt()
    total = 1 + (coefficients.abs() * scale).sum(1) / scale
    least = eta / (scale * scale.max())
    return 2 * torch.finfo(torch.float64).eps * total / least


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 9),
    rank=st.integers(1, 9),
    share=st.floats(1e-3, 1.2),
    noise=st.sampled_from([0.0, 1e-3, 0.3]),
)
def test_optimality_conditions(seed, classes, rank, share, noise):
    """Every problem is solved: slope_j = η/2·sign(λ_j) where λ_j ≠ 0, |slope_j| ≤ η/2 elsewhere."""
    z = correlated(60, classes, rank, seed, noise)
    gram, eta, found = solve_shared(z, share, tol=1e-10)
    assert bool((found.gap <= rounding(gram, eta, found.coefficients).clamp_min(1e-10)).all())
    assert float(found.coefficients.diagonal().abs().max()) == 0
    slope = gram - found.coefficients @ gram
    scale = gram.diagonal().sqrt()
    for i in range(classes):
        # a gap of 1e-10 leaves slopes right to about its root, relative to the columns' own sizes
        slack = 1e-4 * float(scale[i]) * scale
        x, s = found.coefficients[i], slope[i]
        others = torch.arange(classes) != i
        assert bool((s.abs() <= eta[i] / 2 + slack)[others].all())
        inside = others & ((x * scale).abs() > 1e-4 * scale[i])
        assert bool(((s - eta[i] / 2 * x.sign()).abs() <= slack)[inside].all())


@pytest.mark.parametrize(
    ("seed", "classes", "rank", "share", "noise"),
    [(0, 6, 2, 2**-8, 0.0), (0, 6, 2, 2**-8, 1e-3), (2, 3, 2, 1e-3, 0.0), (9484, 6, 3, 1.2e-3, 1e-3)],
)
def test_columns_that_determine_each_other_are_solved(seed, classes, rank, share, noise):
    """The batch alone leaves these with gaps up to 0.78; descent over supports finishes them."""
    z = correlated(60, classes, rank, seed, noise)
    _, _, batch = solve_shared(z, share, tol=1e-10, max_steps=0)
    assert float(batch.gap.max()) > 1e-10
    _, eta, found = solve_shared(z, share, tol=1e-10)
    assert float(found.gap.max()) <= 1e-10

    def objective(i, x):
        return float((z[:, i] - z @ x).square().mean() + eta[i] * x.abs().sum())

    for i in range(classes):
        best = objective(i, torch.from_numpy(oracle(z, i, float(eta[i]))))
        assert objective(i, found.coefficients[i]) <= best * (1 + 1e-9)


@pytest.mark.parametrize("share", [0.5, 0.03, 1e-3])
@pytest.mark.parametrize("start", ["zero", "dense"])
def test_descent_alone_solves_from_anywhere(share, start):
    """Without any round of the batch; a dense start on rank 3 has to leave along null vectors first."""
    z = correlated(60, 9, 3, seed=11, noise=0.0)
    z = torch.cat([z, z[:, :2]], 1)
    first = None
    if start == "dense":
        first = torch.randn(11, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, _, expected = solve_shared(z, share, tol=1e-10)
    _, eta, found = solve_shared(z, share, tol=1e-10, max_rounds=0, start=first)
    assert float(found.gap.max()) <= 1e-10
    penalty = [r + eta * x.abs().sum(1) for r, x in ((f.residual, f.coefficients) for f in (found, expected))]
    torch.testing.assert_close(penalty[0], penalty[1], rtol=1e-9, atol=0)
    few = (found.coefficients.abs() > 0).sum(1)
    assert int(few.max()) <= 3 + 2  # a vertex has no more coordinates than the rank, but for the two duplicates


def test_one_neighbour_has_the_closed_form():
    gram = torch.tensor([[4.0, -3.0], [-3.0, 9.0]], dtype=torch.float64)
    own = torch.arange(2)
    eta = torch.tensor([2.0, 5.9], dtype=torch.float64)
    found = solve_lasso(SharedGram(gram), gram, gram.diagonal(), eta, own)
    # soft thresholding: −(|g| − η/2)/G
    assert found.coefficients.tolist() == [
        [0.0, pytest.approx(-2 / 9)],
        [pytest.approx(-0.05 / 4), 0.0],
    ]
    assert float(found.residual[0]) == pytest.approx(4 - 2 * 3 * 2 / 9 + 9 * (2 / 9) ** 2)


def test_eta_max_is_the_least_penalty_with_an_empty_solution():
    z = correlated(100, 6, 3, seed=2)
    _, _, at = solve_shared(z, 1.0)
    assert int((at.coefficients != 0).sum()) == 0
    torch.testing.assert_close(at.residual, (z * z).mean(0))
    _, _, below = solve_shared(z, 0.999, tol=1e-12)
    assert ((below.coefficients != 0).sum(1) >= 1).all()


def test_gap_is_of_the_returned_point_even_when_cut_short():
    z = correlated(200, 10, 4, seed=4)
    gram, eta, found = solve_shared(z, 0.01, max_rounds=0, max_steps=0, tol=1e-12)
    assert float(found.gap.min()) > 1e-6
    _, _, best = solve_shared(z, 0.01, tol=1e-13)

    def objective(x):
        return gram.diagonal() - 2 * (gram * x).sum(1) + ((x @ gram) * x).sum(1) + eta * x.abs().sum(1)

    loss = (objective(found.coefficients) - objective(best.coefficients)) / objective(found.coefficients)
    assert bool((loss <= found.gap + 1e-12).all())
    assert bool((loss > 0).all())


def test_warm_start_arrives_at_the_same_point():
    z = correlated(300, 15, 6, seed=6)
    _, _, coarse = solve_shared(z, 0.3, tol=1e-12)
    _, _, cold = solve_shared(z, 0.1, tol=1e-12)
    _, _, warm = solve_shared(z, 0.1, tol=1e-12, start=coarse.coefficients)
    torch.testing.assert_close(warm.coefficients, cold.coefficients, atol=1e-7, rtol=0)
    torch.testing.assert_close(warm.residual, cold.residual, atol=1e-9, rtol=1e-7)


def test_duplicated_logits_are_solved_too():
    z = correlated(200, 6, 6, seed=7)
    z = torch.cat([z, z[:, :3]], 1)
    _, _, found = solve_shared(z, 0.05)
    assert float(found.gap.max()) <= 1e-6


def test_small_batches_of_supports_change_nothing(monkeypatch):
    z = correlated(300, 15, 6, seed=8)
    _, _, whole = solve_shared(z, 0.02, tol=1e-12)
    monkeypatch.setattr(scaled, "_ELEMENTS", 1)
    _, _, parts = solve_shared(z, 0.02, tol=1e-12)
    torch.testing.assert_close(whole.coefficients, parts.coefficients, atol=1e-9, rtol=0)


def test_batches_on_threads_keep_their_order_and_the_callers_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = map_batches(lambda k: (k, torch.get_num_threads()), list(range(6)), torch.zeros(1))
        assert seen == [(k, 1) for k in range(6)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
