"""One small record of every kind, with NaN and infinities where the kind can have them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rankscope as rs
from rankscope._base.records import Record
from rankscope.features import LayerIntrinsic
from rankscope.reproduce import reproduce
from rankscope.spectra.lanczos import SquaredMap
from rankscope.spectra.matrix_free import Lanczos, matrix_free

__all__ = ["MADE"]


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(x)
        return out


def _model() -> nn.Module:
    torch.manual_seed(0)
    return Blocks().eval()


def _x() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


def _features() -> rs.FeatureProfile:
    return rs.feature_rank(_model(), _x(), cut_points="all")


def _singular() -> rs.ChainExponents:
    model = _model()
    with torch.no_grad():
        model.blocks[1][0].weight[0] = 0  # an exponent of −inf, and NaN errors
    return rs.chain_exponents(model, _x(), progress=False)


def _labelled() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(90) % 3
    return torch.randn(90, 3, generator=generator) + 3 * torch.eye(3)[y], y


def _deficit() -> rs.DependencyTable:
    return rs.independence_deficit(*_labelled(), permutations=2, path_points=3)


def _collection() -> Record:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    y = torch.arange(12) % 3
    folder = Path(tempfile.mkdtemp()) / "run"
    return rs.collect(model, TensorDataset(torch.randn(12, 5), y), cut_points=["0"], out=folder, progress=False)


def _reproduction() -> Record:
    with tempfile.TemporaryDirectory() as folder:
        return reproduce("fig1e", out=folder, scale="small", progress=False)


def _jacobian() -> rs.JacobianProfile:
    return rs.jacobian_rank(_model(), _x(), cut_points="all", progress=False)


def _density() -> Record:
    values = torch.linspace(1, 0.01, 90, dtype=torch.float64)[:, None]
    operator = SquaredMap(lambda q: values * q, lambda q: values * q, (90, 90), torch.float64)
    return matrix_free(operator, Lanczos(probes=2, steps=10))


def _watched() -> rs.WatchedRun:
    with tempfile.TemporaryDirectory() as folder:
        for step in (10, 2):
            torch.save(_model().state_dict(), f"{folder}/step_{step}.pt")
        return rs.watch(folder, _model(), _x(), cut_points="all", progress=False)


def _intrinsic() -> rs.IntrinsicDimension:
    nan = float("nan")  # made by hand: the numbers need an extra
    layers = (LayerIntrinsic("fc", 2.1, 0.2, 90, 8, 3), LayerIntrinsic("tied", nan, nan, 64, 2, 0))
    return rs.IntrinsicDimension(
        "twonn", 2, layers, (rs.Fact(rs.FactKind.TIED_NEIGHBOURS, {"name": "tied", "share": 1.0}),)
    )


MADE: dict[str, Callable[[], Record]] = {
    "JacobianProfile": lambda: _jacobian(),
    "AgainstRandom": lambda: rs.jacobian_rank(_model(), _x(), cut_points="all", progress=False).against_random(),
    "ChainExponents": _singular,
    "ChainProfile": lambda: rs.theory.deep_chain(width=6, depth=4, samples=20, seeds=(0, 1), activation="relu"),
    "FeatureProfile": _features,
    "ClassificationDimension": lambda: rs.classification_dimension(*_labelled(), (torch.eye(3), None)),
    "DependencyTable": _deficit,
    "RegularisationPath": lambda: _deficit().path(0, points=4),
    "ProbeResult": lambda: rs.probe(nn.ReLU(), input_shape=(2, 3, 3), samples=30, device="cpu"),
    "ProbeResults": lambda: rs.probe_all({"a": nn.ReLU()}, input_shape=(2, 3, 3), samples=30, device="cpu"),
    "ChainSpectrum": lambda: rs.theory.chain_singular_values([[[1.0, 0.0], [0.0, 0.0]]] * 2),  # a log σ of −inf
    "CompositionBound": lambda: rs.theory.composition_bound([[1.0, 0.0]], [[0.0], [0.0]]),  # κ is infinite
    "GaussianExponents": lambda: rs.theory.gaussian_exponents(3, 0.5),
    "LyapunovExponents": lambda: rs.theory.lyapunov_exponents([np.diag([1.0, 0.0])] * 3),
    "RankPrediction": lambda: rs.theory.predicted_rank(6, 40),
    "ResidualExponents": lambda: rs.theory.residual_exponents(4, 0.5, samples=3),
    "Collection": _collection,
    "LayerTable": lambda: rs.layers(_model(), _x()),
    "Reproduction": _reproduction,
    "SpectralDensity": _density,
    "Comparison": lambda: rs.compare([_jacobian(), _jacobian().with_tolerance(0.1)], same_images=True),
    "WatchedRun": _watched,
    "IntrinsicDimension": _intrinsic,
    "Similarity": lambda: rs.linear_cka({"a": torch.eye(5), "constant": torch.ones(5, 2)}),
    "RemedyResult": lambda: rs.probe_remedies(["plain", "width"], width=6, depth=3, seeds=(0, 1)),
}
