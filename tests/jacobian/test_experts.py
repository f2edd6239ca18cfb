"""Mixtures of experts through a fused kernel; against float64 reverse-mode rows of each sample alone, expert by expert.

The kernel (``torch.nn.functional.grouped_mm``) has neither a forward-mode formula nor a float64 version.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rankscope as rs
from rankscope._base.facts import FactKind

WIDTH = 8


class Experts(nn.Module):
    """Each token goes to two of four experts; ``one_by_one`` computes the same without the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 4, bias=False)
        self.up = nn.Parameter(torch.randn(4, WIDTH, 16) / 3)
        self.down = nn.Parameter(torch.randn(4, 16, WIDTH) / 4)
        self.one_by_one = False

    def forward(self, tokens: Tensor) -> Tensor:
        flat = tokens.reshape(-1, WIDTH)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        expert, order = chosen.flatten().sort()
        rows = flat[order // 2]
        if self.one_by_one:
            made = torch.stack([torch.tanh(r @ self.up[e]) @ self.down[e] for r, e in zip(rows, expert, strict=True)])
        else:
            ends = torch.bincount(expert, minlength=4).cumsum(0).to(torch.int32)
            made = F.grouped_mm(torch.tanh(F.grouped_mm(rows, self.up, offs=ends)), self.down, offs=ends)
        mixed = torch.zeros_like(flat).index_add(0, order // 2, made * weights.flatten()[order, None])
        return tokens + mixed.reshape(tokens.shape)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.experts, self.head = nn.Linear(WIDTH, WIDTH), Experts(), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.experts(torch.tanh(self.stem(x))))


def rows_of(call: Any, x: Tensor) -> np.ndarray:
    x = x.clone().requires_grad_()
    flat = call(x).flatten()
    return torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in flat]).numpy()


def assert_certified(profile: rs.JacobianProfile, name: str, sample: int, truth: np.ndarray) -> None:
    place = [layer.name for layer in profile.layers].index(name)
    assert bool(profile.reading.certified[place, sample])
    spectrum = profile.layers[place].spectra[sample]
    assert spectrum is not None
    sigma = np.linalg.svd(truth, compute_uv=False)
    found = spectrum.singular_values
    count = min(len(sigma), len(found))
    assert np.abs(sigma[:count] - found[:count]).max() <= spectrum.error_bound
    rank = int((sigma > sigma[0] * profile.tolerance.relative(truth.shape)).sum())
    assert profile.reading.lower[place, sample] <= rank <= profile.reading.upper[place, sample]


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_mixture_of_experts_is_certified(tokens: int) -> None:
    torch.manual_seed(tokens)
    model, x = Tokens().eval(), torch.randn(3, tokens, WIDTH)
    profile = rs.jacobian_rank(model, x, cut_points=["experts", "head"], columns="all", tolerance=1e-3)
    assert profile.certificate.kind is FactKind.PROBES
    double = copy.deepcopy(model).double()
    double.experts.one_by_one = True
    for i in range(3):
        one = x[i : i + 1].double()
        assert_certified(profile, "head", i, rows_of(double, one))
        assert_certified(profile, "experts", i, rows_of(lambda z: double.experts(torch.tanh(double.stem(z))), one))


def test_samples_that_choose_other_experts_are_measured_as_if_alone() -> None:
    torch.manual_seed(3)
    model, x = Tokens().eval(), torch.randn(4, 2, WIDTH)
    together = rs.jacobian_rank(model, x, cut_points=["head"], columns="all", tolerance=1e-3)
    for i in range(4):
        alone = rs.jacobian_rank(model, x[i : i + 1], cut_points=["head"], columns="all", tolerance=1e-3)
        ours, theirs = together.layers[0].spectra[i], alone.layers[0].spectra[0]
        assert ours is not None
        assert theirs is not None
        bound = ours.error_bound + theirs.error_bound
        assert np.abs(ours.singular_values - theirs.singular_values).max() <= bound


def test_mixtral_is_certified() -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.MixtralConfig(
        vocab_size=19, num_hidden_layers=1, num_local_experts=3, max_position_embeddings=8, **sizes
    )
    torch.manual_seed(0)
    model = transformers.MixtralModel(config).eval()
    ids = torch.tensor([[3, 7, 5], [11, 2, 4]])
    profile = rs.jacobian_rank(model, {"input_ids": ids}, cut_points=["layers.0"], columns="all", tolerance=1e-3)
    assert profile.certificate.kind is FactKind.PROBES
    double = copy.deepcopy(model).double()
    double.set_experts_implementation("eager")
    seen: list[Tensor] = []
    double.layers[0].register_forward_hook(lambda _m, _i, out: seen.append(out))

    def call(x: Tensor) -> Tensor:
        double(inputs_embeds=x)
        return seen[-1]

    for i in range(2):
        embedded = model.get_input_embeddings()(ids[i : i + 1]).detach().double()
        # the norms and the router of Mixtral work in float32 inside, so its rows are right to some 1e-7
        truth = rows_of(call, embedded)
        spectrum = profile.layers[0].spectra[i]
        assert spectrum is not None
        sigma = np.linalg.svd(truth, compute_uv=False)
        gap = np.abs(sigma - spectrum.singular_values).max()
        assert gap <= spectrum.error_bound + 1e-5 * sigma[0]
        assert bool(profile.reading.certified[0, i])
