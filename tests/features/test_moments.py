"""Moments in one pass against two passes over all rows; any merge order, batch size and number of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from processes import in_processes

import rankscope as rs
from rankscope._base.errors import DataError, UsageError
from rankscope.features import CentredMoments, FrequentDirections
from rankscope.features.moments import merge_moments
from rankscope.features.reduction import reduce_output
from rankscope.features.sketch import RowStore
from rankscope.metrics import LiDAR, NeuralCollapse, PCADimension, StableRank


def rows(n=200, d=7, seed=0, level=100.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * torch.arange(1, d + 1) + level


def filled(x, batch, **options):
    moments = CentredMoments(x.shape[1], **options)
    for part in x.split(batch):
        moments.update(part)
    return moments


@pytest.mark.parametrize("batch", [1, 3, 64, 200])
def test_any_batch_size_gives_the_covariance(batch):
    x = rows()
    moments = filled(x, batch)
    np.testing.assert_allclose(moments.compute().numpy(), np.cov(x.numpy().T), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(0).numpy(), rtol=1e-14)
    assert int(moments.count) == 200


def test_a_large_mean_costs_no_digits():
    x = rows(level=0.0)
    far = filled(x + 1e6, 32).compute()
    torch.testing.assert_close(far, filled(x, 32).compute(), rtol=1e-9, atol=1e-9)


def test_float32_rows_are_summed_in_float64():
    x = (rows(4000) + 1000).float()
    expected = np.cov(x.double().numpy().T)
    np.testing.assert_allclose(filled(x, 256).compute().numpy(), expected, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_any_merge_order_gives_the_same(order):
    x = rows()
    parts = [filled(p, 16) for p in (x[:50], x[50:60], x[60:])]
    total = CentredMoments(7)  # merging into an empty one must work too
    for i in order:
        total.merge_state(parts[i])
    torch.testing.assert_close(total.compute(), filled(x, 200).compute(), rtol=1e-12, atol=1e-12)
    total.update(x)
    torch.testing.assert_close(total.compute(), filled(torch.cat([x, x]), 400).compute(), rtol=1e-12, atol=1e-12)


def test_merging_nothing_changes_nothing():
    empty = CentredMoments(7)
    moments = filled(rows(), 50)
    before = moments.compute().clone()
    moments.merge_state(empty)
    torch.testing.assert_close(moments.compute(), before, rtol=0, atol=0)
    state = (empty.count, empty.mean, empty.scatter)
    assert int(merge_moments(state, state)[0]) == 0
    with pytest.raises(DataError, match="width 3 do not merge into 7"):
        moments.merge_state(CentredMoments(3))


def test_metric_habits():
    x = rows()
    moments = filled(x, 50)
    moments.half()
    assert moments.scatter.dtype == torch.float64
    assert moments(x).shape == (7, 7)  # forward: update, and the value of the batch alone
    assert int(moments.count) == 400
    moments.reset()
    assert int(moments.count) == 0
    moments.update(x[:0])
    assert int(moments.count) == 0
    with pytest.raises(DataError, match="features: a covariance needs two samples; it got 0"):
        moments.compute()


def test_bad_rows_are_named():
    x = rows()
    moments = filled(x[:100], 50, name="layer3.1")
    x[170, 2] = torch.nan
    with pytest.raises(DataError, match=r"layer3.1: sample 170 holds a NaN or infinite"):
        moments.update(x[100:])
    assert int(moments.count) == 100
    for store in (RowStore(7, name="wide"), FrequentDirections(7, size=4, name="wide")):
        store.update(x[:100])
        with pytest.raises(DataError, match=r"wide: sample 170 holds a NaN or infinite"):
            store.update(x[100:])
        with pytest.raises(DataError, match=r"wide: rows of shape \(200, 6\); \(n, 7\)"):
            store.update(x[:, 1:])
    with pytest.raises(DataError, match=r"layer3.1: rows of shape \(200, 6\)"):
        moments.update(x[:, 1:])
    with pytest.raises(UsageError, match="width is 0"):
        CentredMoments(0)
    with pytest.raises(UsageError, match="size is 0"):
        FrequentDirections(3, size=0)


WORKER = """
from rankscope.features import CentredMoments
x = torch.load("x.pt")
moments = CentredMoments(x.shape[1])
for part in (x[:37], x[37:])[RANK].split(10):   # unequal shares
    moments.update(part)
