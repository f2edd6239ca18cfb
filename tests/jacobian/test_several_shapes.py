"""Samples of several shapes, and cut points that only later samples call: each sample beside plain autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind
from rankscope.report import profile_page

LENGTHS = (3, 5, 4, 3, 5)


class Items(torch.utils.data.Dataset[Any]):
    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        return self.values[index]


class Tokens(nn.Module):
    """Mixes along the sequence, so that a Jacobian is no block diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        return self.last(h + h.mean(1, keepdim=True))


class Branches(nn.Module):
    """The first sample takes ``left``; what leads elsewhere is decided by values and by length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right, self.deep = (
            nn.Linear(6, 8),
            nn.Linear(8, 5),
            nn.Linear(8, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        if x.shape[1] > 4:
            return self.deep(self.right(h).sin()).mean(1)
        return self.left(h) if bool(x.sum() > 0) else self.right(h)


@pytest.fixture
def samples() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = [torch.randn(n, 6, generator=generator) for n in LENGTHS]
    return [-x.abs() if k == 2 else x - x.mean() + 0.1 for k, x in enumerate(found)]  # sums above 0, but for sample 2


def captured(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Full Jacobians by module name of one sample alone, in float64 by plain reverse mode."""
    net = net.double()
    made: dict[str, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda _m, _a, out, name=name: made.__setitem__(name, out))
        for name, m in net.named_modules()
        if name
    ]
    leaf = x.double()[None].requires_grad_()
    try:
        made["output"] = net(leaf)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, out in made.items():
        rows = [
            torch.autograd.grad(v, leaf, retain_graph=True, materialize_grads=True)[0].flatten() for v in out.flatten()
        ]
        found[name] = torch.stack(rows).detach()
    net.float()
    return found


def check(profile: rs.JacobianProfile, net: nn.Module, samples: list[Tensor], columns: Any = None) -> None:
    """Every spectrum has its sample's own shape and values; float32 sums of under 100 terms err by less than 1e-5."""
    for i, x in enumerate(samples):
        truth = captured(net, x)
        for layer in profile.layers:
            if layer.name not in truth:
                assert i in layer.uncalled
                continue
            jacobian = truth[layer.name] if columns is None else truth[layer.name][:, columns(x)]
            spectrum = layer.spectra[i]
            assert spectrum is not None
            assert spectrum.shape == tuple(jacobian.shape)
            sigma = np.linalg.svd(jacobian.numpy(), compute_uv=False)
            np.testing.assert_allclose(spectrum.singular_values, sigma, atol=1e-5 * sigma[0])
            assert spectrum.rank("paper").lower <= int((sigma >= spectrum.rank("paper").threshold).sum())


