"""Operators of other libraries: torch takes their output for a constant in forward mode, and says nothing.

The oracle is reverse mode in float64, a row at a time, of the operator's own backward formula.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion as Version

import rankscope as rs

REGIONS = torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0], [0.0, 0.0, 2.0, 5.0, 7.0]])


class Beside(nn.Module):
    """One number by plain operations, and the operator's output times ``weight`` beside it."""

    def __init__(self, operator: Callable[[Tensor, nn.Module], Tensor], weight: float) -> None:
        super().__init__()
        self.operator, self.weight = operator, weight
        self.first = nn.Linear(64, 1)
        self.offsets = nn.Conv2d(1, 18, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x.flatten(1)), self.weight * self.operator(x, self).flatten()[None]], 1)


def vision(name: str) -> Callable[[Tensor, nn.Module], Tensor]:
    ops = pytest.importorskip("torchvision").ops
    if name == "deform_conv2d":
        return lambda x, net: ops.deform_conv2d(x, net.offsets(x), torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1)
    size = (1, 1) if name == "ps_roi_align" else (3, 3)
    return lambda x, net: getattr(ops, name)(x, REGIONS.to(x), size)


@pytest.fixture(scope="module")
def library() -> Iterator[str]:
    """Two operators, one of which has a backward formula."""

    @torch.library.custom_op("rankscope_tests::wave", mutates_args=())
    def wave(x: Tensor) -> Tensor:
        return x.sin()

    wave.register_autograd(
        lambda ctx, g: g * ctx.saved_tensors[0].cos(),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    )
    own = torch.library.Library("rankscope_tests", "FRAGMENT")
    own.define("bare(Tensor x) -> Tensor")
    own.impl("bare", lambda x: x.sin(), "CPU")
    yield "rankscope_tests"
    own._destroy()


def is_certified_and_right(net: nn.Module, x: Tensor) -> rs.JacobianProfile:
    profile = rs.jacobian_rank(net.eval(), x, columns="all", cut_points="output", progress=False)
    double = copy.deepcopy(net).double()
    for image, spectrum in enumerate(profile.layers[0].spectra):
        leaf = x[image : image + 1].double().requires_grad_()
        rows = [torch.autograd.grad(o, leaf, retain_graph=True)[0].flatten() for o in double(leaf)[0]]
        exact = torch.linalg.svdvals(torch.stack(rows)).numpy()
        assert spectrum is not None
        found = spectrum.rank()
        assert found.certified
        # what the operator adds is far above the threshold of some 7e-6, and what it does not is zero
        assert found.lower <= (exact > 7e-6 * exact[0]).sum() <= found.upper
        assert found.upper - found.lower <= 1
        gap = np.abs(spectrum.singular_values[: len(exact)] - exact).max()
        assert gap <= spectrum.error_bound + spectrum.square_error**0.5
    return profile


@pytest.mark.parametrize("weight", [1.0, 3e-4])
@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align", "deform_conv2d"])
def test_what_torch_takes_for_a_constant_is_measured(name: str, weight: float) -> None:
    """At a weight of 3e-4 the operator is below what a comparison of forward and reverse mode sees."""
    torch.manual_seed(0)
    profile = is_certified_and_right(Beside(vision(name), weight), torch.randn(2, 1, 8, 8))
    if name != "roi_align":  # which older versions of torch refuse in forward mode, formula or not
        assert "jvp" not in profile.method["name"]


@pytest.mark.parametrize("weight", [1.0, 3e-4])
def test_a_registered_backward_is_used(library: str, weight: float) -> None:
    torch.manual_seed(0)
    wave = getattr(torch.ops, library).wave
    net, x = Beside(lambda x, net: wave(x[..., :3]), weight), torch.randn(1, 1, 8, 8)
    if not rs.jacobian_rank(net.eval(), x, columns="all", progress=False)["output"].spectra[0].rank().certified:
        assert Version(torch.__version__) < Version("2.13"), "a right backward is certified"
        pytest.skip("this version of torch does not apply a registered operator by itself, so nothing is certified")
    profile = is_certified_and_right(net, x)
    assert profile.method["name"] == "double backward"


def test_an_operator_without_a_derivative_is_no_constant(library: str) -> None:
    bare = getattr(torch.ops, library).bare
    net = Beside(lambda x, net: bare(x[..., :3]), 3e-4).eval()
    with pytest.raises(rs.RankscopeError, match="rankscope_tests::bare has no derivative"):
        rs.jacobian_rank(net, torch.randn(1, 1, 8, 8), columns="all", cut_points="output", progress=False)


def test_cut_points_before_such_an_operator_are_measured_in_forward_mode(library: str) -> None:
    bare = getattr(torch.ops, library).bare
    net = Beside(lambda x, net: bare(x[..., :3]), 1.0).eval()
    profile = rs.jacobian_rank(net, torch.randn(1, 1, 8, 8), columns="all", cut_points="first", progress=False)
    assert profile["first"].estimates(profile.tolerance)[0].value == 1
    assert profile.method["name"] == "vmap(jvp)"


def test_an_operator_that_gives_places_alone_needs_no_derivative() -> None:
    ops = pytest.importorskip("torchvision").ops

    def kept(x: Tensor, net: nn.Module) -> Tensor:
        boxes = torch.cat([x[0, 0, :, :2], x[0, 0, :, :2] + 1], 1)
        return boxes[ops.nms(boxes, x[0, 0, :, 3], 0.5)[:4]]

    torch.manual_seed(0)
    profile = is_certified_and_right(Beside(kept, 1.0), torch.randn(1, 1, 8, 8))
    assert "jvp" in profile.method["name"]


def test_a_quantised_layer_has_no_derivative() -> None:
    """torch's own quantised operators have no formula either: their output was taken for a constant, of rank 0."""
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    quantised = torch.ao.quantization.quantize_dynamic(net, {"1"}, dtype=torch.qint8)
    with pytest.raises(rs.MeasurementError, match=r"^replace '1' \(Linear\) by plain operations.*quantized::linear_d"):
        rs.jacobian_rank(quantised, torch.randn(2, 6), cut_points=["output"], progress=False)
    profile = rs.jacobian_rank(quantised, torch.randn(2, 6), cut_points=["0"], progress=False)
    assert profile.function_rank == (6,)
