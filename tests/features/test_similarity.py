"""Linear CKA against the definitions in NumPy: centred Gram matrices, and the U-centred ones of the debiased one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import rankscope as rs
from rankscope._base.errors import DataError, UsageError
from rankscope._base.facts import FactKind, of_kind

RNG = np.random.default_rng(0)
# float64: centring by another matrix product, relative to values near 1
CLOSE = {"rel": 1e-9, "abs": 1e-11}


def plain(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = (h @ (a @ a.T) @ h for a in (x, y))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def hsic_unbiased(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5, as it is printed."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    first = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((first - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def debiased(x: np.ndarray, y: np.ndarray) -> float:
    k, m = x @ x.T, y @ y.T
    return hsic_unbiased(k, m) / np.sqrt(hsic_unbiased(k, k) * hsic_unbiased(m, m))


def related(n: int, *widths: int) -> list[np.ndarray]:
    base = RNG.normal(size=(n, 4))
    return [base @ RNG.normal(size=(4, d)) + 0.5 * RNG.normal(size=(n, d)) + 2.0 for d in widths]


@pytest.mark.parametrize("widths", [(3, 7), (60, 5), (200, 300)])
@pytest.mark.parametrize("n", [4, 30])
def test_both_estimates(n: int, widths: tuple[int, int]) -> None:
    x, y = related(n, *widths)
    for kind, expected in ((True, debiased), (False, plain)):
        found = rs.linear_cka({"x": x, "y": y}, debiased=kind)
        own = rs.linear_cka(x, y, debiased=kind)
        assert found.values[0, 1] == pytest.approx(expected(x, y), **CLOSE)
        assert own.values[0, 0] == pytest.approx(expected(x, y), **CLOSE)
        assert found.values[1, 0] == found.values[0, 1]
        assert np.diag(found.values) == pytest.approx([1, 1], **CLOSE)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_neither_scale_nor_level_nor_rotation_counts(scale: float) -> None:
    x, y = related(40, 6, 6)
    turned = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    expected = rs.linear_cka(x, y).values[0, 0]
    assert rs.linear_cka(scale * (x @ turned), y + 1e6).values[0, 0] == pytest.approx(expected, rel=1e-8)


def test_unrelated_wide_layers_are_alike_only_to_the_biased_estimate() -> None:
    x, y = RNG.normal(size=(2, 30, 3000))
    assert rs.linear_cka(x, y, debiased=False).values[0, 0] > 0.95
    assert abs(rs.linear_cka(x, y).values[0, 0]) < 0.2  # three standard deviations: 3·√2/30 and rounded up


def test_layers_of_a_model_and_of_another_run() -> None:
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3)) for _ in range(2))
    x = torch.randn(20, 1, 6, 6)
    found = rs.linear_cka(one, other, x, cut_points=["0", "3"], batch_size=7)
    assert (found.first, found.second, found.samples) == (("0", "3"), ("0", "3"), 20)
    with torch.no_grad():
        rows = [[net[0](x).mean((2, 3)).double().numpy(), net(x).double().numpy()] for net in (one, other)]
    for i in range(2):
        for j in range(2):
            # float32 features: 1e-6 of each, more for a mean over positions that cancels
            assert found.values[i, j] == pytest.approx(debiased(rows[0][i], rows[1][j]), abs=2e-4)
    own = rs.linear_cka(one, data=x, cut_points=["0", "3"])
    assert own.values[0, 0] == pytest.approx(1, abs=1e-12)
    mixed = rs.linear_cka(one, {"kept": rows[1][1]}, x, cut_points=["3"])
    assert mixed.values[0, 0] == pytest.approx(found.values[1, 1], abs=1e-6)
    assert one.training


class Forks(nn.Module):
    """One of two layers, by the sign of a sample's first value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.l, self.r, self.fc = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        return self.fc(self.r(h) if bool(x[0, 0] > 0) else self.l(h))


@pytest.mark.parametrize("wanted", ["all", ["stem", "l", "fc"]], ids=["all", "by name"])
def test_a_layer_that_some_samples_do_not_call_is_left_out_and_named(wanted: str | list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 5)
    x[:, 0] = torch.tensor([1.0] * 8 + [-1.0] * 12)
    without = {"l": 8, "r": 12} if wanted == "all" else {"l": 8}
    found = rs.linear_cka(Forks().eval(), data=x, cut_points=wanted)
    assert found.first == found.second == ("stem", "fc")
    (said,) = of_kind(found.facts, FactKind.NOT_CALLED)
    assert dict(zip(said["names"], said["counts"], strict=True)) == without
    assert "left out, since every layer needs a row of each sample" in str(found)
    assert "those of the samples that do" not in str(found)