covariance = moments.compute()
moments.unsync() if moments._is_synced else None
moments.update(x[:3])                            # and it goes on after the gathering
again = moments.compute()
torch.save((covariance, again), f"{RANK}.pt")
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    x = rows()
    torch.save(x, tmp_path / "x.pt")
    for run in in_processes(2, WORKER, tmp_path):
        assert run.code == 0, run.error
    both = torch.cat([x, x[:3], x[:3]])
    for r in range(2):
        covariance, again = torch.load(tmp_path / f"{r}.pt")
        torch.testing.assert_close(covariance, filled(x, 200).compute(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again, filled(both, 500).compute(), rtol=1e-12, atol=1e-12)


GATHERED = """
import rankscope as rs
from rankscope.features import CentredMoments
x = torch.load("x.pt")
own = (x[:501], x[501:])[RANK]
moments = CentredMoments(x.shape[1])
moments.update(own)
try:
    rs.feature_rank({"layer": moments})
except rs.UsageError as error:
    assert f"hold the {len(own)} rows of this process alone; call compute()" in str(error)
else:
    raise AssertionError("half of the rows were taken for all")
moments.compute()
found = rs.feature_rank({"layer": moments})["layer"]
left = int(moments.count)
torch.save((found.samples, found.pca_dimension, left), f"{RANK}.pt")
"""


@pytest.mark.slow
def test_f19_the_features_of_two_processes_are_those_of_all_rows(tmp_path):
    """1,001 rows of which each process has about half: rank three in one, three others in the other, six in all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1001, 8, generator=generator, dtype=torch.float64)
    x[:501, 3:] = 0
    x[501:, :3] = 0
    x[501:, 6:] = 0
    torch.save(x, tmp_path / "x.pt")
    for run in in_processes(2, GATHERED, tmp_path):
        assert run.code == 0, run.error
    assert int(torch.linalg.matrix_rank(x - x.mean(0))) == 6
    for r in range(2):
        samples, dimension, left = torch.load(tmp_path / f"{r}.pt")
        assert (samples, dimension) == (1001, 6)
        assert left == (501, 500)[r]  # what a process has stays its own: a later gathering counts nothing twice


def test_f19_a_metric_that_is_called_keeps_all_rows():
    """``metric(batch)`` returns the batch's value; the metric itself holds all rows, a last single one too."""
    x = rows(41, 5)
    x[:20, 3:] = 0
    moments, dimension = CentredMoments(), PCADimension()
    parts = [*x.float().split(10)[:1], *x[10:].split(10)]  # float32 rows at first: their rounding is kept in mind
    for part in parts:
        covariance, ranks = moments(part), dimension(part)
        if len(part) == 1:
            assert covariance.shape == (5, 5)
            assert bool(covariance.isnan().all())
            assert bool(ranks.isnan())
        else:
            np.testing.assert_allclose(covariance.numpy(), np.cov(part.double().numpy().T), rtol=1e-6, atol=1e-9)
    whole = torch.cat([part.double() for part in parts])
    expected = np.cov(whole.numpy().T)
    assert rs.feature_rank({"x": moments}).layers[0].samples == int(moments.count) == 41
    assert moments.roundoff == 2.0**-24
    np.testing.assert_allclose(moments.compute().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert float(dimension.compute()) == np.linalg.matrix_rank(expected, hermitian=True) == 5


@pytest.mark.parametrize("update_first", [True, False])
def test_f19_metrics_that_share_a_state_count_each_row_once(update_first):
    from torchmetrics import MetricCollection

    x = rows(60, 5)
    both = MetricCollection([PCADimension(), StableRank()])
    for k, part in enumerate(x.split(10)):
        if update_first and k % 2 == 0:
            both.update(part)
        else:
            both(part)
    centred = (x - x.mean(0)).numpy()
    sigma = np.linalg.svd(centred, compute_uv=False)
    for metric in both.values():
        assert int(metric.count) == 60
    assert float(both.compute()["StableRank"]) == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-12)


def test_f19_collapse_of_a_batch_of_one_class_is_nan_and_loses_no_row():
    x = rows(12, 3)
    labels = torch.tensor([0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1])
    called, updated = NeuralCollapse(2), NeuralCollapse(2)
    values = [called(part, own) for part, own in zip(x.split(4), labels.split(4), strict=True)]
    updated.update(x, labels)
    assert [bool(value["nc1"].isnan()) for value in values] == [False, True, False]
    assert float(called.compute()["nc1"]) == pytest.approx(float(updated.compute()["nc1"]), rel=1e-12)


def test_gram_of_the_samples_has_the_eigenvalues_of_the_scatter():
    x = rows(12, 30)
    store = RowStore(30)
    for part in x.split(5):
        store.update(part)
    expected = torch.linalg.eigvalsh(filled(x, 5).scatter).flip(0)[:12]
    torch.testing.assert_close(store.eigenvalues(), expected, rtol=1e-10, atol=1e-7)
    assert store.count == 12


def scatter_eigenvalues(x):
    return torch.linalg.svdvals(x - x.mean(0)) ** 2


@pytest.mark.parametrize("batch", [1, 7, 100, 300])
@pytest.mark.parametrize("size", [5, 12])
def test_sketch_keeps_its_bounds(batch, size):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(300, 40, generator=g, dtype=torch.float64) * 0.8 ** torch.arange(40) + 50
    sketch = FrequentDirections(40, size=size)
    for part in x.split(batch):
        sketch.update(part)
    true, found = scatter_eigenvalues(x), sketch.eigenvalues()
    assert sketch.error > 0
    assert len(found) == size
    below = true[:size] - found
    assert float(below.min()) > -1e-7
    assert float(below.max()) <= sketch.error + 1e-7
    assert sketch.error <= float(true[2:].sum()) / (size - 2) + 1e-7  # the a-priori bound, k = 2
    assert sketch.trace == pytest.approx(float(true.sum()))
    assert sketch.count == 300
    torch.testing.assert_close(sketch.mean, x.mean(0))


def test_sketch_of_low_rank_is_exact():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(300, 4, generator=g, dtype=torch.float64) @ torch.randn(4, 40, generator=g, dtype=torch.float64) + 9
    sketch = FrequentDirections(40, size=6)
    for part in x.split(11):
        sketch.update(part)
    torch.testing.assert_close(sketch.eigenvalues()[:4], scatter_eigenvalues(x)[:4], rtol=1e-9, atol=1e-6)
    assert sketch.error < 1e-9 * sketch.trace
    with pytest.raises(DataError, match="it got none"):
        FrequentDirections(4).eigenvalues()


def test_reductions():
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert reduce_output(x).shape == (2, 60)
    torch.testing.assert_close(reduce_output(x, "pool"), x.mean((2, 3)))
    torch.testing.assert_close(reduce_output(x, "pool", channels="last"), x.mean((1, 2)))
    positions = reduce_output(x, "positions")
    assert positions.shape == (40, 3)
    torch.testing.assert_close(positions[21], x[1, :, 0, 1])
    channels_last = torch.arange(2 * 4 * 4 * 6.0).reshape(2, 4, 4, 6)
    torch.testing.assert_close(reduce_output(channels_last, "pool"), channels_last.mean((1, 2)))
    torch.testing.assert_close(reduce_output(channels_last, "pool", channels="first"), channels_last.mean((2, 3)))
    # 4 channels of 4 × 6: from an image that is not square the same shape means the opposite
    torch.testing.assert_close(
        reduce_output(channels_last, "pool", input_shape=(2, 3, 16, 24)), channels_last.mean((2, 3))
    )
    square = torch.arange(2 * 4 * 4 * 4.0).reshape(2, 4, 4, 4)
    torch.testing.assert_close(reduce_output(square, "pool"), square.mean((2, 3)))
    tokens = x[:, :, :, 0]
    torch.testing.assert_close(reduce_output(tokens, "pool"), tokens.mean(1))
    torch.testing.assert_close(reduce_output(tokens, "pool", channels="first"), tokens.mean(2))
    assert reduce_output(x[:, :, 0, 0], "positions").shape == (2, 3)
    with pytest.raises(UsageError, match="unknown reduce 'pooled'; did you mean 'pool'"):
        reduce_output(x, "pooled")
    with pytest.raises(UsageError, match="unknown channels 'frist'; did you mean 'first'"):
        reduce_output(x, channels="frist")
    assert reduce_output(torch.zeros(3)).shape == (3, 1)  # one number for each sample is one feature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_over_positions_keeps_more_digits_than_half_precision(dtype):
    x = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(4)).to(dtype) + 5
    pooled = reduce_output(x, "pool")
    # 2,000 terms summed in float32: 1e-6 with room; float16 has 5e-4, bfloat16 4e-3
    torch.testing.assert_close(pooled.double(), x.double().mean((2, 3)), rtol=1e-6, atol=0)
    assert reduce_output(x.double(), "pool").dtype == torch.float64


