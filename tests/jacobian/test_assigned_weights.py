"""Models whose forward pass converts or assigns to its own weights, against float64 reverse-mode rows.

Each also leaves as it came: bits, dtypes, memory, ``requires_grad`` and gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind

EPS32 = 2.0**-23


class Net(nn.Module):
    """Two layers; ``before`` does what it likes to them first. The last layer has rank 2 of 3."""

    def __init__(self, before: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.last.weight[2] = self.last.weight[0] + self.last.weight[1]
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        self.before(self, x)
        return self.last(torch.tanh(self.first(x)))


class Router(Net):
    """As in the Switch transformers: the classifier is converted to the dtype that routing takes place in."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)).to(torch.float32)
        self.last = self.last.to(torch.float32)
        return self.last(h)


def clipped(net: Net, x: Tensor) -> None:
    net.first.weight.data = net.first.weight.data.clamp(-0.2, 0.2)


def from_a_vector(net: Net, x: Tensor) -> None:
    nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(net.first.parameters()), net.first.parameters())


def own_dtype(net: Net, x: Tensor) -> None:
    net.last = net.last.to(net.first.weight.dtype)


def hidden_scale(net: Net, x: Tensor) -> None:
    net.first.weight.data.mul_(0.5)


def no_gradient(net: Net, x: Tensor) -> None:
    net.last.weight.grad = None


WAYS: dict[str, Callable[[Any, Tensor], object]] = {
    "own dtype": own_dtype,
    "device": lambda net, x: net.to(x.device),
    "dtype of the input": lambda net, x: net.to(x.dtype),
    "clipped": clipped,
    "from a vector": from_a_vector,
    "scaled past the counter": hidden_scale,
    "unchanged in place": lambda net, x: net.first.weight.data.mul_(1),
    "no gradients wanted": lambda net, x: net.requires_grad_(False),
    "gradients dropped": no_gradient,
}
NARROW: dict[str, Callable[[], Net]] = {
    "router": lambda: Router(lambda net, x: None),
    "float": lambda: Net(lambda net, x: net.last.float()),
    "double": lambda: Net(lambda net, x: net.double().float()),
}


def sigma(net: Net, x: Tensor) -> Tensor:
    wide = copy.deepcopy(net).double()
    leaf = x[None].double().requires_grad_()
    out = wide(leaf).reshape(-1)
    return torch.linalg.svdvals(torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0][0] for v in out]))


def without_conversions(net: Net) -> Net:
    """The same layers in a model that converts nothing: in float64 a conversion to float32 would narrow them."""
    plain = Net(lambda net, x: None).eval()
    plain.load_state_dict(net.state_dict())
    return plain


def form(net: nn.Module) -> list[Any]:
    told: list[Any] = [(name, id(module), list(vars(module))) for name, module in net.named_modules()]
    for name, p in net.named_parameters():
        told += [(name, id(p), p.data_ptr(), p.dtype, p.requires_grad, p.detach().flatten().tolist())]
        told += [(id(p.grad), None if p.grad is None else (p.grad.dtype, p.grad.data_ptr()))]
    return told


def held_to_truth(net: Net, x: Tensor, truths: list[Tensor], dtype: str) -> rs.Profile:
    net.last.weight.grad = torch.ones(3, 4)
    before = form(net)
    found = rs.jacobian_rank(net, x, cut_points="output", columns="all", dtype=dtype, progress=False)
    assert form(net) == before
    for spectrum, truth in zip(found.layers[-1].spectra, truths, strict=True):
        assert spectrum is not None
        estimate = spectrum.rank("paper")
        assert estimate.certified
        exact = int((truth >= EPS32 * 4 * truth[0]).sum())
        assert exact == 2
        assert estimate.lower <= exact <= estimate.upper
        # the certificate's own bound; 1e-7 for the Gram matrix's square root
        assert abs(spectrum.sigma_max - float(truth[0])) <= spectrum.error_bound + 1e-7 * float(truth[0])
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WAYS)
def test_assigned_weights_are_measured_and_put_back(name: str, dtype: str) -> None:
    torch.manual_seed(3)
    net, x = Net(WAYS[name]).eval(), torch.randn(2, 4)
    held_to_truth(net, x, [sigma(net, image) for image in x], dtype)


@pytest.mark.parametrize("name", NARROW)
def test_a_conversion_to_float32_does_not_narrow_the_float64_reference(name: str) -> None:
    torch.manual_seed(3)
    net, x = NARROW[name]().eval(), torch.randn(2, 4)
    held_to_truth(net, x, [sigma(without_conversions(net), image) for image in x], "float32")


def test_what_is_assigned_may_depend_on_the_input() -> None:
    """``data`` has no derivative: the shifted bias counts as a constant, and the result says so."""
    torch.manual_seed(3)

    def shifted(net: Net, x: Tensor) -> None:
        net.first.bias.data = net.first.bias.data + x.mean(0)

    net, x = Net(shifted).eval(), torch.randn(2, 4)
    found = held_to_truth(net, x, [sigma(net, image) for image in x], "float32")
    assert FactKind.LEAVES_COMPUTATION in {fact.kind for fact in found.facts}


def test_conversions_of_no_effect_keep_the_fast_way() -> None:
    torch.manual_seed(3)
    net, x = Net(own_dtype).eval(), torch.randn(2, 4)
    assert rs.jacobian_rank(net, x, cut_points="output", progress=False).method.kind is FactKind.LINEARISED
    clips = Net(clipped).eval()  # the trace would hold the weights as they are after they are put back
    assert rs.jacobian_rank(clips, x, cut_points="output", progress=False).method.kind is FactKind.PUSHED


def test_a_model_that_fails_after_a_conversion_leaves_as_it_came() -> None:
    def fails(net: Net, x: Tensor) -> None:
        net.half()
        net.requires_grad_(False)
        raise ValueError("half way")

    net = Net(fails).eval()
    net.last.weight.grad = torch.ones(3, 4)
    before = form(net)
    with pytest.raises(rs.RankscopeError, match="half way"):
        rs.jacobian_rank(net, torch.randn(2, 4), cut_points="output", progress=False)
    assert form(net) == before


def test_half_precision_within_autocast_is_certified_or_refused() -> None:
    def half(net: Net, x: Tensor) -> None:
        net.last.bfloat16()

    class Cast(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x).float()

    torch.manual_seed(3)
    net, x = Cast(half).eval(), torch.randn(2, 4)
    net.last.weight.grad = torch.ones(3, 4)
    before = form(net)
    found = rs.jacobian_rank(net, x, cut_points="output", columns="all", progress=False)
    assert form(net) == before
    assert FactKind.CASTS_DOWN in {fact.kind for fact in found.facts}
    for spectrum, image in zip(found.layers[-1].spectra, x, strict=True):
        assert spectrum is not None
        # beside the same model without casts, which is what a cast-down model is compared with
        close = abs(spectrum.sigma_max - float(sigma(without_conversions(net), image)[0])) <= spectrum.error_bound
        assert close or not spectrum.rank("paper").certified
