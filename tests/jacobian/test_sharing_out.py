"""Several processes of one group measure what one process measures, whatever becomes of one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_processes
from torch import nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope._base.identity import Identity
from rankscope.jacobian.batch import BatchMeasurer
from rankscope.jacobian.checkpoint import Checkpoint
from rankscope.jacobian.collected import Collected
from rankscope.jacobian.measurers import Measurers
from rankscope.jacobian.sharing_out import SharedOut
from rankscope.linear.derivative import Settings
from rankscope.slicing import ColumnsByShape, Sample, measuring, select, trace

NET = """
import rankscope as rs
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 7)).eval()
x = torch.randn(5, 2, 6, 6)
"""
SAVED = NET + 'rs.jacobian_rank(net, x[:{count}], cut_points="all", checkpoint="kept", {more}).save(f"out{{RANK}}")\n'
LANCZOS = 'columns="all", method=rs.Lanczos(probes=2, steps=6)'
# each process dies once it has handed on what it measured first; the first process waits until there is something
DIES = """
import signal
from rankscope.jacobian import {module}
def dies(self, *values, then={module}.{kind}.{name}):
    then(self, *values)
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{kind}.{name} = dies
"""
WAITS = """
from rankscope.jacobian import sharing_out, sharing_cut_points
def waits(self, *values, then={kind}.{name}):
    while self.company.rank == 0 and not self._arrived:
        self.company._pause()
    return then(self, *values)
{kind}.{name} = waits
"""


def truth(count: int) -> tuple[nn.Module, list[list[np.ndarray]]]:
    """Singular values by cut point and image, from float64 rows of plain autograd."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 7)).eval()
    x, double = torch.randn(5, 2, 6, 6)[:count].double(), net.double()
    found = []
    for depth in range(1, 5):
        rows = [torch.autograd.functional.jacobian(double[:depth], one[None]).reshape(-1, 72) for one in x]
        found.append([np.linalg.svd(each.numpy(), compute_uv=False) for each in rows])
    return net, found


def check(profile: rs.JacobianProfile, count: int) -> None:
    """Float32 sweeps, whose error the certificate bounds, beside the float64 rows."""
    assert [layer.name for layer in profile.layers] == ["0", "1", "2", "3"]
    assert len(profile.images) == count
    for layer, expected in zip(profile.layers, truth(count)[1], strict=True):
        for spectrum, values in zip(layer.spectra, expected, strict=True):
            assert spectrum is not None
            estimate = spectrum.rank(1e-2)
            assert estimate.lower <= int((values > 1e-2 * values[0]).sum()) <= estimate.upper
            if isinstance(spectrum, rs.Spectrum):
                found = np.asarray(spectrum.singular_values)[: len(values)]
                # J = UΣVᵀ in float32: each σ is off by at most the certified norm of the error, and σ² by its rounding
                bound = spectrum.error_bound + np.sqrt(max(spectrum.square_error, 0.0))
                assert np.abs(found - values[: len(found)]).max() <= bound + 1e-12


@pytest.mark.parametrize(("size", "count", "more"), [(2, 5, ""), (3, 2, ""), (3, 2, LANCZOS)])
def test_every_process_returns_what_one_measures(size: int, count: int, more: str, tmp_path: Path) -> None:
    runs = in_processes(size, SAVED.format(count=count, more=more), tmp_path)
    assert [run.code for run in runs] == [0] * size, runs[-1].error
    profiles = [rs.JacobianProfile.load(tmp_path / f"out{rank}") for rank in range(size)]
    assert all(profile == profiles[0] for profile in profiles)
    check(profiles[0], count)
    assert len(list((tmp_path / "kept").glob("image-*"))) == count
    assert not list((tmp_path / "kept").glob("cut-*"))


