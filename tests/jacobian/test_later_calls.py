"""Which samples make calls that the first does not: by their width, by a value, by both; oracle: the rule itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rankscope as rs
from rankscope.jacobian.later_calls import LaterCalls
from rankscope.slicing import CutPointsLike, called


class Inputs(Dataset[Tensor]):
    def __init__(self, samples: list[Tensor]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        return self.samples[index]


class Longer(nn.Module):
    """``extra`` follows what the network returns of other samples, or stands before it."""

    def __init__(self, leads: Callable[[Tensor], bool], *, behind: bool) -> None:
        super().__init__()
        self.leads, self.behind = leads, behind
        self.first, self.last, self.extra = nn.Linear(1, 4), nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, leads = x.unsqueeze(-1), self.leads(x)
        if self.behind:
            x = self.last(self.first(x).relu())
            return self.extra(x) if leads else x
        x = self.first(x).relu()[..., :3]
        return self.last(nn.functional.pad(self.extra(x) if leads else x, (0, 1)))


SAMPLES = [(8, -1), (12, -1), (12, 1), (8, 1), (12, -1), (12, 1)]
RULES: list[Callable[[Tensor], bool]] = [
    lambda x: x.shape[-1] > 8,
    lambda x: bool(x.sum() > 0),
    lambda x: x.shape[-1] > 8 and bool(x.sum() > 0),
    lambda x: x.tolist()[0][0] > 0,
    lambda x: x.shape[-1] <= 8 and bool(x.sum() > 0),
]


@pytest.mark.parametrize("wanted", ["all", "blocks"])
@pytest.mark.parametrize("rule", range(len(RULES)))
@pytest.mark.parametrize("behind", [True, False])
def test_every_sample_that_makes_a_call_has_a_spectrum_there(wanted: str, rule: int, behind: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [sign * (torch.rand(width, generator=generator) + 0.1) for width, sign in SAMPLES]
    model = Longer(RULES[rule], behind=behind).eval()
    profile = rs.jacobian_rank(model, Inputs(samples), cut_points=wanted)
    (layer,) = [layer for layer in profile.layers if layer.name == "extra"]
    leads = [RULES[rule](x[None]) for x in samples]
    assert [spectrum is not None for spectrum in layer.spectra] == leads
    found: list[Tensor] = []
    model.extra.register_forward_hook(lambda module, args, out: found.append(out))

    def up_to_extra(x: Tensor) -> Tensor:
        model(x)
        return found[-1]

    for x, spectrum in zip(samples, layer.spectra, strict=True):
        if spectrum is not None:
            jacobian = torch.autograd.functional.jacobian(up_to_extra, x[None]).reshape(-1, len(x))
            assert spectrum.rank().value == int(torch.linalg.matrix_rank(jacobian))


@pytest.mark.parametrize(("tail", "looks"), [(False, 1), (True, 4)])
def test_samples_are_looked_at_where_something_follows_the_last_cut(
    tail: bool, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    counted = LaterCalls.look.__globals__["called"]
    monkeypatch.setitem(LaterCalls.look.__globals__, "called", lambda *a: made.append(1) or counted(*a))
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    rs.jacobian_rank(model, torch.randn(4, 5), cut_points=["0"] if tail else "all")
    assert called is counted
    assert len(made) == looks


class Ways(nn.Module):
    """What the network returns comes from ``wide``, from ``thin``, or from no module, as the sum says."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.thin = nn.Linear(6, 5), nn.Linear(6, 2), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        way = int(x.sum().round()) % 3
        return self.wide(x) if way == 0 else self.thin(self.narrow(x)) if way == 1 else x[:, :4] * 2


@pytest.mark.parametrize("wanted", ["blocks", "all", "output", ["wide", "output"]])
@pytest.mark.parametrize("ways", [[0, 1, 0], [1, 1, 0], [1, 0, 2], [2, 0, 1], [0, 0]])
def test_the_output_of_every_path_is_one_row(wanted: CutPointsLike, ways: list[int]) -> None:
    """Each module's row left out the samples whose output another module returned, or ``output`` had two rows."""
    samples = torch.stack([torch.full((6,), (way + 0.01) / 6) for way in ways])
    profile = rs.jacobian_rank(Ways().eval(), samples, cut_points=wanted)
    names = [layer.name for layer in profile.layers]
    assert len(names) == len(set(names))
    estimates = [spectrum.rank() for spectrum in profile["output"].spectra if spectrum is not None]
    assert [e.value for e in estimates] == [(5, 2, 4)[way] for way in ways]
    assert profile[profile.output] is profile["output"]
