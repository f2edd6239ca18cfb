"""Fused kernels by their plain formulas: products by groups against NumPy, and everything put back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rankscope.slicing.plain_kernels import grouped_products, plain_kernels

ENDS = (2, 2, 7)  # an empty group, and a last row that belongs to none
SHAPES = {
    "rows": ((8, 4), (3, 4, 8)),
    "columns": ((3, 4, 8), (8, 8)),
    "summed": ((4, 8), (8, 4)),
    "batched": ((3, 4, 8), (3, 8, 4)),
}


def operands(kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=g) for shape in SHAPES[kind])
    return a, b, None if kind == "batched" else torch.tensor(ENDS, dtype=torch.int32)


def by_numpy(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    slices = [slice(s, e) for s, e in itertools.pairwise((0, *ENDS))]
    if kind == "batched":
        return np.einsum("gik,gkj->gij", a, b)
    if kind == "summed":
        return np.stack([a[:, s] @ b[s] for s in slices])
    out = np.zeros((8, 8)) if kind == "rows" else np.zeros((4, 8))
    for g, s in enumerate(slices):
        if kind == "rows":
            out[s] = a[s] @ b[g]
        else:
            out[:, s] = a[g] @ b[:, s]
    return out


@pytest.mark.parametrize("kind", SHAPES)
def test_products_by_groups_are_those_of_numpy(kind: str) -> None:
    a, b, offs = operands(kind)
    expected = by_numpy(kind, a.double().numpy(), b.double().numpy())
    with plain_kernels():
        made = F.grouped_mm(a.double(), b.double(), offs=offs)  # the kernel itself has no float64
    assert made.dtype == torch.float64
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-14)  # sums of 8 products of size 1 or so


@pytest.mark.parametrize("kind", SHAPES)
def test_products_by_groups_are_those_of_the_kernel(kind: str) -> None:
    a, b, offs = operands(kind)
    theirs = F.grouped_mm(a, b, offs=offs)
    ours = grouped_products(a, b, offs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    used = {"rows": (slice(7),), "columns": (slice(None), slice(7))}.get(kind, ())  # torch leaves the rest undefined
    # sums of 8 products of size 1 or so in float32, in whatever order
    torch.testing.assert_close(ours[used], theirs[used], rtol=0, atol=1e-5)


CALLS = {
    "all by name": lambda a, b, offs: torch._grouped_mm(input=a, mat2=b, offs=offs),
    "the second by name": lambda a, b, offs: torch._grouped_mm(a, mat2=b, offs=offs),
    "all by place": lambda a, b, offs: torch._grouped_mm(a, b, offs, None, None),
    "as torch.nn.functional names them": lambda a, b, offs: F.grouped_mm(mat_a=a, mat_b=b, offs=offs),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_call_that_the_kernel_takes_is_taken(kind: str, call: str) -> None:
    a, b, offs = operands(kind)
    expected = by_numpy(kind, a.double().numpy(), b.double().numpy())
    assert CALLS[call](a, b, offs).shape == expected.shape
    with plain_kernels():
        made = CALLS[call](a.double(), b.double(), offs)
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-14)  # sums of 8 products of size 1 or so


def test_the_kernel_of_transformers_takes_its_own_names() -> None:
    pytest.importorskip("transformers.integrations.moe")  # registers the kernel
    a, b, offs = operands("rows")
    kernel = torch.ops.transformers.grouped_mm_fallback
    with plain_kernels():
        assert torch.ops.transformers.grouped_mm_fallback is not kernel
        made = torch.ops.transformers.grouped_mm_fallback(input=a.double(), weight=b.double(), offs=offs)
    expected = by_numpy("rows", a.double().numpy(), b.double().numpy())
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("wrong", [{}, {"mat3": torch.ones(1)}, {"input": torch.ones(1), "mat2": torch.ones(1)}])
def test_a_call_of_another_form_is_refused_in_torch_s_words(wrong: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="_grouped_mm") as theirs:
        torch._grouped_mm(torch.ones(8, 4), **wrong)
    with plain_kernels(), pytest.raises(TypeError, match="_grouped_mm") as ours:
        torch._grouped_mm(torch.ones(8, 4), **wrong)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_forward_mode_is_linear_in_each_operand(kind: str) -> None:
    a, b, offs = (t if t is None or not t.is_floating_point() else t.double() for t in operands(kind))
    assert offs is not None
    da, db = torch.randn(3, *a.shape).double(), torch.randn(3, *b.shape).double()
    with plain_kernels():
        push = torch.func.vmap(
            lambda u, v: torch.func.jvp(lambda p, q: torch._grouped_mm(p, q, offs=offs), (a, b), (u, v))[1]
        )
        made = push(da, db).numpy()
    for k in range(3):
        expected = by_numpy(kind, da[k].numpy(), b.numpy()) + by_numpy(kind, a.numpy(), db[k].numpy())
        np.testing.assert_allclose(made[k], expected, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_groups_of_several_sizes_at_once_are_left_to_torch() -> None:
    a, b, _ = operands("rows")
    ends = torch.tensor([[2, 2, 8], [1, 5, 8]], dtype=torch.int32)
    with plain_kernels():
        made = torch.vmap(lambda offs: F.grouped_mm(a, b, offs=offs))(ends)
    for offs, out in zip(ends, made, strict=True):
        torch.testing.assert_close(out, grouped_products(a, b, offs), rtol=0, atol=1e-5)


def test_what_the_kernel_refuses_is_refused() -> None:
    a, b, offs = operands("rows")
    with plain_kernels(), pytest.raises(RuntimeError, match=r"[Bb]ias"):
        F.grouped_mm(a, b, offs=offs, bias=torch.zeros(3, 8))


def test_there_is_an_end_for_every_matrix() -> None:
    a, b = torch.randn(4, 8), torch.randn(3, 8, 8)
    with pytest.raises(RuntimeError, match="2 ends of groups for 3 matrices"):
        grouped_products(a, b, torch.tensor([2, 4], dtype=torch.int32))


def test_the_result_has_the_dtype_that_is_asked_for() -> None:
    a, b, offs = operands("rows")
    with plain_kernels():
        made = F.grouped_mm(a.bfloat16(), b.bfloat16(), offs=offs, out_dtype=torch.float32)
    assert made.dtype == torch.float32


def test_the_kernels_are_put_back() -> None:
    kernel = torch._grouped_mm

    def stopped(error: type[BaseException]) -> None:
        with plain_kernels():
            assert torch._grouped_mm is not kernel
            raise error("stop")

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error, match="stop"):
            stopped(error)
        assert torch._grouped_mm is kernel
    with plain_kernels(), plain_kernels():
        pass
    assert torch._grouped_mm is kernel
