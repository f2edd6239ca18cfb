"""A monitored run and the same run without a monitor: losses, weights, buffers and random state to the last bit."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
import torch
from processes import in_processes
from torch import nn
from torch.utils.checkpoint import checkpoint
from watching import hooks

from rankscope.monitor import JacobianProbe, RankMonitor
from rankscope.slicing import Sketch


class Net(nn.Module):
    def __init__(self, *, checkpointed: str = "") -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        h = self.stem(x)
        if self.checkpointed:
            h = checkpoint(self.body, h, use_reentrant=self.checkpointed == "reentrant")
        else:
            h = self.body(h)
        return self.head(h.mean((2, 3)))


def train(wrap=lambda m: m, *, monitored, steps=6, accumulate=1, autocast=None, checkpointed="", **options):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    net = Net(checkpointed=checkpointed)
    model = wrap(net)
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    # float16: the first scale overflows, so the scaler leaves out some steps before it finds one that does not
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**21, enabled=autocast is torch.float16)
    options = {"cut_points": ["stem", "body", "head"], "every": 2, **options}
    monitor = RankMonitor(model, **options) if monitored else None
    losses = []
    for _ in range(steps):
        for _ in range(accumulate):
            x, y = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
            with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(model(x), y) / accumulate
            scaler.scale(loss).backward()
            losses.append(loss.item())
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        if monitor is not None:
            monitor.step()
    state = {k: v.clone() for k, v in net.state_dict().items()} | {"scale": torch.tensor(scaler.get_scale())}
    tail = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    return losses, state, tail, monitor


CASES = {
    "plain": {},
    "accumulated": {"accumulate": 3},
    "autocast": {"autocast": torch.bfloat16},
    "scaled gradients": {"autocast": torch.float16},
    "checkpointed": {"checkpointed": "plain"},
    "checkpointed, re-entrant": {"checkpointed": "reentrant"},
    "blocks": {"cut_points": "blocks"},
    "probe batch": {"inputs": torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(3))},
    "jacobian": {"jacobian": JacobianProbe(torch.ones(1, 3, 8, 8), columns=Sketch(4), every=3)},
    "compiled": {"wrap": lambda m: torch.compile(m, backend="aot_eager")},
    "compiled under autocast": {"wrap": lambda m: torch.compile(m, backend="aot_eager"), "autocast": torch.bfloat16},
}


if not torch.cuda.is_available():  # with a GPU it moves the batches there
    CASES["data parallel"] = {"wrap": nn.DataParallel}


@pytest.mark.filterwarnings("ignore:rankscope")
@pytest.mark.parametrize("name", CASES)
def test_training_is_bit_for_bit_the_same(name):
    case = dict(CASES[name])
    own = {k: case.pop(k) for k in ("inputs", "jacobian", "cut_points") if k in case}
    plain = train(monitored=False, **case)
    watched = train(monitored=True, **case, **own)
    assert watched[0] == plain[0]
    assert all(torch.equal(watched[1][k], plain[1][k]) for k in plain[1])
    assert torch.equal(watched[2][0], plain[2][0])
    assert watched[2][1:] == plain[2][1:]
    history = watched[3].history
    assert set(history["step"]) >= {0, 2, 4}
    assert history["value"].notna().all()


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


@pytest.mark.filterwarnings("ignore:rankscope")
@pytest.mark.parametrize("wrap", [compiled_in_place, lambda m: torch.compile(m, backend="aot_eager")])
def test_a_compiled_model_gives_the_features_of_the_plain_one(wrap):
    """In the first step weights are the same, and so are dropout's draws: those of the pass that trains."""
    plain = train(monitored=True, steps=1)[3].history
    compiled = train(wrap, monitored=True, steps=1)[3].history
    # aot_eager runs the same kernels; fused multiply-adds apart, that is some eps32 on each feature
    np.testing.assert_allclose(compiled["value"], plain["value"], rtol=1e-4)
    assert compiled["samples"].tolist() == plain["samples"].tolist()


def test_hooks_are_there_in_monitored_steps_alone():
    net = Net()
    with RankMonitor(net, ["stem"], every=2) as monitor:
        assert hooks(net) == 2  # around calls of the root alone, until a pass begins
        net(torch.randn(4, 3, 8, 8))
        assert hooks(net) == 3
        monitor.step()
        assert hooks(net) == 0  # step 1 is not monitored
        monitor.step()
        assert hooks(net) == 2
    assert hooks(net) == 0


def test_no_hook_is_left_after_an_exception():
    net = Net()

    def fail():
        with RankMonitor(net, ["stem"]):
            net(torch.randn(4, 3, 8, 8))
            raise ZeroDivisionError("training failed")

    with pytest.raises(ZeroDivisionError, match="training failed"):
        fail()
    assert hooks(net) == 0


TRAINING = """
import random
import numpy as np
from torch import nn
from rankscope.monitor import RankMonitor
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
model = nn.parallel.DistributedDataParallel(net)
data = torch.randn(4, 32, 6, generator=torch.Generator().manual_seed(5))
optimiser = torch.optim.SGD(model.parameters(), 0.1)
monitor = RankMonitor(model, CUTS, every=2, path="history.jsonl") if watched else None
for seed in (torch.manual_seed, random.seed, np.random.seed):
    seed(10 + RANK)  # each process drops units of its own
losses = []
for x in data:
    loss = model(x[RANK::2]).square().mean()
    losses.append(loss.item())
    optimiser.zero_grad(); loss.backward(); optimiser.step()
    if monitor: monitor.step()
kept = {"losses": losses, "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1].tolist()}
kept |= {"python": random.getstate(), "weights": [p.detach() for p in net.parameters()]}
torch.save(kept, f"{watched}.{RANK}.pt")
"""


@pytest.mark.parametrize("cuts", [["0", "3"], "*"])  # plain names, and names that a pass of the first batch finds
def test_two_processes_give_the_numbers_of_one(cuts, tmp_path):
    for watched in (False, True):
        for run in in_processes(2, f"watched, CUTS = {watched}, {cuts!r}\n{TRAINING}", tmp_path):
            assert run.code == 0, run.error
    for rank in (0, 1):
        plain, monitored = (torch.load(tmp_path / f"{watched}.{rank}.pt") for watched in (False, True))
        assert monitored["losses"] == plain["losses"]
        assert torch.equal(monitored["torch"], plain["torch"])
        assert (monitored["numpy"], monitored["python"]) == (plain["numpy"], plain["python"])
        assert all(torch.equal(a, b) for a, b in zip(monitored["weights"], plain["weights"], strict=True))
        assert len(set(plain["losses"])) == 4
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    first = torch.randn(4, 32, 6, generator=torch.Generator().manual_seed(5))[0]
    with RankMonitor(net, ["0"], every=2) as alone:  # what comes before dropout
        net(first)
        alone.step()
    from rankscope.monitor.history import History

    merged = History(tmp_path / "history.jsonl").table()
    merged = merged[merged["step"] == 0]
    assert merged["samples"].unique().tolist() == [32]
    assert merged["layer"].unique().tolist() == (cuts if isinstance(cuts, list) else ["0", "1", "2", "3"])
    merged = merged[merged["layer"] == "0"]
    np.testing.assert_allclose(merged["value"], alone.history["value"], rtol=1e-5)