@pytest.mark.parametrize(
    ("dies", "waits", "more", "count"),
    [
        (("sharing_out", "SharedOut", "_write"), ("sharing_out.SharedOut", "_mine"), "", 5),
        (
            ("sharing_cut_points", "SharedCutPoints", "give"),
            ("sharing_cut_points.SharedCutPoints", "claim"),
            LANCZOS,
            2,
        ),
    ],
    ids=["images", "cut points"],
)
def test_a_process_that_is_killed(
    dies: tuple[str, str, str], waits: tuple[str, str], more: str, count: int, tmp_path: Path
) -> None:
    module, kind, name = dies
    each = [WAITS.format(kind=waits[0], name=waits[1]), DIES.format(module=module, kind=kind, name=name)]
    first, second = in_processes(2, SAVED.format(count=count, more=more), tmp_path, each=each)
    assert second.code == -9
    assert first.code == 1
    assert first.error.strip().splitlines()[-1].endswith("ended without a message; it may have been killed")
    kept = {file.name for file in (tmp_path / "kept").glob("*.safetensors")}
    assert kept  # what the second process had finished is on disk
    # the same call goes on, in another number of processes
    runs = in_processes(3, SAVED.format(count=count, more=more), tmp_path)
    assert [run.code for run in runs] == [0, 0, 0], runs[-1].error
    profile = rs.JacobianProfile.load(tmp_path / "out2")
    check(profile, count)
    read = [*of_kind(profile.facts, FactKind.READ_BACK), *of_kind(profile.facts, FactKind.CUTS_READ_BACK)]
    assert sum(fact["kept"] for fact in read) == len(kept)


def test_an_error_of_one_process_reaches_all(tmp_path: Path) -> None:
    raises = """
from rankscope.jacobian import sharing_out
def fails(*values):
    raise ValueError("the disk is upside down")
sharing_out.SharedOut._write = fails
"""
    waits = WAITS.format(kind="sharing_out.SharedOut", name="_mine")
    first, second, third = in_processes(3, SAVED.format(count=5, more=""), tmp_path, each=[waits, raises, waits])
    last = [run.error.strip().splitlines()[-1].partition(": ")[2] for run in (first, second, third)]
    line = "process 1: ValueError: the disk is upside down"
    assert last[0].endswith(line)
    assert last[2].endswith(line)
    assert last[1].endswith("ValueError: the disk is upside down")


ASKED = (
    NET
    + """
def said(call):
    try:
        call()
    except rs.RankscopeError as error:
        print(type(error).__name__, error)
    else:
        print("done")
torch.manual_seed(RANK)
said(lambda: rs.jacobian_rank(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3)))
said(lambda: rs.jacobian_rank(net, torch.randn(4, 2, 6, 6), cut_points="all"))
said(lambda: rs.jacobian_rank(net, x[: 4 - RANK], cut_points="all"))
said(lambda: rs.jacobian_rank(net, x, cut_points="all", columns=rs.Sketch(8 + RANK)))
said(lambda: rs.jacobian_rank(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3), processes="this"))
"""
)


def test_processes_that_do_not_bring_the_same(tmp_path: Path) -> None:
    first, second = in_processes(2, ASKED, tmp_path)
    assert (first.code, second.code) == (0, 0), first.error
    lines = first.out.splitlines(), second.out.splitlines()
    same = 'differs from that of process 1; give every process the same, or give processes="this"'
    assert {line[0] for line in lines} == {f"UsageError the model of process 0 {same}"}
    assert "is not the same in every process" in lines[0][1]
    assert "process 0 has 4 samples and process 1 3" in lines[0][2]
    assert {line[3] for line in lines} == {f"UsageError the options of process 0 {same}"}
    assert {line[4] for line in lines} == {"done"}


PATHS = """
import rankscope as rs
from rankscope._base.facts import gist
from torch import nn
class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)
    def forward(self, x):
        x = self.stem(x).tanh()
        x = self.left(x) if x.sum() > 0 else self.right(x)
        return self.head(x)
class Leaks(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + self[0](x).detach().sum()
torch.manual_seed(3)
routed, leaks = Routed().eval(), Leaks(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
x = torch.randn(7, 5)
shapes = [torch.randn(n, 5) for n in (3, 4, 3, 5, 4, 6, 7, 3)]  # more shapes than measurers that stay at hand
ragged = torch.utils.data.StackDataset(input=shapes)
for net, data in ((routed, x), (leaks, x), (leaks, ragged)):
    both = [rs.jacobian_rank(net, data, cut_points="all", processes=each) for each in ("all", "this")]
    one, other = both
    assert [l.name for l in one.layers] == [l.name for l in other.layers]
    assert [l.uncalled for l in one.layers] == [l.uncalled for l in other.layers]
    ranks = [[[s and (s.rank(1e-2).value, s.rank(1e-2).lower) for s in l.spectra] for l in p.layers] for p in both]
    assert ranks[0] == ranks[1], ranks
    assert list(map(gist, one.facts)) == list(map(gist, other.facts)), (one.facts, other.facts)
    assert list(map(gist, one.failed_methods)) == list(map(gist, other.failed_methods))
    assert gist(one.method) == gist(other.method)
    assert one.certificate == other.certificate
    assert one.unmeasured == other.unmeasured
"""


