"""Intrinsic dimension against the estimators in NumPy, from all distances; needs scikit-dimension for the numbers."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

import rankscope as rs
from rankscope._base.errors import DataError, NotInstalledError, UsageError
from rankscope._base.facts import FactKind
from rankscope.features.intrinsic import _nearest


def sheet(n: int, d: int, width: int, seed: int = 0) -> np.ndarray:
    """A curved d-dimensional sheet in ``width`` dimensions."""
    rng = np.random.default_rng(seed)
    flat = rng.random((n, d))
    return np.sin(flat @ rng.normal(size=(d, width)) + rng.normal(size=width))


def distances(x: np.ndarray) -> np.ndarray:
    return np.sort(cdist(x, x), axis=1)[:, 1:]


def twonn(x: np.ndarray) -> float:
    """Facco et al.: a line through the origin, −log(1 − F) over log μ, without the largest tenth."""
    r = distances(x)
    mu = np.sort(np.log(r[:, 1] / r[:, 0]))
    kept = int(0.9 * len(mu))
    f = -np.log(1 - np.arange(1, kept + 1) / len(mu))
    return float((mu[:kept] * f).sum() / (mu[:kept] ** 2).sum())


def levina_bickel(x: np.ndarray, k: int) -> float:
    r = distances(x)[:, :k]
    return float(1 / np.mean(np.log(r[:, -1:] / r[:, :-1]).sum(1) / (k - 1)))


def test_distances_of_near_rows_far_from_zero() -> None:
    x = sheet(60, 2, 5) * 1e-6 + 1e3
    exact = distances(x - x[0])  # differences of near numbers are exact
    # the mean of numbers near 1e3 is rounded, which moves every row alike; each coordinate then rounds to 1e-22 of 1e-6
    np.testing.assert_allclose(_nearest(torch.tensor(x), 4), exact[:, :4], rtol=1e-6)
    tiny = torch.tensor(sheet(60, 2, 5) * 1e-250)
    scale = float(tiny.abs().max())
    found = _nearest(tiny, 4)
    assert np.all(found > 0)
    ratio = found[:, 1] / found[:, 0]
    expected = distances(sheet(60, 2, 5))
    assert scale < 1e-200
    np.testing.assert_allclose(ratio, expected[:, 1] / expected[:, 0], rtol=1e-9)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'rankscope\[geometry\]'"):
        rs.intrinsic_dimension(sheet(50, 2, 4))


def test_questions_without_an_answer() -> None:
    with pytest.raises(UsageError, match="unknown method 'two'"):
        rs.intrinsic_dimension(sheet(50, 2, 4), method="two")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="neighbours has no meaning with method='twonn'"):
        rs.intrinsic_dimension(sheet(50, 2, 4), neighbours=5)


class TestNumbers:
    """Of the package itself."""

    @pytest.fixture(autouse=True)
    def _needs_the_extra(self) -> None:
        pytest.importorskip("skdim")

    @pytest.mark.parametrize("width", [1, 3, 60])
    def test_both_estimators(self, width: int) -> None:
        x = sheet(200, min(2, width), width)
        found = rs.intrinsic_dimension({"a": x, "b": 1e170 * x})
        # the same distances, summed in another order
        assert [layer.value for layer in found.layers] == pytest.approx([twonn(x)] * 2, rel=1e-8)
        assert found.layers[0].error == pytest.approx(1.5 * twonn(x) / np.sqrt(200), rel=1e-8)
        for k in (2, 20):
            mle = rs.intrinsic_dimension(x, method="mle", neighbours=k).layers[0]
            assert mle.value == pytest.approx(levina_bickel(x, k), rel=1e-8)
            assert mle.error == pytest.approx(1.5 * mle.value / np.sqrt(200 * (k - 1)), rel=1e-8)

    @pytest.mark.parametrize("method", ["twonn", "mle"])
    def test_the_error_covers_the_spread_over_draws(self, method: rs.features.intrinsic.Estimator) -> None:
        found = [
            rs.intrinsic_dimension(np.random.default_rng(seed).normal(size=(200, 2)), method=method).layers[0]
            for seed in range(30)
        ]
        # of 30 draws the standard deviation itself is known to 13%: the error is 1.0 to 1.5 of it, within 3 of these
        ratio = np.mean([layer.error for layer in found]) / np.std([layer.value for layer in found])
        assert 0.7 < ratio < 2.1

    def test_layers_of_a_model(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 30)).eval()
        x = torch.rand(300, 2)
        found = rs.intrinsic_dimension(net, x, cut_points=["1", "2"])
        assert [layer.name for layer in found.layers] == ["1", "2"]
        for layer in found.layers:
            assert abs(layer.value - 2) < 4 * layer.error
        assert found.table()["width"].tolist() == [8, 30]
        assert "Intrinsic dimension (TwoNN, 2 neighbours)" in str(found)

    def test_what_the_samples_cannot_tell_is_said(self) -> None:
        x = sheet(100, 2, 4)
        twice = rs.intrinsic_dimension(np.concatenate([x, x[:30]]))
        assert twice.layers[0].value == pytest.approx(rs.intrinsic_dimension(x).layers[0].value, rel=1e-12)
        assert (twice.layers[0].samples, twice.layers[0].duplicates) == (100, 30)
        assert [fact.kind for fact in twice.facts] == [FactKind.DUPLICATES_LEFT_OUT]
        wide = rs.intrinsic_dimension(np.random.default_rng(0).normal(size=(60, 30)))
        assert [fact.kind for fact in wide.facts] == [FactKind.BEYOND_SAMPLES]
        grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2)
        tied = rs.intrinsic_dimension(grid)
        assert np.isnan(tied.layers[0].value)
        assert [fact.kind for fact in tied.facts] == [FactKind.TIED_NEIGHBOURS]
        with pytest.raises(DataError, match="features: 3 distinct samples; 2 neighbours need 4 or more"):
            rs.intrinsic_dimension(np.repeat(x[:3], 9, axis=0))
        with pytest.raises(UsageError, match="data has no meaning where the source is no model"):
            rs.intrinsic_dimension(x, x)