def test_rows_known_to_be_finite_add_up_to_the_same():
    rows = torch.randn(90, 5, generator=torch.Generator().manual_seed(3)) + 100
    one, other = CentredMoments(5), CentredMoments(5)
    for part in rows.split(17):
        one.update(part)
        other.add_checked(part)
    assert torch.equal(one.compute(), other.compute())


def test_the_covariance_is_symmetric_whatever_the_kernel_does():
    moments = CentredMoments(5)
    moments.update(torch.randn(90, 5, generator=torch.Generator().manual_seed(3)))
    expected = moments.compute()
    moments.scatter[0, 3] += 1e-3  # as a matrix product may leave it, far more than one does
    moments._computed = None
    for matrix in (moments.compute(), moments.state()[2] / 89):
        assert torch.equal(matrix, matrix.T)
        assert torch.equal(matrix, expected)


@pytest.mark.parametrize(("level", "spread"), [(1e15, 1.0), (1e30, 1e-30), (1e100, 1e-50), (3.3, 1e-14)])
def test_a_constant_feature_hides_no_other(level, spread):
    rng = np.random.default_rng(2)
    varying = spread * rng.normal(size=(60, 3))
    rows = torch.from_numpy(np.concatenate([np.full((60, 2), level), varying], 1))
    moments = CentredMoments(name="layer")
    for part in rows.split(17):
        moments.update(part)
    scatter = moments.state()[2].numpy()
    assert not scatter[:2].any()  # of equal numbers nothing is left
    centred = varying - varying.mean(0)
    np.testing.assert_allclose(scatter[2:, 2:], centred.T @ centred, rtol=1e-10, atol=1e-12 * spread**2)
    for metric, exact in ((PCADimension(), 3), (StableRank(), None)):
        metric.update(rows)
        sigma = np.linalg.svd(centred, compute_uv=False)
        exact = exact or (sigma**2).sum() / sigma[0] ** 2
        assert float(metric.compute()) == pytest.approx(exact, rel=1e-9)


