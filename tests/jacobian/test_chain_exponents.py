"""Exponents of a network's own blocks: reverse-mode Jacobians and plain QR, in float64 and in 40 digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from networks import Attention
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.slicing.members import with_member


class Block(nn.Module):
    """h + W2·tanh(W1·h)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(x)))


class TokenBlock(nn.Module):
    """Pre-norm attention and MLP; returns a tuple, as many transformers do, and adds in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        y = self.attention(self.norm1(x))
        y += x
        return y + self.mlp(self.norm2(y)), None


class TinyViT(nn.Module):
    def __init__(self, depth: int = 4, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.dropout = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(TokenBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.patches(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            x, _ = block(x)
        return self.head(self.norm(x).mean(1))


def mlp(width: int = 6, depth: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(4, width), *[Block(width) for _ in range(depth)], nn.Linear(width, 3)).double().eval()
    )


def vit() -> TinyViT:
    torch.manual_seed(1)
    return TinyViT().double().eval()


def jacobians(blocks: list[Callable[[Tensor], Tensor]], x: Tensor) -> list[np.ndarray]:
    """Row by row in reverse mode, each at the point that the blocks before it lead to."""
    found = []
    for block in blocks:
        n = x.numel()
        matrix = torch.func.jacrev(lambda z, block=block: block(z.clone()))(x)
        found.append(matrix.reshape(n, n).detach().numpy())
        x = block(x.clone()).detach()
    return found


def plain_exponents(matrices: list[np.ndarray], k: int, seed: int) -> np.ndarray:
    n = len(matrices[0])
    frame = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]
    total = np.zeros(k)
    for matrix in matrices:
        frame, r = np.linalg.qr(matrix @ frame)
        total += np.log(np.abs(np.diag(r)))
    return np.sort(total / len(matrices))[::-1]


def cases() -> list[tuple[nn.Module, Tensor, list[Callable[[Tensor], Tensor]], Tensor]]:
    net, x = mlp(), torch.randn(1, 4, dtype=torch.float64)
    token, image = vit(), torch.randn(1, 1, 4, 6, dtype=torch.float64)
    embedded = token.patches(image).flatten(2).transpose(1, 2).detach()
    blocks = [lambda z, b=block: b(z)[0] for block in token.blocks]
    return [(net, x, list(net[1:-1]), net[0](x).detach()), (token, image, blocks, embedded)]


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize(("top", "seed", "chunk"), [(64, 0, 64), (3, 5, 2)])
def test_reverse_mode_jacobians_and_plain_qr(case: int, top: int, seed: int, chunk: int):
    model, x, blocks, start = cases()[case]
    found = rs.chain_exponents(model, x, top=top, seed=seed, chunk_size=chunk)
    matrices = jacobians(blocks, start)
    k = min(top, len(matrices[0]))
    # condition numbers of single blocks times eps: far below 1e-10
    np.testing.assert_allclose(found.exponents[0], plain_exponents(matrices, k, seed), atol=1e-10)
    assert found.complete == (k == len(matrices[0]))
    assert len(found.blocks) == len(blocks)
    leading = of_kind(found.facts, FactKind.LEADING_EXPONENTS)
    assert bool(leading) != found.complete
    assert all((f["tracked"], f["width"], f["seed"]) == (k, found.width, seed) for f in leading)
    (short,) = of_kind(found.facts, FactKind.SHORT_CHAIN)
    assert short["blocks"] == len(blocks)


@pytest.mark.parametrize("case", [0, 1])
def test_sum_is_the_mean_log_determinant(case: int):
    model, x, blocks, start = cases()[case]
    logs = [np.linalg.slogdet(j)[1] for j in jacobians(blocks, start)]
    assert rs.chain_exponents(model, x).mean.sum() == pytest.approx(np.mean(logs), abs=1e-10)


def test_forty_digits():
    model, x, blocks, start = cases()[0]
    matrices = jacobians(blocks, start)
    with mpmath.workdps(40):
        frame = mpmath.matrix(np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].tolist())
        product = frame
        for matrix in matrices:
            product = mpmath.matrix(matrix.tolist()) * product
        r = mpmath.qr(product, mode="skinny")[1]
        expected = sorted((float(mpmath.log(abs(r[i, i]))) / len(matrices) for i in range(6)), reverse=True)
    np.testing.assert_allclose(rs.chain_exponents(model, x).mean, expected, atol=1e-11)


def test_the_chain_of_a_transformer():
    found = rs.chain_exponents(vit(), torch.randn(3, 1, 4, 6, dtype=torch.float64), limit=2)
    assert found.blocks == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert found.start == "dropout"
    assert found.shape == (6, 8)
    assert found.exponents.shape == (2, 48)
    # other inputs, other points; one seed, one frame
    assert not np.allclose(found.exponents[0], found.exponents[1])
    np.testing.assert_allclose(found.spread, np.abs(found.exponents[0] - found.exponents[1]) / np.sqrt(2))


def test_a_layer_and_its_activation_are_one_block():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)]
    net, x = nn.Sequential(*layers).double().eval(), torch.randn(1, 8, dtype=torch.float64)
    flat = nn.Sequential(*[m for each in layers for m in each])
    matrices = jacobians(list(layers), x)
    for model, options, last in (
        (net, {}, "5.1"),
        (net, {"cut_points": [str(i) for i in range(6)]}, "5"),
        (flat, {}, "11"),
        (flat, {"cut_points": "all"}, "11"),
        (nn.Sequential(nn.Dropout(0.1), *flat, nn.Dropout(0.1)).eval(), {}, "12"),
    ):
        found = rs.chain_exponents(model, x, **options)
        assert len(found.blocks) == 6
        assert found.blocks[-1] == last
        np.testing.assert_allclose(found.mean, plain_exponents(matrices, 8, 0), atol=1e-10)
    # names are taken as they are
    assert len(rs.chain_exponents(flat, x, cut_points="*").blocks) == 12


def test_two_blocks_with_a_norm_between_them_are_the_chain():
    model = nn.Sequential(nn.Linear(3, 4), Block(4), nn.LayerNorm(4), Block(4), nn.LayerNorm(4)).double().eval()
    found = rs.chain_exponents(model, torch.randn(1, 3, dtype=torch.float64))
    assert (found.start, found.blocks) == ("0", ("1", "3"))


def test_a_chain_of_convolutions_ends_before_the_shape_changes():
    def conv(a: int) -> list[nn.Module]:
        return [nn.Conv2d(a, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]

    torch.manual_seed(0)
    net = nn.Sequential(*conv(1), *conv(3), *conv(3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)).double().eval()
    found = rs.chain_exponents(net, torch.randn(1, 1, 4, 4, dtype=torch.float64))
    assert found.start == "2"
    assert found.blocks == ("5", "8")


def test_shapes_that_alternate_inside_the_blocks():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(4, 8), nn.GLU()) for _ in range(3)]
    net, x = nn.Sequential(*layers).double().eval(), torch.randn(1, 4, dtype=torch.float64)
    found = rs.chain_exponents(net, x)
    assert found.blocks == ("0.1", "1.1", "2.1")
    np.testing.assert_allclose(found.mean, plain_exponents(jacobians(list(layers), x), 4, 0), atol=1e-10)


def test_blocks_from_the_input_itself_and_one_module_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(self.block(x))

    torch.manual_seed(2)
    model, x = Twice().double().eval(), torch.randn(1, 5, dtype=torch.float64)
    found = rs.chain_exponents(model, x, cut_points="block")
    assert found.start == "the input"
    assert found.blocks == ("block#1", "block#2")
    matrices = jacobians([model.block, model.block], x)
    np.testing.assert_allclose(found.mean, plain_exponents(matrices, 5, 0), atol=1e-12)


def test_singular_blocks_are_told():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(3)]).double().eval()
    with torch.no_grad():
        model[1].weight[2] = 0
    found = rs.chain_exponents(model, torch.randn(1, 5, dtype=torch.float64))
    assert found.rank_drops == (("sample 0", "1", 4),)
    assert np.isneginf(found.exponents[0, -1])
    assert np.isfinite(found.exponents[0, :-1]).all()
    assert "1 is singular on sample 0: rank 4 of the frame is left" in str(found)
    assert json.loads(found.to_json())["exponents"][0][-1] is None
    found.plot()


def test_the_model_is_left_as_it_was():
    model = vit().float()
    model.dropout.p = 0.0
    model.train()  # no module here behaves differently in training
    before = {k: v.clone() for k, v in model.state_dict().items()}
    image = torch.randn(1, 1, 4, 6)
    kept = image.clone()
    found = rs.chain_exponents(model, image, top=4)
    assert found.dtype == "float64"
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in model.state_dict().items())
    assert torch.equal(image, kept)
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(rs.UsageError, match="float16"):
        rs.chain_exponents(model, image, dtype="float16")
    assert not any(m._forward_hooks for m in model.modules())


def test_float32_agrees_with_float64():
    image = torch.randn(1, 1, 4, 6)
    a, b = (rs.chain_exponents(vit().float(), image, dtype=d).mean for d in ("float32", "float64"))
    np.testing.assert_allclose(a, b, atol=1e-4)  # eps32 times the blocks' condition, about 1e2


@pytest.mark.parametrize(
    ("model", "shape", "options", "error", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)),
            (1, 4),
            {},
            rs.CutPointError,
            "no chain of two blocks or more of one width .*: input 4, 0 5, 1 6, 2 3; name cut points",
        ),
        (nn.Sequential(nn.Linear(4, 4)), (1, 4), {}, rs.CutPointError, "no chain of two blocks"),
        (mlp(), (1, 4), {"top": 0}, rs.UsageError, "top is 0; it must be a whole number"),
        (mlp(), (1, 4), {"chunk_size": "auto"}, rs.UsageError, "chunk_size is 'auto'"),
        (mlp(), (1, 4), {"seed": -1}, rs.UsageError, "seed is -1"),
        (mlp(), (1, 4), {"cut_points": "3.innr"}, rs.CutPointError, "there is no module '3.innr'"),
        (mlp(), (0, 4), {}, rs.DataError, "there is no sample"),
    ],
)
def test_refusals(model: nn.Module, shape: tuple[int, ...], options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        rs.chain_exponents(model.eval(), torch.zeros(shape, dtype=next(model.parameters()).dtype), **options)


def test_inputs_of_two_shapes_are_refused():
    model = nn.Sequential(*[nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)]).double().eval()
    images = [(torch.zeros(2, side, side, dtype=torch.float64), 0) for side in (3, 3, 4)]
    assert len(rs.chain_exponents(model, images[:2]).per_image) == 2
    with pytest.raises(rs.DataError, match=r"sample 2 has shape \(2, 4, 4\) where the first has \(2, 3, 3\)"):
        rs.chain_exponents(model, images)


def test_a_jacobian_that_is_not_finite_is_named():
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.abs().sqrt()  # infinite slope at 0

    model = nn.Sequential(nn.Linear(3, 3, bias=False), Root(), nn.Linear(3, 3)).double().eval()
    with pytest.raises(rs.DataError, match="the Jacobian of 1 has NaN or infinite entries on sample 0"):
        rs.chain_exponents(model, torch.zeros(1, 3, dtype=torch.float64))


def test_record():
    found = rs.chain_exponents(mlp(), torch.randn(3, 4, dtype=torch.float64))
    assert len(found.frame()) == 18
    assert list(found.table().columns) == ["k", "mean", "spread", "min", "max"]
    plain = json.loads(found.to_json())
    assert plain["kind"] == "chain_exponents"
    assert plain["schema_version"] == 1
    assert plain["blocks"] == ["1", "2", "3", "4", "5"]
    np.testing.assert_array_equal(plain["exponents"], found.exponents)
    assert found.plot().get_ylabel().startswith("exponent")
    for name in (
        "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "models/" + "net" * 30 + ".py:build_the_network",
    ):
        ax = replace(found, model=name).plot()
        title = next(t for t in ax.get_children() if isinstance(t, Text) and "blocks" in t.get_text())
        shown = title.get_text().replace("\n", "").replace(" ", "")
        start, cut, end = shown.partition("…")  # what does not fit is left out of the middle
        assert shown == f"{name}:5blocksofwidth6" or (cut and f"{name}:5blocksofwidth6".endswith(end))
        assert not cut or (len(name) > 60 and name.startswith(start))
        ax.figure.canvas.draw()
        box = title.get_window_extent(ax.figure.canvas.get_renderer())
        assert box.x0 >= 0
        assert box.x1 <= ax.figure.bbox.width
    lines = str(found).splitlines()
    assert "all 6 exponents of 5 blocks of width 6 (6) on 3 inputs" in lines[0]
    assert max(map(len, lines)) < 140


def test_one_tensor_of_an_output_is_replaced():
    old, new, ids = torch.zeros(2), torch.ones(2), torch.tensor([1])

    @dataclass
    class Output:
        ids: Tensor
        hidden: Tensor
        more: Tensor

    class Pair(NamedTuple):
        a: Tensor
        b: Tensor

    made = with_member(Output(ids, old, old), "hidden", new)
    assert made.hidden is new
    assert made.more is old
    assert made.ids is ids
    assert with_member({"ids": ids, "x": [old, old]}, "x.0", new) == {"ids": ids, "x": [new, old]}
    pair = with_member(Pair(old, old), "a", new)
    assert isinstance(pair, Pair)
    assert pair.a is new
    assert pair.b is old
    assert with_member(old, "", new) is new
    with pytest.raises(KeyError, match="1"):
        with_member((ids, None), "1", new)


def test_a_closing_layernorm_loses_rank_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(Block(6), nn.LayerNorm(6)) for _ in range(3)]).double().eval()
    found = rs.chain_exponents(model, torch.randn(1, 6, dtype=torch.float64), cut_points=["0", "1", "2"])
    # the mean goes exactly; along the normalised vector only LayerNorm's eps of 1e-5 is left
    assert found.rank_drops[0] == ("sample 0", "0", 5)
    assert np.isneginf(found.mean[-1])
    assert np.isfinite(found.mean[:-1]).all()
    assert found.mean[4] < found.mean[3] - 2


class Constant(nn.Module):
    """Multiplies with a float32 matrix that is no weight."""

    def __init__(self, *, late: bool = False) -> None:
        super().__init__()
        self.linear, self.late = nn.Linear(6, 6), late

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ torch.eye(6) if self.late else self.linear(x @ torch.eye(6))


@pytest.mark.parametrize(
    ("make", "cut_points"),
    [
        (lambda: nn.Sequential(*[Constant() for _ in range(3)]), "blocks"),
        # only the last block fails, when tangents are pushed
        (lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 6), Constant(late=True)), ["0", "1", "2"]),
    ],
    ids=["constants", "last block"],
)
def test_a_model_that_does_not_run_in_float64(make: Callable[[], nn.Module], cut_points: str | list[str]):
    model, x = make().eval(), torch.randn(1, 6)
    with pytest.raises(rs.ModelError, match=r'does not run in float64: .*; give dtype="float32"'):
        rs.chain_exponents(model, x, cut_points=cut_points)
    assert rs.chain_exponents(model, x, cut_points=cut_points, dtype="float32").exponents.shape == (1, 6)


def test_where_nothing_mixes_it_says_so():
    net = nn.Sequential(nn.ReLU(), nn.LayerNorm(6)).eval()
    with pytest.raises(
        rs.CutPointError, match=r"no operation that mixes features .*was recognised along its 2 cut"
    ) as e:
        rs.chain_exponents(net, torch.randn(1, 6))
    assert str(e.value).endswith("name them under cut_points: 0, 1")
    assert len(rs.chain_exponents(net, torch.randn(1, 6), cut_points=["0", "1"]).blocks) == 2
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)).eval()
    with pytest.raises(rs.CutPointError, match="only one operation that mixes features was recognised along"):
        rs.chain_exponents(net, torch.randn(1, 6))


class Silent(torch.autograd.Function):
    """Doubles. Its backward is right, and has the derivative zero without an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g.detach() + 0 * g