def test_findings_and_later_calls_are_those_of_one_process(tmp_path: Path) -> None:
    runs = in_processes(2, PATHS, tmp_path)
    assert [run.code for run in runs] == [0, 0], runs[0].error + runs[1].error


def test_a_launcher_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    net, x = nn.Linear(3, 2).eval(), torch.zeros(1, 3)
    with pytest.raises(rs.UsageError, match=r"WORLD_SIZE is 2, but .*init_process_group\(\) first, or give processes="):
        rs.jacobian_rank(net, x)
    assert rs.jacobian_rank(net, x, processes="this").function_rank == (2,)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(rs.UsageError, match="WORLD_SIZE is 'two'"):
        rs.jacobian_rank(net, x)


class _Company:
    """A group's first process as far as a sweep needs it; every image is its own."""

    writes, size, rank = True, 2, 0

    def claim(self, unit: str) -> bool:
        return True

    def check(self) -> None: ...

    def publish(self, key: str, value: object) -> None: ...

    def listen(self, take: object) -> None: ...

    def receive(self) -> None: ...


def test_an_image_is_decided_when_the_next_one_has_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU the host reads on while an image is swept; what is found of it is still said of that image."""
    seen: list[tuple[str, int]] = []
    x = torch.arange(1.0, 4.0)[:, None] * torch.ones(3, 5)
    decided, launched = BatchMeasurer._decided, BatchMeasurer._launched

    def deciding(self: BatchMeasurer, sample: Sample, *rest: object) -> object:
        seen.append(("decided", int(sample.x[0, 0]) - 1))
        self._say_once(Fact(FactKind.NOTE, {"text": f"of {int(sample.x[0, 0]) - 1}"}))
        return decided(self, sample, *rest)  # type: ignore[arg-type]

    def launching(self: BatchMeasurer, sample: Sample) -> object:
        seen.append(("swept", int(sample.x[0, 0]) - 1))
        return launched(self, sample)

    monkeypatch.setattr(BatchMeasurer, "_decided", deciding)
    monkeypatch.setattr(BatchMeasurer, "_launched", launching)
    monkeypatch.setattr(BatchMeasurer, "_shared", lambda *_: 1)
    monkeypatch.setattr(Collected, "ahead", property(lambda self: 3))
    torch.manual_seed(0)
    net, device = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).eval(), torch.device("cpu")
    first = Sample(x[:1], "input 0")
    calls = select(net, trace(net, first), "all")
    settings = Settings("auto", 2**28, True, device, torch.float32, ColumnsByShape("all"))
    with measuring(net, device):
        measurers = Measurers(net, calls, settings)
        shared = SharedOut(measurers, Checkpoint(None, Identity(""), {}), lambda index: None, _Company())  # type: ignore[arg-type]
        for index in range(3):
            sample = Sample(x[index : index + 1], f"input {index}")
            shared.arrives(index, sample)
            seen.append(("read", index))
            assert not shared.restore(index, sample, sample.name)
            shared.add(index, sample, 2 - index)
        shared.sweep()
        shared.finish()
        shared._settle_last()
    order = [("read", 0), ("swept", 0), ("read", 1), ("decided", 0), ("swept", 1)]
    assert seen == [*order, ("read", 2), ("decided", 1), ("swept", 2), ("decided", 2)]
    (findings,) = shared._findings.values()
    notes = {fact["text"]: index for index, fact in findings.facts if fact.kind is FactKind.NOTE}
    assert notes == {"of 0": 0, "of 1": 1, "of 2": 2}
    assert sorted(shared.spectra) == [0, 1, 2]