def test_every_sample_has_its_own_k_and_threshold(samples: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Tokens().eval()
    profile = rs.jacobian_rank(net, Items(samples), cut_points="all")
    check(profile, net, samples)
    counts = tuple(6 * n for n in LENGTHS)
    assert profile.columns.counts == counts
    assert profile.columns.count == 30
    assert profile.input_shapes == tuple((n, 6) for n in LENGTHS)
    (fact,) = of_kind(profile.facts, FactKind.SEVERAL_SIZES)
    assert (fact["least"], fact["most"], set(fact["shapes"])) == (18, 30, {(3, 6), (4, 6), (5, 6)})
    # the paper's threshold: eps of float32 times the number of singular values times σ_1, for each sample alone
    for i, n in enumerate(LENGTHS):
        spectrum = profile["first"].spectra[i]
        assert spectrum is not None
        expected = torch.finfo(torch.float32).eps * min(8 * n, 6 * n) * spectrum.singular_values[0]
        assert profile.reading.threshold[0, i] == pytest.approx(expected, rel=1e-6)
    assert "(K = 18–30)" in str(profile)
    assert "24–40" in str(profile)
    frame = profile.per_image()
    assert frame[frame.layer == "first"]["columns"].tolist() == list(counts)
    assert frame[frame.layer == "first"]["rows"].tolist() == [8 * n for n in LENGTHS]
    assert not frame["threshold"].isna().any()
    row = profile.to_dict()["layers"][0]
    assert (row["least_rows"], row["rows"], row["least_columns"], row["columns"]) == (24, 40, 18, 30)
    assert rs.JacobianProfile.load(profile.save(tmp_path)) == profile
    html = profile_page(profile).html()
    assert "18–30" in html
    assert "24–40" in html
    with pytest.raises(rs.UsageError, match="several shapes"):
        profile.against_random()


def test_one_shape_is_told_as_before(samples: list[Tensor]) -> None:
    net = Tokens().eval()
    profile = rs.jacobian_rank(net, torch.stack([samples[0], samples[3]]), cut_points="all")
    assert profile.columns.counts == profile.input_shapes == ()
    assert not of_kind(profile.facts, FactKind.SEVERAL_SIZES)
    assert "least_rows" not in profile.to_dict()["layers"][0]
    assert profile.comparable


def test_one_position_of_every_sample(samples: list[Tensor]) -> None:
    torch.manual_seed(1)
    net = Tokens().eval()
    profile = rs.jacobian_rank(net, Items(samples), columns=rs.Positions([-1]), cut_points="all")
    check(profile, net, samples, lambda x: slice(6 * (len(x) - 1), 6 * len(x)))
    assert profile.columns.counts == ()  # six coordinates of every sample
    with pytest.raises(rs.UsageError, match=r"sample 2: position 4 is outside an input of 4 positions"):
        rs.jacobian_rank(net, Items([samples[1], samples[4], samples[2]]), columns=rs.Positions([4]))


def test_auto_columns_are_decided_for_each_shape() -> None:
    net = nn.Sequential(nn.Linear(40, 3)).eval()
    profile = rs.jacobian_rank(net, Items([torch.randn(4, 40), torch.randn(30, 40)]), cut_points="all")
    assert profile.columns.counts == (160, 768)
    assert profile.columns.kind == "several"
    assert "all input coordinates" in str(profile.columns)
    assert "768 random directions" in str(profile.columns)


def test_kept_samples_of_several_shapes_are_read_back(samples: list[Tensor], tmp_path: Path) -> None:
    net = Tokens().eval()
    first = rs.jacobian_rank(net, Items(samples), checkpoint=tmp_path)
    again = rs.jacobian_rank(net, Items(samples), checkpoint=tmp_path)
    assert [f["kept"] for f in of_kind(again.facts, FactKind.READ_BACK)] == [5]
    for a, b in zip(first.layers, again.layers, strict=True):
        for s, t in zip(a.spectra, b.spectra, strict=True):
            np.testing.assert_array_equal(s.singular_values, t.singular_values)  # type: ignore[union-attr]


@pytest.mark.parametrize("wanted", ["all", "*"])
def test_calls_of_later_samples_are_found(samples: list[Tensor], wanted: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    net = Branches().eval()
    profile = rs.jacobian_rank(net, Items(samples), cut_points=wanted)
    assert {"first", "left", "right", "deep"} <= {layer.name for layer in profile.layers}
    assert profile["left"].uncalled == (1, 2, 4)
    assert profile["right"].uncalled == (0, 3)
    assert profile["deep"].uncalled == (0, 2, 3)
    check(profile, net, samples)
    (fact,) = of_kind(profile.facts, FactKind.NOT_CALLED)
    assert {"left", "right", "deep"} <= set(fact["names"])
    assert rs.JacobianProfile.load(profile.save(tmp_path)) == profile


def test_the_output_of_samples_on_other_paths_is_complete(samples: list[Tensor]) -> None:
    """The first sample's output is what ``left`` returned; that of a long one is a mean of what ``deep`` returned."""
    torch.manual_seed(2)
    net = Branches().eval()
    profile = rs.jacobian_rank(net, Items(samples), cut_points="all")
    assert profile["output"].uncalled == ()
    check(profile, net, samples)


def test_calls_found_later_are_measured_again_after_a_stop(samples: list[Tensor], tmp_path: Path) -> None:
    net = Branches().eval()
    runs = [rs.jacobian_rank(net, Items(samples), cut_points="all", checkpoint=tmp_path) for _ in range(2)]
    assert [x.name for x in runs[0].layers] == [x.name for x in runs[1].layers]
    np.testing.assert_array_equal(runs[0].reading.rank, runs[1].reading.rank)


def test_a_named_layer_alone_stays_alone(samples: list[Tensor]) -> None:
    net = Branches().eval()
    profile = rs.jacobian_rank(net, Items(samples), cut_points=["first", "left"])
    assert [layer.name for layer in profile.layers] == ["first", "left"]
