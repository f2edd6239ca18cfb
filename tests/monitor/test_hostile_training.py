"""What goes wrong in training is named with layer and step, training goes on, and nothing is left behind."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from watching import batches, expect, hooks, net, train

import rankscope as rs
from rankscope.monitor import CsvLogger


class Spoilt(nn.Module):
    """The features of the hidden layer become what ``how`` makes of them while ``on``."""

    def __init__(self, how):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3)
        self.how, self.on = how, False

    def forward(self, x):
        h = self.first(x)
        h = self.middle(self.how(h) if self.on else h)
        return self.last(h.nan_to_num(0, 0, 0))


def nan(h):
    return torch.where(torch.arange(len(h))[:, None] == 3, torch.nan, h)


def infinite(h):
    return torch.where(torch.arange(len(h))[:, None] == 0, -torch.inf, h)


BAD = {
    "NaN": (nan, "middle: sample 3 holds a NaN"),
    "infinite": (infinite, "middle: sample 0 holds a NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_features_that_are_not_finite(name):
    how, said = BAD[name]
    model = Spoilt(how)
    with rs.RankMonitor(model, ["first", "middle", "last"], every=1) as monitor:
        train(model, monitor, batches(2))
        model.on = True
        with pytest.warns(UserWarning, match=f"rankscope, step 2: {said}") as told:
            train(model, monitor, batches(3))
        assert len(told) == 1  # and not at every step
        model.on = False
        train(model, monitor, batches(1))
    bad = monitor.history[monitor.history["value"].isna()]
    assert bad[["step", "layer", "samples"]].drop_duplicates().values.tolist() == [[s, "middle", 0] for s in (2, 3, 4)]
    assert [step for step, _ in monitor.events] == [2, 3, 4]
    assert monitor.history.groupby("step").size().tolist() == [6] * 6
    assert hooks(model) == 0


def test_a_second_fault_of_a_layer_is_news():
    model = Spoilt(nan)
    told = []
    with rs.RankMonitor(model, ["middle"], every=1) as monitor:
        for on in (True, False, True, True):
            model.on = on
            with warnings.catch_warnings(record=True) as here:
                warnings.simplefilter("always")
                train(model, monitor, batches(1))
            told.append(len(here))
    assert told == [1, 0, 1, 0]


@pytest.mark.parametrize(("samples", "said"), [(1, "a covariance needs two samples; it got 1"), (0, "layer|samples|0")])
def test_a_batch_of_one_or_none(samples, said):
    model = net()
    with rs.RankMonitor(model, ["0", "2"], every=1) as monitor:
        with pytest.warns(UserWarning, match=f"step 0: .*0.*({said})"):
            train(model, monitor, batches(1, samples=samples))
        train(model, monitor, batches(1))
    assert monitor.history.query("step == 0")["value"].isna().all()
    expect(monitor.history, 1, "0", net()[0](batches(1)[0]).detach()) if samples == 0 else None
    assert monitor.history.query("step == 1")["value"].notna().all()


def test_batches_of_one_count_together():
    model = net()
    x = batches(1)[0]
    with rs.RankMonitor(model, ["0"], every=1) as monitor:
        for row in x:
            model(row[None])
        monitor.step()
    expect(monitor.history, 0, "0", model[0](x).detach())


class Grows(nn.Module):
    def __init__(self):
        super().__init__()
        self.stay, self.grow = nn.Linear(6, 6), nn.Identity()

    def forward(self, x, width):
        return self.grow(self.stay(x)[:, :width]).square().sum()


def test_a_layer_that_changes_its_width_within_a_step_is_named():
    model = Grows()
    x = batches(1)[0]
    with rs.RankMonitor(model, ["stay", "grow"], every=1) as monitor:
        model(x, 4)
        model(x, 5)
        with pytest.warns(UserWarning, match="step 0: grow: 5 dimensions for one sample and 4 for another"):
            monitor.step()
        model(x, 3)
        monitor.step()
    assert monitor.history.query("step == 0 and layer == 'grow'")["value"].isna().all()
    expect(monitor.history, 0, "stay", model.stay(torch.cat([x, x])).detach())
    expect(monitor.history, 1, "grow", model.stay(x)[:, :3].detach())


def test_a_layer_that_is_not_called_in_a_step():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.use = nn.Linear(6, 6), nn.Linear(6, 6), True

        def forward(self, x):
            return self.b(self.a(x)) if self.use else self.a(x)

    model = Sometimes()
    with rs.RankMonitor(model, ["a", "b"], every=1) as monitor:
        train(model, monitor, batches(1))
        model.use = False
        with pytest.warns(UserWarning, match="step 1: b: it was not called in this step"):
            train(model, monitor, batches(1))
    assert monitor.history.query("layer == 'a'")["value"].notna().all()


def test_an_output_whose_rows_are_no_samples():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.total = nn.Linear(6, 6), nn.Flatten(0)

        def forward(self, x):
            return self.total(self.a(x))

    model = Sums()
    with (
        rs.RankMonitor(model, ["a", "total"], every=1) as monitor,
        pytest.warns(UserWarning, match=r"step 0: layer 'total' returns a tensor of shape \(96,\) for 16 samples"),
    ):
        train(model, monitor, batches(1))
    assert monitor.history.query("layer == 'a'")["value"].notna().all()


def test_a_constant_layer_has_dimension_zero():
    model = net()
    with torch.no_grad():
        model[0].weight.zero_()
    with rs.RankMonitor(model, ["0"], every=1, metrics=("effective_rank", "pca_dimension")) as monitor:
        train(model, monitor, batches(1))
    assert monitor.history["value"].tolist() == [0.0, 0.0]


class Fails:
    def __init__(self):
        self.calls = 0

    def log(self, values, step):
        self.calls += 1
        raise ConnectionError(f"attempt {self.calls}")


def test_a_logger_that_raises_is_told_once_and_the_others_go_on(tmp_path):
    model, bad = net(), Fails()
    good = CsvLogger(tmp_path / "v.csv")
    with (
        rs.RankMonitor(model, ["0"], every=1, loggers=[bad, good]) as monitor,
        pytest.warns(UserWarning, match=r"step 0: the logger Fails failed \(ConnectionError: attempt 1\)") as told,
    ):
        train(model, monitor, batches(3))
    assert (len(told), bad.calls) == (1, 3)
    rows = (tmp_path / "v.csv").read_text().splitlines()
    assert rows[0] == "step,name,value"
    found = [row.split(",") for row in rows[1:]]
    wanted = monitor.history
    assert [int(r[0]) for r in found] == wanted["step"].tolist()
    assert [float(r[2]) for r in found] == wanted["value"].tolist()
    assert {r[1] for r in found} == {"rank/0/rankme", "rank/0/effective_rank"}


def test_what_is_not_a_number_goes_to_no_logger(tmp_path):
    model = Spoilt(nan)
    model.on = True
    with (
        rs.RankMonitor(model, ["first", "middle"], every=1, loggers=CsvLogger(tmp_path / "v.csv")) as monitor,
        pytest.warns(UserWarning, match="middle"),
    ):
        train(model, monitor, batches(1))
    assert "middle" not in (tmp_path / "v.csv").read_text()


def test_a_logger_without_the_method_is_refused():
    with pytest.raises(rs.UsageError, match="give a Logger or a list of them"):
        rs.RankMonitor(net(), ["0"], loggers=[object()])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "every is 0; it must be a whole number of at least 1"),
        ({"every": -5}, "every is -5"),
        ({"every": 2.5}, "every is 2.5"),
        ({"cut_points": []}, "no cut points|cut_points is empty"),
        ({"cut_points": ["9"]}, "Sequential has no layer '9'"),
        ({"metrics": ["rank_me"]}, "unknown metric 'rank_me'"),
        ({"metrics": []}, "metrics"),
        ({"jacobian": torch.zeros(1, 6)}, "jacobian is a Tensor; give rs.JacobianProbe"),
        ({"called": "part"}, "unknown called 'part'"),
        ({"alarms": "warn"}, "alarms is 'warn'"),
        ({"path": ""}, "path is empty"),
    ],
)
def test_options_that_cannot_be_meant(options, match):
    model = net()
    with pytest.raises(rs.UsageError, match=match):
        rs.RankMonitor(model, **{"cut_points": ["0"], **options})
    assert hooks(model) == 0


@pytest.mark.filterwarnings("ignore:rankscope, step 0. the model is compiled")
@pytest.mark.parametrize("compiled", [False, True])
def test_globs_that_match_nothing_say_so_in_the_first_step(compiled):
    model = net()
    called = torch.compile(model, backend="eager") if compiled else model
    monitor = rs.RankMonitor(called, "layer*", every=1)
    with monitor, pytest.raises(rs.CutPointError, match=r"layer\*"):
        called(batches(1)[0])
    assert hooks(model) == 0


def test_the_module_that_is_not_called_is_said_at_once():
    model = net()
    other = nn.Sequential(model, nn.Linear(3, 2))
    with rs.RankMonitor(other, ["1"], every=1) as monitor:
        model(batches(1)[0])
        with pytest.raises(
            rs.MeasurementError, match="step 0: no forward pass in training mode went through the model"
        ):
            monitor.step()
        assert hooks(other) == 0  # step 0 is over
        model(batches(1)[0])
        monitor.begin(2)
        with pytest.warns(UserWarning, match="no forward pass in training mode"):
            monitor.step()
    assert hooks(other) == 0


def test_a_closed_monitor_puts_no_hooks_back():
    model = net()
    monitor = rs.RankMonitor(model, ["0"], every=1)
    monitor.close()
    monitor.close()
    with pytest.raises(rs.UsageError, match="this monitor is closed"):
        monitor.step()
    with pytest.raises(rs.UsageError, match="this monitor is closed"):
        monitor.begin(4)
    assert hooks(model) == 0
    with monitor:
        assert hooks(model) == 2
        train(model, monitor, batches(1))
    assert hooks(model) == 0


def test_a_probe_batch_that_cannot_be_measured_later():
    model = net()
    with rs.RankMonitor(model, ["0", "2"], every=1, inputs=batches(1)[0]) as monitor:
        train(model, monitor, batches(1))
        with torch.no_grad():
            model[2].weight.fill_(torch.nan)
        with pytest.warns(UserWarning, match=r"step 1: 2: .*NaN"):
            monitor.step()
        monitor.step()  # a second warning would be an error
    assert monitor.history.groupby("step").size().tolist() == [4, 4, 4]
    assert monitor.history.query("step > 0")["value"].isna().all()


def test_a_jacobian_that_cannot_be_measured_leaves_the_features():
    model = net()
    probe = rs.JacobianProbe(torch.full((1, 6), torch.nan), columns="all", every=1)
    with (
        rs.RankMonitor(model, ["0"], every=1, jacobian=probe) as monitor,
        pytest.warns(UserWarning, match=r"step 0: Jacobian rank: .*NaN"),
    ):
        train(model, monitor, batches(1))
    assert monitor.history["metric"].tolist() == ["rankme", "effective_rank"]
    assert monitor.events[0][0] == 0


def test_memory_that_runs_out_is_named(monkeypatch):
    model = net()

    def full(self, name):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("rankscope.features.layer_store.LayerStore.layer", full)
    with (
        rs.RankMonitor(model, ["0"], every=1) as monitor,
        pytest.warns(UserWarning, match="step 0: 0: OutOfMemoryError: no room"),
    ):
        train(model, monitor, batches(1))
    assert monitor.history["value"].isna().all()
