"""Every metric against its formula in NumPy, from rows that arrive in batches, in groups and over processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from processes import in_processes
from torch import nn
from torchmetrics import MetricCollection

import rankscope as rs
from rankscope import metrics
from rankscope._base.errors import DataError, UsageError
from rankscope.metrics import (
    AlphaReQ,
    ClassRank,
    EffectiveRank,
    LiDAR,
    NeuralCollapse,
    ParticipationRatio,
    PCADimension,
    RankMe,
    StableRank,
    VarianceDimension,
)

EPS32 = 2.0**-23


def rows(n=150, d=9, seed=0, level=3.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * 0.7 ** torch.arange(d) + level


def labelled(n=120, d=6, classes=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    centres = 3 * torch.randn(classes, d, generator=g, dtype=torch.float64)
    return centres[y] + torch.randn(n, d, generator=g, dtype=torch.float64), y


def sigma(x):
    return np.linalg.svd(x, compute_uv=False)


def entropy_rank(s):
    p = s / s.sum()
    p = p[p > 0]
    return np.exp(-(p * np.log(p)).sum())


def eigenvalues(x):
    return np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]


def slope(x):
    lam = eigenvalues(x)
    return -np.polyfit(np.log(np.arange(1, len(lam) + 1)), np.log(lam), 1)[0]


def published_rankme(s):
    p = s / s.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


CASES = {
    "rankme": (RankMe, lambda x: published_rankme(sigma(x))),
    "rankme centred": (lambda: RankMe(centred=True), lambda x: published_rankme(sigma(x - x.mean(0)))),
    "effective": (EffectiveRank, lambda x: entropy_rank(sigma(x - x.mean(0)))),
    "participation": (ParticipationRatio, lambda x: eigenvalues(x).sum() ** 2 / (eigenvalues(x) ** 2).sum()),
    "stable": (StableRank, lambda x: eigenvalues(x).sum() / eigenvalues(x)[0]),
    "pca": (PCADimension, lambda x: (eigenvalues(x) >= EPS32 * x.shape[1] * eigenvalues(x)[0]).sum()),
    "variance": (
        lambda: VarianceDimension(0.9),
        lambda x: 1 + (np.cumsum(eigenvalues(x)) / eigenvalues(x).sum() < 0.9).sum(),
    ),
    "alpha": (AlphaReQ, slope),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [7, 150])
def test_each_metric_is_its_formula(name, batch):
    make, oracle = CASES[name]
    metric, x = make(), rows()
    for part in x.split(batch):
        metric.update(part)
    assert float(metric.compute()) == pytest.approx(float(oracle(x.numpy())), rel=1e-9)
    metric.reset()
    metric.update(rows(n=40, d=4))  # another width after a reset
    assert float(metric.compute()) == pytest.approx(float(oracle(rows(n=40, d=4).numpy())), rel=1e-9)


def test_one_state_serves_a_collection():
    both = MetricCollection({name: make() for name, (make, _) in CASES.items()})
    for part in rows().split(32):
        both.update(part)
    assert len(both.compute_groups) == 1
    found = both.compute()
    for name, (_, oracle) in CASES.items():
        assert float(found[name]) == pytest.approx(float(oracle(rows().numpy())), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_merged_halves_and_pickled_metrics_give_the_whole(name):
    make, oracle = CASES[name]
    x = rows()
    a, b = make(), make()
    a.update(x[:40])
    b.update(x[40:])
    empty = pickle.loads(pickle.dumps(make()))
    for part in (a, make(), pickle.loads(pickle.dumps(b))):
        empty.merge_state(part)
    assert float(empty.compute()) == pytest.approx(float(oracle(x.numpy())), rel=1e-9)


def test_half_precision_modules_keep_float64_states():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.metric = EffectiveRank()

    holder = Holder().half()
    holder.metric.update(rows().float())
    assert holder.metric.scatter.dtype == torch.float64
    expected = entropy_rank(sigma((rows().float().double() - rows().float().double().mean(0)).numpy()))
    assert float(holder.metric.compute()) == pytest.approx(expected, rel=1e-9)


def test_few_rows_are_said_and_enough_are_not():
    few, enough = PCADimension(), PCADimension()
    few.update(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)))
    enough.update(rows())
    assert "5 rows of 9 dimensions" in few.note
    assert enough.note == ""


def test_constant_rows_have_rank_zero():
    metric = EffectiveRank()
    metric.update(torch.ones(5, 3))
    assert float(metric.compute()) == 0
    assert "same features" in metric.note


def test_what_cannot_be_read_is_refused_in_one_line():
    metric = RankMe()
    with pytest.raises(DataError, match="needs two samples; it got 0"):
        metric.compute()
    metric.update(rows())
    with pytest.raises(DataError, match=r"\(n, 9\) are expected"):
        metric.update(torch.zeros(3, 4))
    with pytest.raises(DataError, match="sample 150 holds a NaN"):
        metric.update(torch.full((2, 9), torch.nan))
    with pytest.raises(DataError, match="complex64"):
        metric.update(torch.zeros(2, 9, dtype=torch.complex64))
    with pytest.raises(UsageError, match=r"share is 1\.5"):
        VarianceDimension(1.5)
    with pytest.raises(UsageError, match="last is 1"):
        AlphaReQ(last=1)
    with pytest.raises(UsageError, match="width is 0"):
        RankMe(0)


def collapse_by_numpy(x, y, w, b, classes):
    means = np.stack([x[y == c].mean(0) for c in range(classes)])
    overall = means.mean(0)
    within = sum(np.outer(r, r) for r in x - means[y]) / len(x)
    between = sum(np.outer(r, r) for r in means - overall) / classes
    centred = means - overall
    norms = np.linalg.norm(centred, axis=1)
    cos = centred @ centred.T / np.outer(norms, norms)
    off = ~np.eye(classes, dtype=bool)
    nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / classes,
        "nc2_norms": norms.std() / norms.mean(),
        "nc2_angles": np.abs(cos[off] + 1 / (classes - 1)).mean(),
        "nc3": np.linalg.norm(w / np.linalg.norm(w) - centred / np.linalg.norm(centred)),
        "nc4": ((x @ w.T + b).argmax(1) != nearest).mean(),
    }


@pytest.mark.parametrize("d", [3, 6, 20])
def test_neural_collapse_is_its_formulas(d):
    x, y = labelled(d=d)
    head = nn.Linear(d, 4).double()
    metric = NeuralCollapse(4, head=head)
    for part, labels in zip(x.split(50), y.split(50), strict=True):
        metric.update(part, labels)
    expected = collapse_by_numpy(x.numpy(), y.numpy(), head.weight.detach().numpy(), head.bias.detach().numpy(), 4)
    found = {k: float(v) for k, v in metric.compute().items()}
    assert found == pytest.approx(expected, rel=1e-8)
    assert 0 < found["nc4"] < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize("line", [False, True], ids=["means apart", "means on a line"])
def test_features_far_from_zero_have_the_collapse_of_those_around_it(line, offset, dtype):
    # centred means have rank C − 1, or 1 on a line: what rounding leaves of the other axes is no variance to divide by
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    y = torch.arange(300) % 3
    z -= torch.stack([z[y == c].mean(0) for c in range(3)])[y]
    means = torch.randn(3, 64, generator=generator, dtype=torch.float64)
    z += (torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64) * means[0] if line else means)[y]
    expected = collapse_by_numpy(z.numpy(), y.numpy(), np.ones((3, 64)), np.zeros(3), 3)["nc1"]
    metric = NeuralCollapse(3)
    metric.update((z + offset).to(dtype), y)
    # each value is off by u·1000 at most, beside a standard deviation of 1
    assert float(metric.compute()["nc1"]) == pytest.approx(expected, rel=1e-3)


def test_neural_collapse_without_a_head_leaves_two_numbers_open():
    x, y = labelled()
    metric = NeuralCollapse(4)
    metric.update(x, y)
    found = metric.compute()
    assert found["nc3"].isnan()
    assert found["nc4"].isnan()
    assert not found["nc1"].isnan()


def test_a_class_without_samples_is_left_out():
    x, y = labelled()
    metric, more = NeuralCollapse(4, head=torch.eye(4, 6)), NeuralCollapse(5, head=torch.eye(5, 6))
    for each in (metric, more):
        each.update(x, y)
    assert {k: float(v) for k, v in more.compute().items()} == pytest.approx(
        {k: float(v) for k, v in metric.compute().items()}, rel=1e-12
    )


def test_labels_and_heads_that_do_not_fit_are_refused():
    x, y = labelled()
    with pytest.raises(UsageError, match=r"weight of shape \(4, d\)"):
        NeuralCollapse(4, head=torch.zeros(3, 6))
    with pytest.raises(DataError, match="head holds a NaN"):
        NeuralCollapse(4, head=torch.full((4, 6), torch.nan))
    metric = NeuralCollapse(2)
    metric.update(x, y)
    with pytest.raises(DataError, match=r"0 … 1 are expected"):
        metric.compute()
    with pytest.raises(DataError, match="labels are float64"):
        metric.update(x, y.double())
    with pytest.raises(DataError, match=r"labels of shape \(3,\)"):
        metric.update(x, y[:3])
    narrow = NeuralCollapse(4, head=torch.zeros(4, 5))
    narrow.update(x, y)
    with pytest.raises(DataError, match="reads 5 dimensions and the features have 6"):
        narrow.compute()
    one = NeuralCollapse(4)
    one.update(x, torch.zeros_like(y))
    with pytest.raises(DataError, match="two or more"):
        one.compute()


def test_rank_of_each_class():
    g = torch.Generator().manual_seed(0)
    spans = [2, 5, 1]
    parts = [
        torch.randn(40, k, generator=g, dtype=torch.float64) @ torch.randn(k, 8, generator=g, dtype=torch.float64)
        for k in spans
    ]
    x, y = torch.cat([p + 10 * i for i, p in enumerate(parts)]), torch.arange(3).repeat_interleave(40)
    metric = ClassRank(4)
    metric.update(x, y)
    found = metric.compute()
    assert found["each"][:3].tolist() == spans
    assert found["each"][3].isnan()
    centred = np.concatenate([p.numpy() - p.numpy().mean(0) for p in parts])
    assert float(found["within"]) == np.linalg.matrix_rank(centred)
    assert float(found["means"]) == 2
    assert float(found["limited"]) == 0


def lidar_by_numpy(views, delta=1e-4):
    n, q, d = views.shape
    centres = views.mean(1)
    between = np.cov(centres.T)
    inner = (views - centres[:, None]).reshape(-1, d)
    within = inner.T @ inner / (n * (q - 1)) + delta * np.eye(d)
    values, axes = np.linalg.eigh(within)
    root = axes @ np.diag(values**-0.5) @ axes.T
    lam = np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None)
    return published_rankme(lam)


@pytest.mark.parametrize("views", [2, 5])
def test_lidar_is_its_formula(views):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 1, 7, generator=g, dtype=torch.float64) * 0.6 ** torch.arange(7)
    x = x + 0.1 * torch.randn(60, views, 7, generator=g, dtype=torch.float64)
    metric = LiDAR()
    metric.update(x[:13])
    metric.update(*x[13:].unbind(1))
    assert float(metric.compute()) == pytest.approx(lidar_by_numpy(x.numpy()), rel=1e-8)
    one, other, empty = LiDAR(), LiDAR(), LiDAR()
    one.update(x[:20])
    other.update(x[20:])
    for part in (other, LiDAR(), one):
        empty.merge_state(part)
    assert float(empty.compute()) == pytest.approx(lidar_by_numpy(x.numpy()), rel=1e-8)
    with pytest.raises(DataError, match="two views or more"):
        metric.update(x[:, 0])
    with pytest.raises(DataError, match="of the same objects"):
        metric.update(x[:3, 0], x[:4, 0])


SPLIT = """
import rankscope as rs
from rankscope.metrics import EffectiveRank, LiDAR, NeuralCollapse, RankMe
g = torch.Generator().manual_seed(0)
x, y = torch.randn(60, 5, generator=g, dtype=torch.float64), torch.arange(60) % 3
mine = slice(0, 20) if RANK == 0 else slice(20, 60)
whole, split, alone = RankMe(sync_on_compute=False), RankMe(), EffectiveRank()
whole.update(x); split.update(x[mine])
try:
    split.features()
