"""What is computed of several samples is seen whatever the values; the oracle changes samples and looks at others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rankscope.slicing.sample_mixing import Mixing, mixing_of
from rankscope.slicing.value_reads import reads_values

WIDE = 1e6  # a threshold that no sample here comes near: nothing shows in the values


def _shifted(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[1:].copy_(x[:-1])
    return made


def _in_a_thread(x: Tensor) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: x + (x.sum(0) > WIDE)).result()


@torch.library.custom_op("rankscope_sample_mixing::neighbour", mutates_args={"seen"})
def _neighbour(x: Tensor, seen: Tensor) -> Tensor:
    """Returns a new tensor and writes into another beside it."""
    seen.fill_(1)
    return (x.roll(1, 0) - WIDE).relu()


def _written_in_a_list(x: Tensor) -> Tensor:
    into = torch.zeros(x.shape)
    torch._foreach_add_([into], [(x.roll(1, 0) - WIDE).relu()])
    return x + into


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x + (x.sum() > WIDE),
    "any": lambda x: x + (x > WIDE).any(),
    "all": lambda x: x + (x < WIDE).all(0),
    "max": lambda x: x + (x.max() > WIDE),
    "mean": lambda x: x * (x.mean(0) < WIDE),
    "cumsum": lambda x: x + (x - WIDE).relu().cumsum(0),
    "cummax": lambda x: x + (x.cummax(0).values > WIDE),
    "sort": lambda x: x + (x.sort(0).values > WIDE),
    "sorted places": lambda x: x[(x[:, 0] > WIDE).long().argsort(stable=True)],
    "topk": lambda x: x + (x.topk(2, 0).values > WIDE).sum(),
    "argmax": lambda x: x + (x[:3].argmax(0) > 5),
    "kthvalue": lambda x: x + (x.kthvalue(2, 0).values > WIDE),
    "median": lambda x: x + (x.median() > WIDE),
    "norm": lambda x: x / x.norm(dim=0).clamp(min=WIDE),
    "norm of all": lambda x: x * (WIDE / x.norm()).clamp(max=1),
    "variance": lambda x: x + (x.std(0) > WIDE),
    "products of samples": lambda x: x + ((x @ x.T) > WIDE).any(1, keepdim=True),
    "einsum": lambda x: x + (torch.einsum("ij,kj->ik", x, x) - WIDE).relu() @ x,
    "softmax": lambda x: x + (x.softmax(0) > WIDE),
    "roll": lambda x: x + (x.roll(1, 0) - WIDE).relu(),
    "slices": lambda x: x + torch.cat([x[1:], x[:1]]).clamp(min=WIDE),
    "written": lambda x: x + (_shifted(x) > WIDE),
    "added": lambda x: x.clone().index_add_(0, torch.tensor([0]), (x[1:2] - WIDE).relu()),
    "put twice": lambda x: (
        torch.zeros(5, 6).index_put((torch.tensor([0, 0]),), x[[1, 0]] - WIDE, accumulate=True).relu()
    ),
    "gathered": lambda x: x.gather(0, (x > WIDE).long() + torch.arange(len(x))[:, None].clamp(max=3)),
    "scattered": lambda x: torch.zeros_like(x).scatter_add(0, (x > WIDE).long(), (x - WIDE).relu()),
    "batch statistics": lambda x: x + (F.batch_norm(x, None, None, training=True) > WIDE),
    "steps": lambda x: x + (nn.LSTM(6, 6)(x)[0] > WIDE),
    "steps of a GRU": lambda x: x + (nn.GRU(6, 6)(x)[0] > WIDE),
    "channels": lambda x: x + (F.conv1d(x[None], torch.ones(5, 5, 1))[0] > WIDE),
    "counted": lambda x: x / torch.ones_like(x).sum(0),
    "data": lambda x: x + (x.data.sum() > WIDE),
    "half": lambda x: x + (x.half().sum() > WIDE),
    "Fourier": lambda x: x + (torch.fft.fft(x, dim=0).real > WIDE),
    "singular vectors": lambda x: x + (torch.linalg.svd(x)[1] > WIDE).sum(),
    "distances": lambda x: x + (torch.cdist(x, x) > WIDE).any(1, keepdim=True),
    "reshaped": lambda x: (x.reshape(6, 5) - WIDE).relu().T + x[:, :6],
    "custom operator that writes": lambda x: x + _neighbour(x, torch.zeros(1)),
    "list that is written": _written_in_a_list,
    "statistics that are written": lambda x: (
        x
        + torch.ops.aten._native_batch_norm_legit(x, None, None, torch.zeros(6), torch.ones(6), True, 0.1, 1e-5)[0].gt(
            WIDE
        )
    ),
    "histogram": lambda x: x + (torch.histc(x, 3, -WIDE, WIDE)[2] > 29),
    "bilinear": lambda x: x + (nn.Bilinear(6, 6, 6)(x, x.flip(0)) > WIDE),
    "packed steps": lambda x: x + (nn.GRU(6, 6)(pack_padded_sequence(x[:, None], torch.tensor([5])))[0].data > WIDE),
    "other function": lambda x: x + torch.vmap(lambda r: r.sum(), in_dims=1)(x).gt(WIDE),
}
LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "NumPy": lambda x: x + torch.from_numpy(x.numpy().sum(0)).gt(WIDE),
    "list": lambda x: x + (torch.tensor(x.tolist()).sum() > WIDE),
    "thread": _in_a_thread,
    "eigenvalues": lambda x: x + torch.linalg.eigvals(x[:, :5]).real.sum().gt(WIDE),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: nn.Linear(6, 3)(x),
    "own mean": lambda x: x - x.mean(1, keepdim=True),
    "own threshold": lambda x: x + (x.sum(1, keepdim=True) > 0),
    "layer norm": lambda x: nn.LayerNorm(6)(x),
    "group norm": lambda x: nn.GroupNorm(2, 6)(x),
    "instance norm": lambda x: nn.InstanceNorm1d(2)(x.reshape(5, 2, 3)),
    "batch norm": lambda x: nn.BatchNorm1d(6).eval()(x),
    "convolution": lambda x: nn.Conv2d(2, 4, 3, padding=1)(x.reshape(5, 2, 1, 3)),
    "groups": lambda x: nn.Conv2d(2, 4, 1, groups=2)(x.reshape(5, 2, 1, 3)),
    "weights of each": lambda x: F.conv1d(x.reshape(1, 10, 3), x[:, :2].reshape(10, 1, 1), groups=10).reshape(5, -1),
    "transposed": lambda x: nn.ConvTranspose2d(2, 4, 2, 2)(x.reshape(5, 2, 1, 3)),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.reshape(5, 1, 3, 2)] * 3),
    "samples second": lambda x: nn.MultiheadAttention(2, 1)(*[x.reshape(5, 3, 2).transpose(0, 1)] * 3)[0].transpose(
        0, 1
    ),
    "LSTM": lambda x: nn.LSTM(2, 4, batch_first=True)(x.reshape(5, 3, 2))[0],
    "GRU": lambda x: nn.GRU(2, 4, 2, batch_first=True, bidirectional=True)(x.reshape(5, 3, 2))[0],
    "packed": lambda x: pad_packed_sequence(
        nn.LSTM(2, 4, batch_first=True)(
            pack_padded_sequence(x.reshape(5, 3, 2), torch.tensor([1, 3, 2, 3, 1]), True, enforce_sorted=False)
        )[0],
        batch_first=True,
    )[0],
    "bilinear": lambda x: nn.Bilinear(3, 3, 4)(x[:, :3], x[:, 3:]),
    "histogram of each": lambda x: torch.stack([row.histc(3, -2, 2) for row in x]),
    "pool": lambda x: F.max_pool2d(x.reshape(5, 1, 2, 3), 2),
    "mean of a map": lambda x: F.adaptive_avg_pool2d(x.reshape(5, 1, 2, 3), 1),
    "token of each": lambda x: x.reshape(5, 3, 2)[torch.arange(5), x.reshape(5, 3, 2)[..., 0].argmax(-1)],
    "table": lambda x: nn.Embedding(9, 4)((x > 0).long()),
    "class token": lambda x: torch.cat([torch.zeros(1, 1, 2).expand(5, -1, -1), x.reshape(5, 3, 2)], 1),
    "sort": lambda x: x.sort(1).values,
    "gathered": lambda x: x.gather(1, (x > 0).long()),
    "scattered": lambda x: torch.zeros(5, 6).scatter_add(1, x.argsort(1), x),
    "one by one": lambda x: torch.stack([row * 2 for row in x]),
    "interpolation": lambda x: F.interpolate(x.reshape(5, 1, 2, 3), scale_factor=2, mode="bilinear"),
    "Fourier": lambda x: torch.fft.fft2(x.reshape(5, 2, 3)).real,
    "inverse": lambda x: torch.linalg.inv(4 * torch.eye(2) + x[:, :4].reshape(5, 2, 2)),
    "unused": lambda x: (x.mean(), x * 2)[1],
    "dynamic": lambda x: F.hardswish(x.clone(), inplace=True),
    "quantile": lambda x: x.quantile(0.5, dim=1),
}


def followed(run: Callable[[Tensor], Tensor], count: int = 5) -> Mixing:
    torch.manual_seed(0)
    x = torch.randn(5, 6)[:count].clone()
    return mixing_of([x], count, lambda: {"out": run(x)})


@pytest.mark.parametrize("name", MIXED)
def test_what_is_computed_of_several_samples_is_seen(name: str) -> None:
    assert followed(MIXED[name]).mixes


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_followed_is_named(name: str) -> None:
    found = followed(LEFT[name])
    assert found.mixes
    assert found.undecided


@pytest.mark.parametrize("name", APART)
def test_samples_that_stay_apart(name: str) -> None:
    def run(x: Tensor) -> Any:
        torch.manual_seed(1)
        return APART[name](x)

    found = followed(run)
    assert (found.mixes, found.reads, found.undecided) == (False, False, None)
    x, other = torch.randn(2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(run(torch.cat([x[:2], other[2:]]))[:2], run(x)[:2])


def test_a_number_of_samples_and_values_that_are_read_show() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x * (x > 0.3 * len(x))

    assert followed(scaled).numbers - followed(scaled, 1).numbers
    assert followed(lambda x: x if len(x) == 1 or x.sum() < WIDE else -x).reads
    assert not followed(lambda x: x * float(torch.ones(3).sum())).reads


def test_steps_of_a_packed_sequence_are_read_of_its_lengths() -> None:
    net = nn.LSTM(2, 4, batch_first=True)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x.reshape(-1, 3, 2), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(net(packed)[0], batch_first=True)[0]

    x = torch.ones(2, 6)
    assert not reads_values(x, lambda x: run(x, torch.tensor([1, 3])))
    assert reads_values(x, lambda x: run(x, x.sum(1).long().clamp(max=3)))
    assert followed(lambda x: run(x, (x.sum(1) > 0).long() + 1)).mixes
