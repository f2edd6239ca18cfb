"""NC1–NC4 and class ranks beside the dimensions of labelled features, against NumPy's formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import rankscope as rs
from rankscope._base.errors import DataError, UsageError
from rankscope._base.facts import FactKind, of_kind
from rankscope.cli import main

COLUMNS = ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4")


def labelled(n: int = 90, d: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    y = np.arange(n) % classes
    return 3 * rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d)), y


def by_numpy(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray) -> dict[str, float]:
    classes = range(len(w))
    means = np.stack([x[y == c].mean(0) for c in classes])
    centred = means - means.mean(0)
    within = np.mean([np.outer(r - means[c], r - means[c]) for r, c in zip(x, y, strict=True)], axis=0)
    between = centred.T @ centred / len(w)
    norms = np.linalg.norm(centred, axis=1)
    cos = (centred / norms[:, None]) @ (centred / norms[:, None]).T
    off = ~np.eye(len(w), dtype=bool)
    nearest = ((x[:, None] - means) ** 2).sum(2).argmin(1)
    return {
        "nc1": float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / len(w)),
        "nc2_norms": float(norms.std() / norms.mean()),
        "nc2_angles": float(np.abs(cos[off] + 1 / (len(w) - 1)).mean()),
        "nc3": float(np.linalg.norm(w / np.linalg.norm(w) - centred / np.linalg.norm(centred))),
        "nc4": float(((x @ w.T + b).argmax(1) != nearest).mean()),
    }


def found_in(layer: rs.LayerFeatures) -> dict[str, float]:
    return {name: layer.to_dict()[name] for name in COLUMNS}


# two roundings of float64 apart, summed over 90 rows and the inverse of a matrix of condition below 1e3
CLOSE = {"rel": 1e-9, "abs": 1e-12}


@pytest.mark.parametrize("scale", [1.0, 1e170, 1e-170])
def test_an_array_with_labels_and_a_head(scale: float) -> None:
    x, y = labelled()
    w, b = np.random.default_rng(5).normal(size=(3, 6)), np.array([0.5, -0.5, 1.0])
    layer = rs.feature_rank(x * scale, labels=y, head=(w, b * scale))[0]
    assert found_in(layer) == pytest.approx(by_numpy(x, y, w, b), **CLOSE)
    row = layer.to_dict()
    assert row["classes"] == 3
    assert row["class_rank"] == 6  # 29 differences from the mean span all six dimensions
    assert row["class_rank_within"] == 6
    assert row["class_rank_means"] == 2
    assert row["pca_dimension"] == np.linalg.matrix_rank(x - x.mean(0))


def test_a_level_far_from_zero_takes_nothing_from_the_nearest_mean() -> None:
    x, y = labelled()
    w, b = np.eye(3, 6), np.zeros(3)
    far = rs.feature_rank(x + 1e9, labels=y, head=(w, b))[0]
    means = np.stack([(x + 1e9)[y == c].mean(0) for c in range(3)])
    nearest = (((x + 1e9)[:, None] - means) ** 2).sum(2).argmin(1)
    assert far.to_dict()["nc4"] == (((x + 1e9) @ w.T).argmax(1) != nearest).mean()


def test_several_layers_have_labels_and_no_head() -> None:
    x, y = labelled()
    maps = np.stack([x, 2 * x], axis=2)[..., None]  # (N, 6, 2, 1): pooled, 1.5·x
    profile = rs.feature_rank({"a": x, "b": maps}, labels=torch.tensor(y), reduce="pool")
    for layer in profile:
        expected, found = by_numpy(x, y, np.eye(3, 6), np.zeros(3)), found_in(layer)
        assert found.pop("nc3") is found.pop("nc4") is None
        assert found == pytest.approx({name: expected[name] for name in found}, **CLOSE)
    assert set(COLUMNS) <= set(profile.table().columns)
    assert "NC1" in str(profile)
    with pytest.raises(UsageError, match="a head reads one layer, and 2 are given"):
        rs.feature_rank({"a": x, "b": x}, labels=y, head=np.eye(3, 6))
    with pytest.raises(UsageError, match=r"choose pool or flatten"):
        rs.feature_rank({"b": maps}, labels=y, reduce="positions")


def collection(folder: Path, model: nn.Module, classes: int, **more: object) -> rs.Collection:
    x, y = labelled(classes=classes)
    data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    return rs.collect(model, data, out=folder, progress=False, **more)


def test_a_collection_measures_what_goes_into_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    kept = collection(tmp_path / "run", model, 3, cut_points=["1"])
    profile = rs.feature_rank(kept, head=True)
    assert [layer.name for layer in profile] == ["1", "head input"]
    assert profile["1"].by_class is None
    features, w, b = (t.double().numpy() for t in (kept.features, *kept.head))
    assert found_in(profile["head input"]) == pytest.approx(by_numpy(features, kept.labels.numpy(), w, b), **CLOSE)
    assert rs.feature_rank(kept)[0] == profile["1"]
    again = rs.FeatureProfile.load(profile.save(tmp_path / "profile.json"))
    assert again == profile
    assert rs.compare([profile, profile], metric="nc1").layers[1].values == (profile[1].by_class.nc1,) * 2
    # without moments there is one layer
    bare = collection(tmp_path / "bare", model, 3, cut_points=[])
    assert [layer.name for layer in rs.feature_rank(bare, head=True)] == ["head input"]


def test_a_head_with_one_output_is_two_of_opposite_sign(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).eval()
    kept = collection(tmp_path / "run", model, 2, cut_points=[])
    w, b = (p.detach().double().numpy() for p in (model[2].weight, model[2].bias))
    expected = by_numpy(
        kept.features.double().numpy(),
        kept.labels.numpy(),
        np.concatenate([-w / 2, w / 2]),
        np.array([-b[0], b[0]]) / 2,
    )
    assert found_in(rs.feature_rank(kept, head=True)[0]) == pytest.approx(expected, **CLOSE)


class Flat(nn.Module):
    """Features of three dimensions around an offset, before a head."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.wide, self.fc = nn.Linear(6, 40), nn.Linear(40, 3)
        left, right = (torch.randint(-3, 4, s, generator=generator).float() for s in ((40, 3), (3, 6)))
        self.wide.weight.data = left @ right  # small integers, which half precision holds
        self.wide.bias.data.fill_(offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.wide(x))


