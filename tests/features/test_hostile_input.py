"""Numbers in every form that people hand over: measured as NumPy does, or refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.errors import DataError, ModelError, UsageError

RNG = np.random.default_rng(0)
LOW = RNG.standard_normal((50, 3)) @ RNG.standard_normal((3, 8))


def dimension(rows: np.ndarray) -> int:
    """PCA dimension by NumPy: eigenvalues of the centred covariance, divided by the largest entry before squaring."""
    rows = np.asarray(rows, dtype=np.float64)
    rows = rows / np.abs(rows).max()
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    return int((values >= 2.0**-23 * rows.shape[1] * values[0]).sum())


FORMS: dict[str, Any] = {
    "constant column": lambda: np.where(np.arange(8) == 2, 5.0, LOW),
    "duplicated rows": lambda: np.repeat(LOW[:3], 20, 0),
    "integers": lambda: (10 * LOW).astype(np.int32),
    "unsigned bytes": lambda: np.abs(10 * LOW).astype(np.uint8),
    "Booleans": lambda: LOW > 0,
    "float16": lambda: LOW.astype(np.float16),
    "big-endian": lambda: LOW.astype(">f8"),
    "a large mean": lambda: LOW + 1e6,
    "1e-160": lambda: LOW * 1e-160,
    "1e-300": lambda: LOW * 1e-300,
    "1e300": lambda: LOW * 1e300,
    "columns of very different scale": lambda: LOW[:, :3] * np.array([1e-200, 1.0, 1e200]),
    "negative strides": lambda: LOW[::-1],
    "not contiguous": lambda: np.concatenate([LOW, LOW], 1)[:, ::2],
    "a data frame": lambda: pytest.importorskip("pandas").DataFrame(LOW),
    "lists": lambda: LOW.tolist(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_the_dimension_that_numpy_gives(name: str) -> None:
    given = FORMS[name]()
    assert rs.feature_rank(given)[0].pca_dimension == dimension(np.asarray(given))


def test_a_memory_map_is_read_and_left_as_it_is(tmp_path: Any) -> None:
    held = np.memmap(tmp_path / "x", dtype="float32", mode="w+", shape=LOW.shape)
    held[:] = LOW
    held.flush()
    read = np.memmap(tmp_path / "x", dtype="float32", mode="r", shape=LOW.shape)
    assert rs.feature_rank(read)[0].pca_dimension == 3
    assert np.array_equal(np.memmap(tmp_path / "x", dtype="float32", mode="r", shape=LOW.shape), LOW.astype("float32"))


SUBNORMAL = [(torch.float16, 2e-6), (torch.float32, 3e-44), (torch.float64, 2e-322), (torch.bfloat16, 3e-39)]


@pytest.mark.parametrize(("dtype", "scale"), SUBNORMAL)
def test_numbers_below_the_normal_ones_are_limited_by_precision(dtype: torch.dtype, scale: float) -> None:
    """There the distance of two numbers is fixed: rounding to it fills all 8 dimensions of features that have 3."""
    given = torch.tensor(LOW * scale).to(dtype)
    assert float(given.abs().double().max()) < 100 * torch.finfo(dtype).tiny
    layer = rs.feature_rank(given)[0]
    low, high = layer.pca_bounds
    assert low <= 3 <= high
    assert layer.pca_dimension > 3
    assert layer.limited_by == "precision"


def test_whole_numbers_beyond_what_float64_holds_have_bounds() -> None:
    layer = rs.feature_rank(torch.tensor([[2**62, 1], [2**62 + 1, 2], [2**62 + 3, 0]]))[0]
    # exactly: the columns vary by 0, 1, 3 and by 1, 2, 0, which are two dimensions; float64 holds the second alone
    assert layer.pca_bounds[0] <= 2 <= layer.pca_bounds[1]


def test_the_neighbourhood_takes_features_as_they_come_whatever_way_they_are_kept() -> None:
    """The rounding of a large bias is part of what the published code measures, with a covariance or all rows."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 4))
    with torch.no_grad():
        net[1].bias += 100
    for samples, method in ((50, "covariance"), (3, "gram")):
        layer = rs.local_feature_rank(net, torch.zeros(1, 6), cut_points=["1"], samples=samples)[0]
        assert (layer.method, layer.rounding) == (method, 0.0)
        assert layer.pca_bounds == (layer.pca_dimension, layer.pca_dimension)


