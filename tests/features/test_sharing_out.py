"""Several processes of one group collect what one process collects, whatever becomes of one of them."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_processes
from torch import nn

import rankscope as rs

NET = """
import rankscope as rs
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
x = torch.randn(37, 5)
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return len(x)
    def __getitem__(self, index):
        if index in BROKEN:
            raise ValueError("cannot be read")
        return x[index], index % 3
BROKEN = {broken}
run = rs.collect(net, Data(), out="run", cut_points=["0", "2"], shard_size=7, batch_size=4)
run.save(f"copy{{RANK}}")
print(run.resumed, [one.index for one in run.skipped], run.facts)
"""
# the second process dies once it has handed on its first shard; the first waits for that
DIES = """
import signal
from rankscope._base import processes
def dies(self, value, then=processes.Several.send):
    then(self, value)
    os.kill(os.getpid(), signal.SIGKILL)
processes.Several.send = dies
"""
WAITS = """
from rankscope.features import sharing_out
def waits(self, number, block, then=sharing_out.SharedRun._take):
    if RANK == 0 and not os.path.exists("waited"):
        open("waited", "w").close()
        while not self.company.blame():
            pass
    then(self, number, block)
sharing_out.SharedRun._take = waits
"""


def check(folder: Path, broken: set[int]) -> rs.Collection:
    """Beside plain forward passes, and NumPy's covariance in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    x = torch.randn(37, 5)
    run = rs.Collection.load(folder)
    kept = [index for index in range(37) if index not in broken]
    assert run.indices.tolist() == kept
    assert run.labels.tolist() == [index % 3 for index in kept]
    assert sorted(one.index for one in run.skipped) == sorted(broken)
    with torch.no_grad():
        # a product of another batch size may round in another way: a few units in the last place of float32
        assert torch.allclose(run.features, net[:4](x[kept]), rtol=0, atol=1e-6)
        assert torch.allclose(run.logits, net(x[kept]), rtol=0, atol=1e-6)
        for depth, name in ((1, "0"), (3, "2")):
            rows = net[:depth](x[kept]).double().numpy()
            moments = run.moments[name]
            assert int(moments.count) == len(kept)
            # rows are off by 1e-6, so their covariance by 1e-6 times their size, which is about one
            expected = np.cov(rows.T, bias=True) * len(kept)
            assert np.allclose(moments.scatter.numpy(), expected, rtol=0, atol=1e-4)
    return run


@pytest.mark.parametrize(("size", "broken"), [(2, set()), (3, {0, 1, 2, 3, 4, 5, 6, 7, 30, 36})], ids=["2", "3 broken"])
def test_every_process_returns_what_one_collects(size: int, broken: set[int], tmp_path: Path) -> None:
    runs = in_processes(size, NET.format(broken=broken), tmp_path)
    assert [run.code for run in runs] == [0] * size, runs[-1].error
    found = [check(tmp_path / f"copy{rank}", broken) for rank in range(size)]
    assert all(one == found[0] for one in found)
    assert len({run.out for run in runs}) == 1  # also what is said


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    code = NET.format(broken="set()")
    first, second = in_processes(2, code, tmp_path, each=[WAITS, DIES])
    assert (first.code, second.code) == (1, -9), first.error
    assert first.error.strip().splitlines()[-1].endswith("ended without a message; it may have been killed")
    whole = len(list((tmp_path / "run").glob("shard-*.safetensors")))
    runs = in_processes(3, code, tmp_path)
    assert [run.code for run in runs] == [0, 0, 0], runs[-1].error
    check(tmp_path / "copy2", set())
    assert int(runs[2].out.split()[0]) == 8 * whole  # two batches of four make a shard of at least seven


LATER = """
import rankscope as rs
from torch import nn
torch.manual_seed(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.short, self.long, self.gated, self.head = (nn.Linear(5, 5) for _ in range(4))
    def forward(self, x):
        way = self.short if x.shape[1] < 3 else self.long if x.shape[1] < 4 or bool(x[0, 0, 0] > 0) else self.gated
        return self.head(torch.tanh(way(x)).mean(1))
net = Net().eval()
lengths = [2] * 9 + [3] * 12 + [2, 4, 4, 3] * 4
data = [(torch.randn(n, 5), k % 5) for k, n in enumerate(lengths)]
for name, processes in (("run", "all"), (f"own{RANK}", "this")):
    run = rs.collect(net, data, out=name, cut_points="all", shard_size=4, batch_size=4, processes=processes)
    print(sorted((n, int(m.count)) for n, m in run.moments.items()), sorted(map(repr, run.facts)))
"""


def test_layers_that_later_samples_alone_call_are_found_by_every_process(tmp_path: Path) -> None:
    for run in in_processes(2, LATER, tmp_path):
        assert run.code == 0, run.error
        together, alone = run.out.strip().splitlines()[-2:]
        assert together == alone
        assert "'long'" in together
        assert "'gated'" in together
    shared, own = rs.Collection.load(tmp_path / "run"), rs.Collection.load(tmp_path / "own0")
    for name, moments in own.moments.items():
        # float64 sums of float32 rows, added up in another order
        assert torch.allclose(shared.moments[name].scatter, moments.scatter, rtol=1e-9, atol=1e-12)


LOOPS = """
import rankscope as rs
from torch import nn
torch.manual_seed(0)
class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.m, self.once, self.head = (nn.Linear(6, 6) for _ in range(4))
    def forward(self, x):
        h = self.stem(x)
        times = int(x[0, 0])
        for _ in range(times):
            h = torch.tanh(self.m(h))
        return self.head(torch.tanh(self.once(h)) if times == 1 else h)
net, x = Loop().eval(), torch.randn(12, 6)
for order in ([0, 1, 2], [0, 2, 1]):
    x[:, 0] = torch.tensor(order).repeat_interleave(4)
    for processes in ("all", "this"):
        out = f"{processes}{order[1]}" + ("" if processes == "all" else str(RANK))
        run = rs.collect(net, (x, torch.arange(12) % 3), out=out, head="head", cut_points="all", shard_size=4,
                         batch_size=4, processes=processes)
        print({n: int(m.count) for n, m in run.moments.items()}, rs.Collection.load(out) == run)
"""


def test_calls_of_a_module_that_the_first_samples_do_not_call_are_lost_in_no_process(tmp_path: Path) -> None:
    """One block calls ``m`` once and another twice: its calls have the same names in both, in whichever order."""
    expected = {"stem": 12, "m#1": 8, "m#2": 4, "once": 4, "head": 12}
    for run in in_processes(2, LOOPS, tmp_path):
        assert run.code == 0, run.error
        lines = run.out.strip().splitlines()[-4:]
        assert all(line.endswith("} True") for line in lines)
        for line in lines:
            assert {name: count for name, count in ast.literal_eval(line[:-5]).items() if name in expected} == expected
    torch.manual_seed(0)
    stem, m = nn.Linear(6, 6), nn.Linear(6, 6)
    nn.Linear(6, 6), nn.Linear(6, 6)
    x = torch.randn(12, 6)
    x[:, 0] = torch.arange(3).repeat_interleave(4)
    with torch.no_grad():
        first = m(stem(x[4:]))
        second = m(torch.tanh(first[4:]))
    kept = rs.Collection.load(tmp_path / "all1")
    for name, rows in (("m#1", first), ("m#2", second)):
        scatter = np.cov(rows.double().numpy().T, bias=True) * len(rows)
        # rows are off by 1e-6, so their scatter by 1e-6 times their size, which is about one
        assert np.allclose(kept.moments[name].scatter.numpy(), scatter, rtol=0, atol=1e-4)
