"""One policy: a model in training mode is measured in evaluation mode, put back, and the result says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.features import CentredMoments


class Net(nn.Module):
    """Three things that training mode changes: dropout, batch statistics, and a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.norm(x))
        return self.fc(h * 0 if self.training else h)


X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def collected(net: nn.Module, folder: Path) -> Any:
    return rs.collect(net, (X, torch.arange(12) % 2), out=folder, cut_points=["norm"])


MEASURES: dict[str, Callable[[nn.Module, Path], Any]] = {
    "collect": collected,
    "feature_rank": lambda net, _: rs.feature_rank(net, X, cut_points=["drop"]),
    "local_feature_rank": lambda net, _: rs.local_feature_rank(net, X[:1], cut_points=["drop"], samples=20),
}


@pytest.mark.parametrize("name", MEASURES)
def test_training_mode_is_said_and_put_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = Net().train()
    net.norm.eval()  # a frozen norm stays as it was
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = MEASURES[name](net, tmp_path / "train")
    assert len(of_kind(found.facts, FactKind.TRAINING_MODE)) == 1
    assert "evaluation mode" in str(found)
    assert (net.training, net.drop.training, net.norm.training) == (True, True, False)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    quiet = MEASURES[name](net.eval(), tmp_path / "eval")
    assert not of_kind(quiet.facts, FactKind.TRAINING_MODE)
    if name == "collect":
        with torch.no_grad():  # what evaluation mode alone gives
            torch.testing.assert_close(found.logits, net(X))
        assert torch.equal(found.features, quiet.features)
    else:
        np.testing.assert_array_equal(found[0].covariance.singular_values, quiet[0].covariance.singular_values)


def test_rounding_does_not_depend_on_who_decomposes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's eigenvalues differ from a CPU's in their last bits; what was kept, and so its rounding, does not."""
    moments = CentredMoments(5)
    moments.update(X)
    own = torch.linalg.eigvalsh
    first = rs.feature_rank({"layer": moments})[0]
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: own(matrix) * (1 + 3e-15))
    again = rs.feature_rank({"layer": moments})[0]
    assert again.rounding == first.rounding > 0
    # unit roundoff of float32 times the Frobenius norm of all rows
    assert first.rounding == pytest.approx(2.0**-24 * float(X.double().norm()), rel=1e-9)