def test_moments_read_rows_as_everything_else_does() -> None:
    moments = rs.features.CentredMoments(8)
    moments.update(LOW.tolist())
    np.testing.assert_allclose(moments.compute().numpy(), np.cov(LOW.T), rtol=1e-12, atol=1e-12)
    with pytest.raises(DataError, match="sparse or quantised"):
        moments.update(torch.tensor(LOW).to_sparse())
    with pytest.raises(DataError, match="masked array are hidden"):
        moments.update(np.ma.masked_array(LOW, LOW > 1))


REFUSED: dict[str, tuple[Any, str]] = {
    "hidden entries": (lambda: np.ma.masked_array(LOW, LOW > 1), "entries of this masked array are hidden"),
    "sparse": (lambda: torch.tensor(LOW).to_sparse(), "sparse or quantised"),
    "without values": (lambda: torch.tensor(LOW).to("meta"), "meta device"),
    "text": (lambda: np.array([["a", "b"], ["c", "d"]]), "an array of text"),
    "dates": (lambda: np.array([["2020-01-01"], ["2021-01-01"]], dtype="datetime64[D]"), "an array of dates"),
    "complex": (lambda: LOW + 1j, "give real ones"),
    "infinite": (lambda: np.full((3, 2), np.inf), "sample 0 holds a NaN or infinite value"),
    "one dimension": (lambda: LOW[:, 0], r"shape \(50,\)"),
    "no samples": (lambda: LOW[:0], r"shape \(0, 8\)"),
    "no dimensions": (lambda: LOW[:, :0], r"shape \(50, 0\)"),
    "all the same": (lambda: LOW[:1].repeat(9, 0), "the features are constant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_features_is_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        rs.feature_rank(make())


Y = np.arange(120) % 3
CENTRES = 3 * RNG.standard_normal((3, 6))
X = CENTRES[Y] + RNG.standard_normal((120, 6))
W = CENTRES - CENTRES.mean(0)
B = -W @ X.mean(0)


def crossing(x: Any, y: Any, weight: Any, bias: Any) -> tuple[int, float]:
    """Dimension and accuracy by NumPy in float64; an axis counts only where the features vary along it."""
    x, y, weight, bias = (np.asarray(v, dtype=np.float64) for v in (x, y, weight, bias))
    axes = np.linalg.svd(x - x.mean(0), full_matrices=True)[2].T
    full = ((x @ weight.T + bias).argmax(1) == y).mean()
    for k in range(1, x.shape[1] + 1):
        if (((x @ axes[:, :k] @ axes[:, :k].T) @ weight.T + bias).argmax(1) == y).mean() >= 0.95 * full - 1e-12:
            return k, full
    raise AssertionError("at full width all is kept")


def linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def of_torch(rows: torch.Tensor) -> torch.Tensor:
    return rows.double() @ torch.tensor(W).T + torch.tensor(B)


HEADS: dict[str, Any] = {
    "lists": lambda: (W.tolist(), B.tolist()),
    "arrays": lambda: (W, B),
    "data frame": lambda: (pytest.importorskip("pandas").DataFrame(W), B),
    "layer": lambda: linear(W, B),
    "log-softmax": lambda: nn.Sequential(linear(W, B), nn.LogSoftmax(1)),
    "softmax": lambda: nn.Sequential(linear(W, B), nn.Softmax(1)),
    "sigmoid": lambda: nn.Sequential(linear(W, B), nn.Sigmoid()),
    "function": lambda: of_torch,
    "function of arrays": lambda: lambda rows: of_torch(rows).numpy(),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_form_of_a_head_gives_the_same(name: str, dtype: Any) -> None:
    found = rs.classification_dimension(X.astype(dtype), Y, HEADS[name](), bootstrap=0)
    assert (found.dimension, found.full_accuracy) == pytest.approx(crossing(X, Y, W, B))


@pytest.mark.parametrize("form", [lambda w: w, torch.tensor])
def test_a_weight_alone_is_a_head_without_bias(form: Any) -> None:
    found = rs.classification_dimension(X, Y, form(W), bootstrap=0)
    assert (found.dimension, found.full_accuracy) == pytest.approx(crossing(X, Y, W, np.zeros(3)))


def test_a_linear_head_with_one_output_is_binary() -> None:
    y, weight, bias = (Y > 0).astype(int), W[1:2] - W[:1], B[1:2] - B[:1]
    wanted = crossing(X, y, np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias]))
    for head in ((weight, bias), linear(weight, bias)):
        stored = X @ weight.T + bias
        found = rs.classification_dimension(X, y, head, logits=stored, bootstrap=0)
        assert (found.dimension, found.full_accuracy) == pytest.approx(wanted)
        rows = torch.tensor(X)
        assert torch.equal(found.head(6)(rows).argmax(1), torch.tensor(stored[:, 0] > 0).long())
    with pytest.raises(DataError, match="may be a logit or a probability"):
        rs.classification_dimension(X, y, nn.Sequential(linear(weight, bias), nn.Sigmoid()))


SAME = [W[0], W[0], W[2]]


@pytest.mark.parametrize("form", [lambda: (np.stack(SAME), None), lambda: lambda x: x @ torch.tensor(SAME_ROWS).T])
def test_of_equal_logits_the_lower_class_wins(form: Any) -> None:
    found = rs.classification_dimension(X, Y, form(), bootstrap=0)
    assert (found.dimension, found.full_accuracy) == pytest.approx(crossing(X, Y, SAME_ROWS, np.zeros(3)))


SAME_ROWS = np.stack(SAME)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_no_scale_of_features_changes_the_dimension(scale: float) -> None:
    found = rs.classification_dimension(X * scale, Y, W, bootstrap=0)
    assert (found.dimension, found.full_accuracy) == pytest.approx(crossing(X, Y, W, np.zeros(3)))


LABELS: dict[str, tuple[Any, str]] = {
    "whole floats": (
        Y.astype(float),
        r"labels are float64 .*one integer per sample \(labels\.long\(\) of whole numbers\)",
    ),
    "one-hot": (np.eye(3)[Y], r"of one-hot labels labels\.argmax\(1\)"),
    "a column": (Y[:, None], r"one integer per sample \(labels\[:, 0\]\)"),
    "-1": (np.where(Y == 0, -1, Y), "samples have no class"),
    "from 1 on": (Y + 1, "label 3 of sample 2 is outside the 3 classes"),
    "text": ([str(v) for v in Y], r"labels are text \('0'\); give class indices"),
    "hidden": (np.ma.masked_array(Y, Y == 1), "labels: 40 entries of this masked array are hidden"),
    "one class": (np.zeros(120, dtype=int), "one class alone"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_no_classes_are_refused(name: str) -> None:
    labels, message = LABELS[name]
    with pytest.raises(DataError, match=message):
        rs.classification_dimension(X, labels, (W, B))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "a"}, "keep is 'a'"),
        ({"bootstrap": 2.5}, "bootstrap is 2.5; it must be a whole number"),
        ({"bootstrap": True}, "bootstrap is True"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"device": "bogus"}, "device 'bogus' is unknown"),
        ({"head": None, "scorer": "a"}, "scorer is a str; give a function"),
    ],
)
def test_options_that_are_no_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        rs.classification_dimension(X, Y, **{"head": (W, B), **options})


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ("a", "logits is a str"),
        (X[:, 0], r"shape \(120,\); give \(samples, classes\)"),
        (np.ma.masked_array(X @ W.T + B, mask=True), "masked array are hidden"),
    ],
)
def test_stored_logits_that_are_none_are_refused(logits: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rs.classification_dimension(X, Y, (W, B), logits=logits)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="scorer returns a str; it must return one number"):
        rs.classification_dimension(X, Y, scorer=lambda x, y: "good")