except rs.UsageError as error:
    assert "rows of this process alone; call compute()" in str(error)
else:
    raise AssertionError("some of the rows were taken for all")
if RANK:
    alone.update(x)  # the other process has no rows and does not know the width
assert abs(float(split.compute()) - float(whole.compute())) < 1e-9
assert split.features().samples == 60  # those of all processes, also once asked
assert rs.feature_rank({"layer": split})["layer"].samples == 60
assert split.note == ""
assert float(alone.compute()) > 1
head = torch.eye(3, 5)
nc, one = NeuralCollapse(3, head=head), NeuralCollapse(3, head=head, sync_on_compute=False)
nc.update(x[mine], y[mine]); one.update(x, y)
for key, value in one.compute().items():
    assert abs(float(nc.compute()[key]) - float(value)) < 1e-9, key
views = torch.stack([x, x + 0.1 * x.flip(0)], 1)
a, b = LiDAR(), LiDAR(sync_on_compute=False)
a.update(views[mine]); b.update(views)
assert abs(float(a.compute()) - float(b.compute())) < 1e-9
"""


def test_two_processes_give_the_numbers_of_one(tmp_path):
    for run in in_processes(2, SPLIT, tmp_path):
        assert run.code == 0, run.error


def test_the_table_of_feature_rank_has_the_same_numbers():
    x = rows()
    row = rs.feature_rank({"layer": x}).table().iloc[0]
    for column, make in {
        "rankme": RankMe,
        "effective_rank": EffectiveRank,
        "participation_ratio": ParticipationRatio,
        "stable_rank": StableRank,
        "pca_dimension": PCADimension,
        "alpha_req": AlphaReQ,
        "variance_dimension_90": lambda: VarianceDimension(0.9),
        "variance_dimension_95": lambda: VarianceDimension(0.95),
        "variance_dimension_99": lambda: VarianceDimension(0.99),
    }.items():
        metric = make()
        metric.update(x)
        assert float(metric.compute()) == pytest.approx(float(row[column]), rel=1e-9), column


def test_a_sketched_layer_gives_a_dimension_of_variance_or_none():
    x = rows(n=800, d=400, level=0.0)
    sketched = rs.feature_rank({"layer": x}, memory_budget=4 * 8 * 400 * 32)["layer"]  # 32 directions
    assert sketched.method == "sketch"
    for share in (0.5, 0.9, 0.99):
        found = sketched.variance_dimension(share)
        exact = 1 + (np.cumsum(eigenvalues(x.numpy())) / eigenvalues(x.numpy()).sum() < share).sum()
        assert found in (None, exact)
    assert sketched.variance_dimension(0.5) is not None


def test_every_metric_is_public():
    assert set(metrics.__all__) >= {make.__name__ for make, _ in CASES.values() if isinstance(make, type)}
    assert rs.metrics is metrics


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.uint32, torch.int16])
def test_integer_rows_lose_no_digit(dtype):
    g = torch.Generator().manual_seed(5)
    level = 2**40 if dtype == torch.int64 else 0  # float32 holds whole numbers up to 2**24 alone
    rows = (torch.randint(0, 2 if dtype == torch.bool else 9, (90, 4), generator=g) + level).to(dtype)
    y = torch.arange(90) % 3
    for made in (lambda: NeuralCollapse(3), lambda: ClassRank(3)):
        found, exact = made(), made()
        found.update(rows, y)
        exact.update(rows.to(torch.float64) - level, y)  # no measure depends on where zero lies
        for key, value in found.compute().items():
            torch.testing.assert_close(value, exact.compute()[key], rtol=1e-9, atol=1e-12, equal_nan=True)


def collapse_of(x, y, weight, bias):
    """NC1 to NC4 in NumPy, from the definitions; a pseudo-inverse of the whole covariance."""
    classes = y.max() + 1
    means = np.stack([x[y == k].mean(0) for k in range(classes)])
    m = means - means.mean(0)
    within, between = x - means[y], m.T @ m / classes
    norms = np.linalg.norm(m, axis=1)
    cosines = (m / norms[:, None] @ (m / norms[:, None]).T)[~np.eye(classes, dtype=bool)]
    nearest = ((x[:, None] - means) ** 2).sum(2).argmin(1)
    return {
        "nc1": np.trace(within.T @ within / len(x) @ np.linalg.pinv(between, 1e-10, hermitian=True)) / classes,
        "nc2_norms": norms.std() / norms.mean(),
        "nc2_angles": np.abs(cosines + 1 / (classes - 1)).mean(),
        "nc3": np.linalg.norm(weight / np.linalg.norm(weight) - m / np.linalg.norm(m)),
        "nc4": ((x @ weight.T + bias).argmax(1) != nearest).mean(),
    }


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-100, 1.0, 1e100, 1e170, 1e295])
@pytest.mark.parametrize("part", ["head", "features", "beside a constant", "far from zero"])
def test_neural_collapse_at_every_scale(part, scale):
    rng = np.random.default_rng(3)
    y = np.arange(80) % 4
    x, weight = rng.normal(size=(80, 6)) + 1.5 * np.eye(6)[y], rng.normal(size=(4, 6))
    bias = rng.normal(size=4)
    exact = collapse_of(x, y, weight, bias)
    if part == "head":
        rows, given = x, (weight * scale, bias * scale)
    elif part == "features":
        rows, given = x * scale, (weight, bias * scale)
    elif part == "far from zero":
        # one value for all features, of which the head's rows, orthogonal to it, see nothing; 1e5 leaves 11 digits
        weight -= weight.mean(1, keepdims=True)
        exact = collapse_of(x, y, weight, bias)
        rows, given = (x + 1e5) * scale, (weight, bias * scale)
    else:
        # a feature that does not vary, whose size says nothing of the others
        level = 1e100 if scale == 1e-100 else 1.0
        rows = np.concatenate([x * scale, np.full((80, 1), level)], 1)
        given = (np.concatenate([weight, np.zeros((4, 1))], 1), bias * scale)
    metric = NeuralCollapse(4, head=torch.from_numpy(given[0]), bias=torch.from_numpy(given[1]))
    metric.update(torch.from_numpy(rows), torch.from_numpy(y))
    found = {key: float(value) for key, value in metric.compute().items()}
    # 1e5 beside a spread of 1 costs five of sixteen digits
    assert found == pytest.approx(exact, rel=1e-8)
    ranks = ClassRank(4)
    ranks.update(torch.from_numpy(rows), torch.from_numpy(y))
    assert ranks.compute()["each"].tolist() == [6.0] * 4
    assert float(ranks.compute()["means"]) == 3


@pytest.mark.parametrize("spread", [1.0, 1e5, 1e8])
def test_class_ranks_do_not_depend_on_the_order_of_the_samples(spread):
    g = torch.Generator().manual_seed(7)
    x = torch.cat([torch.randn(50, 8, generator=g), 1e-3 * torch.randn(50, 8, generator=g)])
    x[0] = spread * torch.linspace(1, 2, 8)  # one sample of the first class lies far from all others
    y = torch.tensor([0] * 50 + [1] * 50)
    # 50 rows of 8 independent entries of one size span all of them
    for order in (torch.arange(100), torch.arange(100).flip(0), torch.randperm(100, generator=g)):
        metric = ClassRank(2)
        metric.update(x[order], y[order])
        assert metric.compute()["each"][1] == 8


def test_class_ranks_of_the_largest_numbers_of_float32():
    x = torch.tensor([[3e38, 0], [1e38, 1e38], [-3e38, 0], [-1e38, 3e38], [-2e38, 1e38]])
    metric = ClassRank(2)
    metric.update(x, torch.tensor([0, 0, 1, 1, 1]))
    assert metric.compute()["each"].tolist() == [1.0, 2.0]


ON_EACH_STEP = """
from rankscope.metrics import NeuralCollapse, RankMe
x = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
own = [(slice(0, 4), slice(4, 5)), (slice(5, 10), slice(10, 13))][RANK]  # the last of the first process is one row
step, nc = RankMe(dist_sync_on_step=True), NeuralCollapse(2, dist_sync_on_step=True)
for part, both in zip(own, ([*range(4), *range(5, 10)], [4, *range(10, 13)])):
    whole = RankMe(sync_on_compute=False)
    whole.update(x[both])
    assert abs(float(step(x[part])) - float(whole.compute())) < 1e-9
    labels = torch.arange(13) % 2
    one = NeuralCollapse(2, sync_on_compute=False)
    one.update(x[both], labels[both])
    assert abs(float(nc(x[part], labels[part])["nc1"]) - float(one.compute()["nc1"])) < 1e-9
