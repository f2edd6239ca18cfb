"""What counts as mixing features, by networks small enough to say it by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

import rankscope as rs
from rankscope.slicing import CutPointsLike, ModuleCall, Stretch, Trace, example_sample, select, trace


def calls_of(model: nn.Module, x: Any, cut_points: CutPointsLike = "all") -> tuple[Trace, list[ModuleCall]]:
    found = trace(model.eval(), example_sample(model, x))
    return found, select(model, found, cut_points)


def mixes(model: nn.Module, x: Any, cut_points: CutPointsLike = "all") -> dict[str, bool]:
    found, calls = calls_of(model, x, cut_points)
    return dict(zip([c.name for c in calls], map(bool, found.mixes(calls)), strict=True))


def names(found: dict[str, bool]) -> list[str]:
    return [name for name, mixing in found.items() if mixing]


class Functional(nn.Module):
    """Activations and pooling that no module does; a bare weight; a module for the last activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(6, 6), nn.Linear(6, 6), nn.Tanh()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool1d(F.relu(self.b(F.relu(self.a(x))))[None], 2)[0]
        return self.act(F.pad(x, (0, 3)) @ self.weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.saved_tensors[0].T, None


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


class OwnScale(nn.Module):
    """One number per channel, also where it is kept as a row."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return _Scaled.apply(x, self.scale)


class Squared(nn.Bilinear):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x)


PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "activations, norms, dropout": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.PReLU(6),
            nn.Dropout(0.1), nn.Softmax(1), nn.Identity(), nn.Linear(6, 6), nn.GLU(),
        ),
        (6,), ["0", "3", "9"],
    ),
    "images": (
        lambda: nn.Sequential(
            nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.MaxPool2d(2), nn.PixelShuffle(2),
            nn.Conv2d(1, 1, 3, groups=1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3),
        ),
        (2, 8, 8), ["1", "5", "8"],
    ),
    # one number per channel is no mixing, in whatever form; a channel's neighbours or a sum over channels are
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 4, 1, groups=4), nn.ConvTranspose1d(4, 4, 1, groups=4), nn.Conv1d(4, 4, 3, groups=4),
            nn.ConvTranspose1d(4, 1, 1),
        ),
        (4, 8), ["2", "3"],
    ),
    "recurrent": (lambda: nn.Sequential(nn.Tanh(), nn.LSTM(6, 6, batch_first=True)), (3, 6), ["1"]),
    "weights that are computed": (lambda: nn.Sequential(spectral_norm(nn.Linear(6, 6)), nn.ReLU()), (6,), ["0"]),
    "an autograd function of one's own": (lambda: nn.Sequential(nn.Tanh(), Own(), nn.Tanh()), (6,), ["1"]),
    "scales of one's own": (lambda: nn.Sequential(nn.Linear(6, 6), OwnScale(6), OwnScale(1, 6)), (6,), ["0"]),
    "a bilinear form": (lambda: nn.Sequential(nn.Tanh(), Squared(6, 6, 5), nn.Tanh()), (6,), ["1"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_plain(name: str):
    make, shape, expected = PLAIN[name]
    torch.manual_seed(0)
    model = make()
    x = torch.randn(1, *shape)
    assert names({k: v for k, v in mixes(model, x).items() if k.count(".") == 0}) == expected
    if name != "an autograd function of one's own":  # weights that cannot be trained are weights
        assert names({k: v for k, v in mixes(model.requires_grad_(False), x).items() if "." not in k}) == expected


def test_functions_count_as_modules_do():
    torch.manual_seed(0)
    assert mixes(Functional(), torch.randn(1, 6)) == {"a": True, "b": True, "act": True}
    assert mixes(Functional(), torch.randn(1, 6), ["b", "act"]) == {"b": True, "act": True}


def test_a_container_adds_nothing_to_what_it_holds():
    net = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)])
    x = torch.randn(1, 6)
    assert mixes(net, x) == {"0.0": True, "0.1": False, "0": False, "1.0": True, "1.1": False, "1": False}
    assert mixes(net, x, ["0.1", "1"]) == {"0.1": True, "1": True}


def test_blocks_mix_and_what_stands_between_does_not():
    found = mixes(CASES["vit"].model(), CASES["vit"].sample(1), ["patch", "blocks.*", "norm", "head"])
    assert found["patch"]
    assert found["blocks.0"]
    assert found["blocks.1"]
    assert not found["norm"]
    assert found["head"]


def test_in_a_branch_what_lies_beyond_the_last_true_cut_counts():
    """BatchNorm and ReLU of a pre-activation block before its first convolution, and after it."""
    found = mixes(CASES["preactivation"].model(), CASES["preactivation"].sample(1))
    block = {name.removeprefix("blocks.0."): v for name, v in found.items() if name.startswith("blocks.0.")}
    first = next(i for i, name in enumerate(block) if "conv" in name)
    assert not any(list(block.values())[:first])
    assert all(list(block.values())[first:])


def test_without_a_graph_modules_with_a_weight_matrix_mix():
    class Leaves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    found, calls = calls_of(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), Leaves()), torch.randn(1, 6))
    assert not found.structured
    assert list(map(bool, found.mixes(calls))) == [True, False, True, False]
    # which of them follow one another is unknown
    assert found.mixes([calls[-1]]) == [Stretch(2)]
    assert not Stretch(2).plain


def test_it_is_kept_with_the_profile(tmp_path):
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh()).eval()
    profile = rs.jacobian_rank(net, torch.randn(1, 6), progress=False)
    assert [x.mixes for x in profile.layers] == [Stretch(1, ((6, 6),)), Stretch(), Stretch(1, ((6, 6),)), Stretch()]
    loaded = rs.JacobianProfile.load(profile.save(tmp_path))
    assert [x.mixes for x in loaded.layers] == [x.mixes for x in profile.layers]
    plain = json.loads((tmp_path / "profile.json").read_text())
    del plain["checksum"]
    text = json.dumps(plain).replace('"mixes"', '"before"').replace("mixing_op", "op")
    (tmp_path / "profile.json").write_text(text)  # as earlier versions wrote it
    assert all(x.mixes for x in rs.JacobianProfile.load(tmp_path).layers)


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6) -> None:
        super().__init__()
        self.a, self.function, self.act, self.b = nn.Linear(6, 6), function, nn.Tanh(), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.function(self.a(x))))


MATRIX = torch.eye(6) + 0.1 * torch.ones(6, 6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.linalg.solve(MATRIX, x.T).T,
        lambda x: torch.linalg.solve_triangular(MATRIX, x.T, upper=True).T,
        lambda x: torch.linalg.lstsq(MATRIX, x.T)[0].T,
        lambda x: torch.cholesky_solve(x.T, MATRIX).T,
        lambda x: torch.cdist(x, torch.arange(36.0).view(6, 6)),
        lambda x: x.cumsum(1),
        lambda x: x.cumprod(1),
        lambda x: x.logcumsumexp(1),
    ],
    ids=["solve", "triangular", "lstsq", "cholesky", "cdist", "cumsum", "cumprod", "logcumsumexp"],
)
def test_solves_distances_and_running_sums_mix(function: Callable[[Tensor], Tensor]):
    assert mixes(Between(function), torch.randn(1, 6)) == {"a": True, "act": True, "b": True}


def stretch(model: nn.Module, x: Tensor) -> Stretch:
    found, calls = calls_of(nn.Sequential(model), x, ["0"])
    return found.mixes(calls)[0]


def test_a_plain_chain_is_told_from_branches_that_join():
    x = torch.randn(1, 6)
    chain = nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.LayerNorm(9), nn.AdaptiveAvgPool1d(4), nn.Linear(4, 7))
    assert stretch(chain, x) == Stretch(2, ((6, 9), (4, 7)))
    assert stretch(chain, x).plain
    # a gate of the same values bypasses no operation
    assert stretch(Between(lambda y: y * torch.sigmoid(y)), x) == Stretch(2, ((6, 6), (6, 2)))
    # a skip connection bypasses the operation in it, two projections stand side by side
    assert stretch(Between(lambda y: y + y @ MATRIX), x) == Stretch(3)
    assert stretch(Between(lambda y: (y @ MATRIX) * (y @ MATRIX)), x) == Stretch(4)
    assert not stretch(Between(lambda y: y + y @ MATRIX), x).plain
    # complex values are two real ones each
    fft = stretch(Between(lambda y: torch.view_as_real(torch.fft.rfft(y)).flatten(1), 8), x)
    assert fft == Stretch(3, ((6, 6), (6, 8), (8, 2)))


@pytest.mark.parametrize("how", ["part", "whole"])
def test_scripted_modules_are_named(how: str):
    scripted = torch.jit.script(nn.Linear(6, 6))
    model = (nn.Sequential(nn.Tanh(), scripted) if how == "part" else scripted).eval()
    what = "module '1'" if how == "part" else "the model"
    for measure in (rs.layers, rs.jacobian_rank):
        with pytest.raises(rs.ModelError, match=f"^{what} is a TorchScript module.*put in its place the module"):
            measure(model, torch.randn(1, 6))