def test_weights_without_values_are_refused() -> None:
    for weight, message in ((torch.tensor(W).to_sparse(), "weight is sparse"), (torch.tensor(W).to("meta"), "meta")):
        with pytest.raises(DataError, match=message):
            rs.classification_dimension(X, Y, (weight, None))


def test_a_head_that_fails_is_named() -> None:
    with pytest.raises(ModelError, match="the head fails on"):
        rs.classification_dimension(X, Y, lambda rows: rows @ torch.zeros(5, 3, dtype=rows.dtype))


def test_a_function_that_writes_into_its_features_changes_nothing() -> None:
    """A scorer that scales in place: the score at each k is that of the projection, and the caller's array is kept."""
    rows = torch.from_numpy(LOW).float() + 1
    before, labels = rows.clone(), torch.arange(50) % 2

    def writes(features: torch.Tensor, labels: torch.Tensor) -> float:
        labels.zero_()
        return float((features.mul_(0.5) ** 2).sum())

    def plain(features: torch.Tensor, labels: torch.Tensor) -> float:
        return float(((features * 0.5) ** 2).sum())

    first = rs.classification_dimension(rows, labels, scorer=writes)
    assert torch.equal(rows, before)
    assert torch.equal(labels, torch.arange(50) % 2)
    # the score is a quarter of the sum of squares: by NumPy, from the axes of the centred covariance
    values = before.double().numpy()
    axes = np.linalg.eigh(np.cov(values.T))[1][:, ::-1]
    scores = [((values @ axes[:, :k] @ axes[:, :k].T) ** 2).sum() / 4 for k in (1, 2, 3)]
    np.testing.assert_allclose(first.curve[:3], scores, rtol=1e-4)  # float32 sums of 400 squares
    second = rs.classification_dimension(rows, labels, scorer=plain)
    np.testing.assert_array_equal(first.curve, second.curve)
    weight = torch.from_numpy(RNG.standard_normal((2, 8))).float()
    answers = (rows @ weight.T).argmax(1)
    found = rs.classification_dimension(rows, answers, lambda x: x.mul_(2) @ weight.T, bootstrap=0)
    assert torch.equal(rows, before)
    assert found.full_accuracy == 1


