"""The network that ships with the package: what it reaches, and that nothing of it is shared between layers."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

from rankscope._base.errors import UsageError
from rankscope.demo.digits_network import DigitsNetwork, digits_network, digits_split, weights_path
from rankscope.loading import calibrate_batchnorm


def accuracy(network: nn.Module) -> float:
    split = digits_split()
    with torch.no_grad():
        return float((network(split.held_out_images).argmax(1) == split.held_out_labels).float().mean())


def test_shipped_weights_reach_their_accuracy_on_images_they_never_saw() -> None:
    with safe_open(weights_path(), "pt") as file:
        metadata = file.metadata()
    reached = accuracy(digits_network())
    assert reached >= 0.97
    assert reached == pytest.approx(float(metadata["held_out_accuracy"]), abs=5e-3)
    assert "seed 0" in metadata["recipe"]


def test_random_network_knows_nothing() -> None:
    network = digits_network("random", seed=1)
    calibrate_batchnorm(network, digits_split().train_images)
    assert accuracy(network) < 0.5


def test_size() -> None:
    assert weights_path().stat().st_size < 1_000_000
    assert sum(p.numel() for p in digits_network().parameters()) < 200_000


def test_split_is_stratified_fixed_and_disjoint() -> None:
    split = digits_split()
    again = digits_split()
    assert all(torch.equal(a, b) for a, b in zip(split, again, strict=True))
    assert split.train_images.shape == (1347, 1, 8, 8)
    counts = torch.bincount(split.held_out_labels)
    assert int(counts.max() - counts.min()) <= 3
    seen = {tuple(x.flatten().tolist()) for x in split.train_images}
    assert not any(tuple(x.flatten().tolist()) in seen for x in split.held_out_images)


def test_every_norm_and_relu_runs_once() -> None:
    network = digits_network()
    calls: dict[nn.Module, int] = {}
    leaves = [m for m in network.modules() if not list(m.children())]
    for leaf in leaves:
        leaf.register_forward_hook(lambda m, *_: calls.__setitem__(m, calls.get(m, 0) + 1))
    network(torch.zeros(1, 1, 8, 8))
    assert len(calls) == len(leaves)
    assert set(calls.values()) == {1}


def test_random_weights_repeat_and_leave_the_global_state() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (digits_network("random", seed=s).fc.weight for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not digits_network().training
    assert DigitsNetwork.input_size == (1, 8, 8)


def test_unknown_weights() -> None:
    with pytest.raises(UsageError, match="digits weights 'traned' are unknown; did you mean 'trained'"):
        digits_network("traned")