@pytest.mark.parametrize(("dtype", "offset"), [(torch.bfloat16, 50.0), (torch.float16, 1000.0)])
def test_a_collection_of_half_precision_leaves_the_dimension_open(
    dtype: torch.dtype, offset: float, tmp_path: Path
) -> None:
    model, (x, y) = Flat(offset).to(dtype).eval(), labelled()
    x = torch.tensor(x).to(dtype)
    kept = rs.collect(model, TensorDataset(x, torch.tensor(y)), out=tmp_path, progress=False, cut_points=[])
    assert kept.features.dtype == torch.float32
    profile = rs.feature_rank(kept, head=True)
    low, high = profile["head input"].pca_bounds
    exact = x.double() @ model.wide.weight.detach().double().T
    assert np.linalg.matrix_rank((exact - exact.mean(0)).numpy()) == 3
    assert low <= 3 < high
    assert profile["head input"].limited_by == "precision"
    (said,) = of_kind(profile.facts, FactKind.ROUNDED_CLASSES)
    assert (said["name"], said["dtype"], said.caution) == ("head input", str(dtype)[6:], True)
    (said,) = of_kind(rs.feature_rank(kept.features.to(dtype), labels=y).facts, FactKind.ROUNDED_CLASSES)
    assert (said["name"], said.caution) == ("features", True)
    assert not of_kind(rs.feature_rank(exact, labels=y).facts, FactKind.ROUNDED_CLASSES)