def test_a_backward_that_cannot_be_differentiated_is_not_used_twice() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return Silent.apply(self.linear(x))  # type: ignore[no-any-return]

    net = nn.Sequential(*[Block() for _ in range(3)]).double().eval()
    found = rs.chain_exponents(net, torch.zeros(1, 4, dtype=torch.float64), cut_points=["0", "1", "2"], progress=False)
    logs = [float(torch.linalg.slogdet(2 * block.linear.weight)[1]) for block in net]
    assert float(found.mean.sum()) == pytest.approx(sum(logs) / 3, abs=1e-10)
    assert found.method["name"] == "reverse mode by rows"
    J = rs.linear_map(net, torch.zeros(1, 4, dtype=torch.float64))
    v = torch.randn(4, dtype=torch.float64)
    expected = v
    for block in net:
        expected = 2 * block.linear.weight.detach() @ expected
    torch.testing.assert_close(J.push(v), expected, rtol=1e-12, atol=1e-14)


class Between(nn.Module):
    """Two layers of one width with a function between them that lies in the second block."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


class Cube(torch.autograd.Function):
    """A backward formula alone, as most functions that people write have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g * ctx.saved_tensors[0] ** 2


@pytest.mark.parametrize(
    "function",
    [
        lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127),
        lambda h: torch.sparse.mm(h.to_sparse(), 2 * torch.eye(6, dtype=h.dtype)),
        Cube.apply,
    ],
    ids=["no forward formula", "sparse", "backward alone"],
)
def test_a_later_block_without_a_forward_formula_is_differentiated_another_way(
    function: Callable[[Tensor], Tensor],
) -> None:
    model, x = Between(function).double().eval(), torch.linspace(-1, 1, 6, dtype=torch.float64)[None]
    found = rs.chain_exponents(model, x, progress=False)
    leaf = x.clone().requires_grad_()
    rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in model(leaf).flatten()]
    truth = float(torch.linalg.slogdet(torch.stack(rows))[1])
    # all exponents together are the volume's growth; float64 rounding of a 6 × 6 product, conditioned below 1e4
    assert found.blocks == ("a", "b")
    assert abs(2 * float(found.mean.sum()) - truth) < 1e-10
    assert found.method["name"] == "vmap(jvp) and double backward"


def test_an_output_without_dimensions_is_no_block() -> None:
    class Summed(Between):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sum()

    found = rs.chain_exponents(Summed(torch.tanh).eval(), torch.ones(1, 6), progress=False)
    assert found.blocks == ("a", "b")