def test_rows_that_do_not_vary_have_dimension_zero():
    metric = PCADimension()
    metric.update(torch.full((50, 3), 0.1, dtype=torch.float64))
    metric.update(torch.full((31, 3), 0.1, dtype=torch.float64))
    assert float(metric.compute()) == 0


def test_sums_beyond_float64_are_no_nan_of_a_sample():
    with pytest.raises(DataError, match="features so large that their sums overflow float64; scale them down"):
        CentredMoments(2).update(torch.tensor([[1.7e308, 0], [-1.7e308, 0], [0, 0]], dtype=torch.float64))


def test_equal_rows_near_the_end_of_float64_do_not_vary():
    """Their sum is beyond float64, and their differences are zero."""
    moments = CentredMoments(2)
    moments.update(torch.full((3, 2), 1.7e308, dtype=torch.float64))
    assert torch.equal(moments.compute(), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_row_that_is_not_finite_is_named_wherever_it_stands(bad: float, at: int):
    rows = torch.ones(3, 2, dtype=torch.float64)
    rows[at, 1] = bad
    with pytest.raises(DataError, match=f"sample {at} holds a NaN or infinite value"):
        CentredMoments(2).update(rows)


@pytest.mark.parametrize("make", [LiDAR, StableRank, PCADimension])
def test_a_batch_of_one_has_no_value(make: type[CentredMoments]):
    rows = torch.eye(2, dtype=torch.float64)[:1]
    metric = make()
    value = metric(rows, rows) if make is LiDAR else metric(rows)
    assert value.shape == ()
    assert bool(value.isnan())