whole = RankMe(sync_on_compute=False)
whole.update(x)
assert abs(float(step.compute()) - float(whole.compute())) < 1e-9
"""


def test_a_step_that_is_synchronised_counts_the_rows_of_all_processes(tmp_path):
    for run in in_processes(2, ON_EACH_STEP, tmp_path):
        assert run.code == 0, run.error


def test_the_value_of_a_batch_copies_no_rows_of_earlier_batches():
    head = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    metric, alone = NeuralCollapse(2, head=head), NeuralCollapse(2, head=head)
    y = torch.arange(6) % 2
    for seed in range(3):
        metric(torch.randn(6, 3, generator=torch.Generator().manual_seed(seed)), y)
    held = [part.data_ptr() for part in metric.rows]
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    alone.update(x, y)
    assert {k: float(v) for k, v in metric(x, y).items()} == {k: float(v) for k, v in alone.compute().items()}
    assert [part.data_ptr() for part in metric.rows[:3]] == held
    assert len(metric.rows) == len(metric.labels) == 4
    single = NeuralCollapse(2, dist_sync_on_step=True)  # no group: nothing to wait for
    assert all(np.isnan(float(v)) for v in single(x[:1], y[:1]).values())


def test_the_copy_for_a_batch_holds_no_rows(monkeypatch):
    metric, copied = NeuralCollapse(2), []
    whole = NeuralCollapse.reset
    monkeypatch.setattr(NeuralCollapse, "reset", lambda self: (copied.append(len(self.rows)), whole(self))[1])
    for _ in range(2):
        metric(torch.randn(4, 3), torch.arange(4) % 2)
    assert copied == [0, 0]