class Noisy(Dataset[Any]):
    """Other values in one sample each time it is read, as of a random transform that is rarely applied."""

    def __init__(self, key: str | None, noise: float) -> None:
        self.key, self.noise = key, noise
        self.x, self.rng = torch.from_numpy(np.random.default_rng(3).normal(size=(12, 3))).float(), RNG

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        scale = 1 + (i == 7) * self.noise * torch.tensor(self.rng.uniform(1, 2), dtype=torch.float32)
        if self.key is None:
            return self.x[i] * scale
        return {"x": self.x[i], self.key: [self.x[i] * scale, torch.ones(3)]}


class Gated(nn.Linear):
    def forward(self, x: torch.Tensor, gates: Any) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x * gates[0])


@pytest.mark.parametrize("key", [None, "gates"])
def test_data_that_change_between_two_models_are_refused(key: str | None) -> None:
    torch.manual_seed(0)
    kind = nn.Linear if key is None else Gated
    one, other = kind(3, 3).eval(), kind(3, 3).eval()
    with pytest.raises(DataError, match="sample 7 of the data has other values for the second model"):
        rs.linear_cka(one, other, Noisy(key, 1.0), cut_points=["output"], batch_size=5)
    still = rs.linear_cka(one, other, Noisy(key, 0.0), cut_points=["output"], batch_size=5)
    with torch.no_grad():
        x = Noisy(None, 0.0).x
        rows = [net(x) if key is None else net(x, [x]) for net in (one, other)]
    # float32 features: 1e-6 of each
    assert still.values[0, 0] == pytest.approx(debiased(*(part.double().numpy() for part in rows)), abs=1e-4)
    # of one model, what is read once is compared with itself
    assert rs.linear_cka(one, data=Noisy(key, 1.0), cut_points=["output"]).values[0, 0] == pytest.approx(1, abs=1e-12)
    assert rs.linear_cka(one, rows[1], Noisy(key, 1.0), cut_points=["output"]).samples == 12


def test_models_that_take_other_inputs_of_the_same_records_are_compared() -> None:
    class Second(nn.Linear):
        def forward(self, gates: Any) -> torch.Tensor:
            return super().forward(gates)

    torch.manual_seed(0)
    x = Noisy(None, 0.0).x
    records: Any = [{"x": a, "gates": [a], "label": 0} for a in x]
    both: Any = [{"x": a, "label": 0, "gates": 2 * a} for a in x]
    one, gated, second = nn.Linear(3, 3).eval(), Gated(3, 3).eval(), Second(3, 3).eval()
    for other, data in ((gated, records), (second, both)):
        assert rs.linear_cka(one, other, data, cut_points=["output"]).samples == 12


def test_a_constant_layer_has_none(tmp_path: Path) -> None:
    x = RNG.normal(size=(10, 3))
    found = rs.linear_cka({"x": x, "same": np.full((10, 4), 0.1)})
    assert np.isnan(found.values[0, 1])
    assert np.isnan(found.values[1, 1])
    assert [fact.kind for fact in found.facts] == [FactKind.CONSTANT_LAYER]
    assert type(found).load(found.save(tmp_path / "s.json")) == found
    assert "Linear CKA (debiased, 10 samples)" in str(found)
    assert found.plot().images[0].get_clim() == (0, 1)


def test_refusals() -> None:
    x = RNG.normal(size=(10, 3))
    with pytest.raises(DataError, match="needs 4 samples; 3 are given"):
        rs.linear_cka(x[:3])
    with pytest.raises(DataError, match="different numbers of samples"):
        rs.linear_cka({"a": x, "b": x[1:]})
    with pytest.raises(DataError, match="10 samples of the first and 9 of the second"):
        rs.linear_cka(x, x[1:])
    with pytest.raises(UsageError, match="a model needs data"):
        rs.linear_cka(nn.Linear(3, 3))
    with pytest.raises(UsageError, match="data"):
        rs.linear_cka(x, x, x)
    with pytest.raises(UsageError, match="no layers are given"):
        rs.linear_cka({})
    broken = x.copy()
    broken[4, 1] = np.nan
    with pytest.raises(DataError, match="features: sample 4 holds a NaN"):
        rs.linear_cka(broken)
    with pytest.raises(DataError, match="complex"):
        rs.linear_cka(x * 1j)