def test_a_function_that_fails_is_named_in_one_line() -> None:
    labels = torch.arange(50) % 2
    with pytest.raises(ModelError, match=r"^the head fails on .*\(50, 8\): KeyError: 'gone'$"):
        rs.classification_dimension(LOW, labels, lambda x: {}["gone"])
    with pytest.raises(DataError, match=r"^scorer fails on features of shape \(50, 8\): ZeroDivisionError: division"):
        rs.classification_dimension(LOW, labels, scorer=lambda x, y: 1 / 0)


@pytest.mark.parametrize(
    "names", [5, [5], b"0", iter(["0"]), None], ids=["number", "numbers", "bytes", "iterator", "none"]
)
def test_cut_points_that_are_no_names(names: Any, tmp_path: Any) -> None:
    model, rows = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), torch.from_numpy(LOW).float()
    said = r"cut_points is .*; give 'blocks'|needs data, and cut_points|no cut_points are given"
    for measure in (
        lambda: rs.feature_rank(model, rows, cut_points=names),
        lambda: rs.local_feature_rank(model, rows[:1], cut_points=names, samples=20),
        lambda: rs.jacobian_rank(model, rows[:1], cut_points=names),
    ):
        with pytest.raises(rs.RankscopeError, match=said):
            measure()
    if names is not None:
        with pytest.raises(rs.RankscopeError, match=said):
            rs.collect(model, (rows, torch.arange(50) % 2), cut_points=names, out=tmp_path)


@pytest.mark.parametrize("projection", ["uncentred", "centred"])
def test_functions_get_projections_of_features_far_from_zero_rounded_once(projection: Any) -> None:
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(60, 6)) + 1e4).astype(np.float32)
    y, weight = np.arange(60) % 3, torch.from_numpy(rng.normal(size=(6, 3)))
    mean = x.mean(0, dtype=np.float64)
    axes = np.linalg.svd(x - mean)[2]
    start = mean if projection == "centred" else np.zeros(6)
    seen: list[Any] = []

    def keep(rows: Any, *_: Any) -> float:
        assert rows.dtype == torch.float32
        seen.append(rows.numpy().astype(float))
        return 1.0

    def head(rows: Any) -> Any:
        keep(rows)
        return (rows - 1e4).double() @ weight

    for call in (
        lambda: rs.classification_dimension(x, y, scorer=keep, projection=projection),
        lambda: rs.classification_dimension(x, y, head, projection=projection, bootstrap=0),
    ):
        seen.clear()
        call()
        whole = [rows for rows in seen if len(rows) == 60][-6:]
        for k, rows in enumerate(whole, 1):
            exact = start + (x - start) @ axes[:k].T @ axes[:k]
            # half a unit in the last place of float32 at 1e4, and what float64 adds
            np.testing.assert_allclose(rows, exact, atol=2.0**-11 * 1.01, rtol=0)


class _Triples(torch.utils.data.Dataset):
    """(input, index, label), or with another member in the index's place."""

    def __init__(self, second):
        self.second = second

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.ones(4) * index, self.second(index), index % 3


@pytest.mark.parametrize("second", [int, str, torch.tensor], ids=["integer", "text", "tensor"])
def test_two_members_that_may_be_the_label_are_refused(second, tmp_path):
    with pytest.raises(
        DataError, match=r"items 2 and 3 of each sample hold one integer or text each, so either may be"
    ):
        rs.collect(torch.nn.Linear(4, 3), _Triples(second), out=tmp_path, progress=False)


def test_what_follows_the_label_and_cannot_be_one_is_left_alone(tmp_path):
    data = [(torch.ones(4) * k, k % 3, torch.ones(2)) for k in range(6)]
    assert rs.collect(torch.nn.Linear(4, 3), data, out=tmp_path, progress=False).labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_weights_on_the_meta_device_are_named():
    with pytest.raises(
        ModelError, match=r"weights of 'weight' are on the meta device and hold no numbers; load weights"
    ):
        rs.feature_rank(torch.nn.Linear(4, 3).to("meta"), torch.randn(5, 4), cut_points=["output"])
