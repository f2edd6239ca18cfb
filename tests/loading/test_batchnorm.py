"""BatchNorm statistics against averages computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankscope._base.errors import DataError, ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope.loading import calibrate_batchnorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)
    ).eval()


def test_first_layer_is_the_average_over_all_images() -> None:
    model, images = network(), torch.randn(10, 1, 8, 8)
    fact = calibrate_batchnorm(model, images.split([4, 4, 2]))
    values = {"layers": 2, "unused": 0, "images": 10, "source": "data"}
    assert fact == Fact(FactKind.BATCHNORM_SET, values)
    features = model[0](images)
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, features.mean((0, 2, 3)))
    parts = [(len(f), f.var((0, 2, 3))) for f in features.split([4, 4, 2])]
    torch.testing.assert_close(norm.running_var, sum(n * v for n, v in parts) / 10)


def test_one_batch_makes_evaluation_normalise() -> None:
    model, images = network(), torch.randn(16, 1, 8, 8)
    calibrate_batchnorm(model, images)
    out = model(images)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(2), atol=5e-3, rtol=0)
    torch.testing.assert_close(out.std((0, 2, 3)), torch.ones(2), atol=5e-3, rtol=0)


def test_modes_momentum_parameters_and_randomness_are_left() -> None:
    model = network()
    model[3].train()
    model[1].momentum = 0.3
    state = torch.random.get_rng_state()
    weights = [p.clone() for p in model.parameters()]
    calibrate_batchnorm(model, torch.ones(8, 1, 8, 8))
    assert [m.training for m in model] == [False, False, False, True, False, False]
    assert model[1].momentum == 0.3
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert not model[1]._forward_pre_hooks


def test_a_shared_layer_averages_all_its_calls() -> None:
    norm = nn.BatchNorm1d(2)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + self.norm(3 + 2 * x)

    x = torch.randn(6, 2)
    calibrate_batchnorm(Twice().eval(), x)
    torch.testing.assert_close(norm.running_mean, (x.mean(0) + 3 + 2 * x.mean(0)) / 2)


def test_nothing_to_do_without_batchnorm() -> None:
    assert calibrate_batchnorm(nn.Linear(2, 2), torch.zeros(1, 2)) is None
    assert calibrate_batchnorm(nn.BatchNorm1d(2, track_running_stats=False), torch.zeros(2, 2)) is None


def test_no_images_too_few_and_not_finite_leave_the_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    model[0].running_mean.fill_(5)
    with pytest.raises(DataError, match="no images to set the BatchNorm statistics from"):
        calibrate_batchnorm(model, [])
    with pytest.raises(DataError, match=r"a batch of 1 is too small .*give 8 or more"):
        calibrate_batchnorm(model, torch.zeros(1, 2))
    with pytest.raises(DataError, match=r"a batch of 1 is too small .*give 8 or more"):
        calibrate_batchnorm(nn.Sequential(nn.AvgPool2d(4), nn.BatchNorm2d(2)).eval(), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ModelError, match="BatchNorm layer '0' got NaN or infinite statistics from 3 images"):
        calibrate_batchnorm(model, torch.full((3, 2), float("nan")))
    assert model[0].running_mean.tolist() == [5, 5]
    assert int(model[0].num_batches_tracked) == 0
    assert not model[0].training
