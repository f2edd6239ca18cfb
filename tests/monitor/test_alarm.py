"""When a collapse alarm rings, what it does, and that it counts on after a resume."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from watching import batches, net, train

import rankscope as rs
from rankscope.monitor import Collapse, CollapseAlarm
from rankscope.monitor.history import Entry, Moment

NAN = float("nan")


def moments(values, layer="a", metric="rankme"):
    return [Moment(10 * i, (Entry(layer, metric, v, 9),)) for i, v in enumerate(values)]


def rings(alarm, values, **where):
    return [collapse.step for moment in moments(values, **where) for collapse in alarm.look(moment)]


@pytest.mark.parametrize(
    ("patience", "values", "steps"),
    [
        (1, [3, 1.9, 3], [10]),
        (1, [2.0, 2.0], []),  # not below
        (2, [1, 1, 1, 1], [10]),  # once for each fall
        (2, [1, 3, 1, 3], []),  # never two in a row
        (2, [1, 1, 3, 1, 1], [10, 40]),  # again after it has recovered
        (2, [1, NAN, 1], [20]),  # NaN neither counts nor ends the row
        (3, [1, 1, NAN, NAN], []),
        (1, [NAN, NAN], []),
        (1, [float("-inf"), float("inf")], [0]),
    ],
)
def test_it_rings_after_so_many_low_values_in_a_row(patience, values, steps):
    assert rings(CollapseAlarm("rankme", below=2.0, patience=patience), values) == steps


def test_layers_and_metrics_are_counted_apart():
    alarm = CollapseAlarm("rankme", below=2, patience=2)
    mixed = [Moment(i, (Entry("ab"[i % 2], "rankme", 1.0, 9),)) for i in range(4)]
    assert [[c.layer for c in alarm.look(m)] for m in mixed] == [[], [], ["a"], ["b"]]
    assert rings(CollapseAlarm("rankme", below=2), [1, 1], metric="effective_rank") == []
    assert rings(CollapseAlarm("rankme", below=2, layer="b"), [1, 1]) == []


def test_what_it_hands_over():
    alarm = CollapseAlarm("rankme", below=2, patience=2)
    found = [c for m in moments([1, 1.5]) for c in alarm.look(m)]
    assert found == [Collapse(10, "a", "rankme", 1.5, 2, 2)]
    assert str(found[0]) == "rankme of 'a' is 1.5 at step 10, below 2 for 2 monitored steps in a row"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"below": NAN}, "below is nan"),
        ({"below": "2"}, "below is '2'"),
        ({"below": 2, "patience": 0}, "patience is 0"),
        ({"below": 2, "patience": 1.5}, "patience is 1.5"),
        ({"below": 2, "action": "halt"}, "unknown action 'halt'"),
        ({"below": 2, "metric": None}, "metric is None"),
    ],
)
def test_options_that_cannot_be_meant(options, match):
    with pytest.raises(rs.UsageError, match=match):
        CollapseAlarm(**{"metric": "rankme", **options})


def monitored(action, *, patience=1, steps=3, below=100.0, **more):
    model = net()
    alarm = CollapseAlarm("rankme", below=below, patience=patience, action=action, layer="2")
    monitor = rs.RankMonitor(model, ["0", "2"], every=1, alarms=alarm, **more)
    with monitor:
        train(model, monitor, batches(steps))
    return monitor


def test_warn_leaves_the_flag():
    with pytest.warns(UserWarning, match=r"rankscope: rankme of '2' is .* at step 1, below 100 for 2 monitored steps"):
        assert not monitored("warn", patience=2).should_stop


def test_stop_sets_the_flag():
    with pytest.warns(UserWarning, match="rankme of '2'"):
        assert monitored("stop").should_stop
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not monitored("stop", below=0.5).should_stop  # no rank is below one


def test_a_function_gets_the_collapse():
    seen = []
    monitored(seen.append)
    assert [(c.step, c.layer, c.below) for c in seen] == [(0, "2", 100.0)]


def test_a_function_that_raises_leaves_no_hook_and_loses_no_step():
    def fail(collapse):
        raise RuntimeError("enough")

    model = net()
    monitor = rs.RankMonitor(model, ["2"], every=2, alarms=CollapseAlarm("rankme", below=100.0, action=fail))
    with pytest.raises(RuntimeError, match="enough"):
        train(model, monitor, batches(3))
    from watching import hooks

    assert hooks(model) == 0
    assert monitor.history["step"].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("alarm", "match"),
    [
        (CollapseAlarm("alpha_req", below=1), "watches 'alpha_req', which this monitor does not measure"),
        (CollapseAlarm("jacobian_rank", below=1), "give jacobian=rs.JacobianProbe"),
        (CollapseAlarm("rankme", below=1, layer="02"), "watches layer '02'"),
    ],
)
def test_an_alarm_that_could_never_ring_is_refused(alarm, match):
    with pytest.raises(rs.UsageError, match=match):
        rs.RankMonitor(net(), ["0", "2"], alarms=alarm)


def test_two_monitors_of_one_alarm_count_apart():
    alarm = CollapseAlarm("rankme", below=100.0, patience=2, action="stop")
    first, second = net(), net()
    one, two = (rs.RankMonitor(m, ["2"], every=1, alarms=alarm) for m in (first, second))
    train(first, one, batches(1))
    train(second, two, batches(1))
    assert not one.should_stop
    assert not two.should_stop


def test_it_counts_on_from_a_checkpoint_and_from_a_file(tmp_path):
    def again(**more):
        alarm = CollapseAlarm("rankme", below=100.0, patience=3, action=seen.append)
        return rs.RankMonitor(model, ["2"], every=1, alarms=alarm, **more)

    model, seen = net(), []
    with again(path=tmp_path / "kept.jsonl") as monitor:
        train(model, monitor, batches(2))
    state = monitor.state_dict()
    assert seen == []
    with again() as resumed:
        resumed.load_state_dict(state)
        train(model, resumed, batches(1))
    with again(path=tmp_path / "kept.jsonl") as resumed:
        train(model, resumed, batches(1))
    assert [c.step for c in seen] == [2, 2]


def test_it_watches_jacobian_ranks():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))
    seen = []
    probe = rs.JacobianProbe(torch.ones(1, 4), columns="all", every=2)
    alarm = CollapseAlarm("jacobian_rank", below=3, action=seen.append)
    with rs.RankMonitor(model, ["0"], every=5, jacobian=probe, alarms=alarm) as monitor:
        model(torch.randn(8, 4))
        monitor.step()
        monitor.step()
        monitor.step()
    ranks = monitor.history.query("metric == 'jacobian_rank'")
    assert ranks[["step", "value"]].values.tolist() == [[0, 2], [2, 2]]
    assert [c.step for c in seen] == [0]
