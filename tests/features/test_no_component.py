"""The search for the classification dimension from k = 0, as the paper's code has it: one answer for every sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankscope import UsageError
from rankscope.features import ClassificationDimension, classification_dimension


def data(share: float, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Two classes along one axis; ``share`` of 400 samples have the class that the bias favours."""
    rng = np.random.default_rng(0)
    labels = torch.tensor((rng.random(400) >= share).astype(np.int64))
    x = torch.tensor(rng.standard_normal((400, 5)), dtype=torch.float64) * torch.tensor([1.0, 0.5, 0.3, 0.2, 0.1])
    x[:, 0] += 6.0 * (labels - 0.5) + shift
    weight = torch.zeros(2, 5, dtype=torch.float64)
    weight[:, 0] = torch.tensor([-1.0, 1.0])
    return x, labels, (weight, torch.tensor([shift + 0.1, -shift], dtype=torch.float64))


@pytest.mark.parametrize("share", [0.97, 0.5])
@pytest.mark.parametrize("projection", ["uncentred", "centred"])
def test_no_component_is_enough_where_one_answer_is(share: float, projection: str) -> None:
    x, labels, (weight, bias) = data(share)
    mean = x.mean(0) if projection == "centred" else torch.zeros(5, dtype=torch.float64)
    answer = int((weight @ mean + bias).argmax())
    without = float((labels == answer).double().mean())
    full = float(((x @ weight.T + bias).argmax(1) == labels).double().mean())
    found = classification_dimension(x, labels, (weight, bias), projection=projection, least=0, bootstrap=50)
    assert found.without == pytest.approx(without)
    assert (found.dimension == 0) == (without >= 0.95 * full)
    plain = classification_dimension(x, labels, (weight, bias), projection=projection, bootstrap=50)
    assert plain.without is None
    assert plain.dimension >= 1
    np.testing.assert_array_equal(found.curve, plain.curve)
    if found.dimension:
        assert (found.dimension, found.interval) == (plain.dimension, plain.interval)
    else:
        assert found.accuracy == found.without
        assert found.interval is not None
        assert found.interval[0] == 0
        assert found.variance_kept == 0
        assert "0 of 5" in str(found)


def test_a_function_and_a_scorer_start_there_too() -> None:
    x, labels, (weight, bias) = data(0.97)
    linear = classification_dimension(x, labels, (weight, bias), least=0, bootstrap=0)
    called = classification_dimension(x, labels, lambda f: f @ weight.T + bias, least=0, bootstrap=0)
    assert (called.dimension, called.without) == (linear.dimension, linear.without) == (0, linear.without)

    def score(features: torch.Tensor, wanted: torch.Tensor) -> float:
        return float(((features @ weight.T + bias).argmax(1) == wanted).double().mean())

    scored = classification_dimension(x, labels, scorer=score, least=0)
    assert (scored.dimension, scored.without) == (0, pytest.approx(linear.without))


def test_it_is_kept_in_a_file(tmp_path) -> None:
    x, labels, head = data(0.97)
    found = classification_dimension(x, labels, head, least=0, bootstrap=0)
    again = ClassificationDimension.load(found.save(tmp_path / "clsdim.json"))
    assert again == found
    assert again.accuracy == found.without
    with pytest.raises(UsageError, match="k is 0; a truncated head keeps 1 to 5"):
        found.head()
    assert found.plot() is not None


@pytest.mark.parametrize("least", [-1, 2, 0.5, True])
def test_only_none_and_one_can_come_first(least) -> None:
    x, labels, head = data(0.5)
    with pytest.raises(UsageError, match="least is"):
        classification_dimension(x, labels, head, least=least)