def test_labels_without_a_head_are_names_and_cost_nothing() -> None:
    x, y = labelled()
    small = rs.feature_rank(x, labels=y)
    assert rs.feature_rank(x, labels=y * 10**14 + 5) == small
    # a head's numbering stays: classes without samples are among its rows
    w = np.random.default_rng(5).normal(size=(9, 6))
    with_gaps = rs.feature_rank(x, labels=y * 4, head=(w, np.zeros(9)))[0]
    assert found_in(with_gaps) == pytest.approx(by_numpy(x, y, w[[0, 4, 8]], np.zeros(3)), **CLOSE)


def test_what_has_no_answer_is_refused(tmp_path: Path) -> None:
    x, y = labelled()
    with pytest.raises(UsageError, match="collect those of the model first"):
        rs.feature_rank(nn.Linear(6, 3), torch.tensor(x), labels=y)
    with pytest.raises(UsageError, match="head=True belongs to a Collection"):
        rs.feature_rank(x, head=True)
    with pytest.raises(UsageError, match="give labels too"):
        rs.feature_rank(x, head=np.eye(3, 6))
    with pytest.raises(UsageError, match="head is a function"):
        rs.feature_rank(x, labels=y, head=lambda rows: rows)
    with pytest.raises(DataError, match="89 labels for 90 samples"):
        rs.feature_rank(x, labels=y[1:])
    with pytest.raises(DataError, match="labels reach 2, and the head has 2 classes"):
        rs.feature_rank(x, labels=y, head=np.eye(2, 6))
    with pytest.raises(DataError, match="name one class"):
        rs.feature_rank(x, labels=np.zeros(90, dtype=int))
    with pytest.raises(DataError, match="labels are float64"):
        rs.feature_rank(x, labels=y / 1.0)
    moments = rs.metrics.CentredMoments(6)
    moments.update(torch.tensor(x))
    with pytest.raises(UsageError, match="labels"):
        rs.feature_rank({"a": moments}, labels=y)
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    bare = rs.collect(model, (torch.tensor(x).float(), None), out=tmp_path / "run", progress=False, cut_points=[])
    with pytest.raises(DataError, match="90 of 90 samples have no class"):
        rs.feature_rank(bare, head=True)
    with pytest.raises(UsageError, match="give head=True to measure by them"):
        rs.feature_rank(bare, labels=y)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    kept = collection(tmp_path / "run", nn.Sequential(nn.Linear(6, 3)).eval(), 3)
    arrays = {"features": kept.features, "labels": kept.labels, "weight": kept.head[0], "bias": kept.head[1]}
    np.savez(tmp_path / "all.npz", **{name: value.numpy() for name, value in arrays.items()})
    np.save(tmp_path / "x.npy", kept.features.numpy())
    np.save(tmp_path / "y.npy", kept.labels.numpy())
    expected = by_numpy(*(t.double().numpy() if t.is_floating_point() else t.numpy() for t in arrays.values()))

    def run(*command: object) -> dict[str, float]:
        assert main(["features", *map(str, command), "--out", str(tmp_path / "out"), "--json"]) == 0
        return json.loads(capsys.readouterr().out)["layers"][-1]

    for source in ("run", "all.npz"):
        row = run(tmp_path / source, "--head")
        assert {name: row[name] for name in COLUMNS} == pytest.approx(expected, **CLOSE)
    read: list[str] = []
    load = np.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            np,
            "load",
            lambda file, **given: (read.append(Path(getattr(file, "name", file)).name), load(file, **given))[1],
        )
        row = run(tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    assert sorted(read) == ["x.npy", "y.npy"]  # each once: features may be large
    assert row["nc1"] == pytest.approx(expected["nc1"], **CLOSE)
    assert row["nc3"] is None
    assert main(["features", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"), "--head"]) == 1
    assert "holds no head; name its arrays weight and bias" in capsys.readouterr().err
    assert main(["features", "digits", "--data", "digits", "--head"]) == 2
    assert "rankscope features RUN --head" in capsys.readouterr().err
    assert main(["features", str(tmp_path / "run"), "--labels", str(tmp_path / "y.npy")]) == 2
    assert "--labels does not apply" in capsys.readouterr().err
