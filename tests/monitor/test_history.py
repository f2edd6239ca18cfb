"""The file of a monitor's history: appended, whole after a kill, continued, and never mixed or lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest
from watching import batches, net, train

import rankscope as rs
from rankscope.monitor.history import COLUMNS, Entry, History, Moment


def moment(step, value=1.5, events=()):
    return Moment(step, (Entry("a", "rankme", value, 8), Entry("b", "rankme", float("nan"), 0)), tuple(events))


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_it_is_appended_and_read_back(tmp_path):
    path = tmp_path / "new" / "h.jsonl"
    history = History(path)
    for step in (0, 10):
        history.add(moment(step, events=["a: said"]))
        assert steps(path)[-1] == step  # in the file at once
    history.close()
    found = History(path, write=False)
    assert found.moments[0].events == ("a: said",)
    table = found.table()
    assert tuple(table.columns) == COLUMNS
    assert table["step"].tolist() == [0, 0, 10, 10]
    assert table["value"].isna().tolist() == [False, True] * 2
    assert table.equals(history.table())


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e-310, 0.1 + 0.2])
def test_every_number_comes_back_as_it_was(tmp_path, value):
    history = History(tmp_path / "h")
    history.add(moment(0, value))
    history.close()
    assert History(tmp_path / "h", write=False).moments[0].entries[0].value == value


def test_an_empty_history_has_the_columns():
    assert tuple(History().table().columns) == COLUMNS
    assert History().next_step == 0


def test_a_process_that_does_not_write_goes_on_without_a_history_that_is_not_there_yet(tmp_path):
    """A reader of its own must be refused there: a wrong path would look like a run without steps."""
    path = tmp_path / "history.jsonl"
    with pytest.raises(rs.OutputError, match="cannot read the history"):
        History(path, write=False)
    other = History.of_process(path, writes=False)
    assert (other.moments, other.next_step, path.exists()) == ([], 0, False)
    other.add(Moment(0, ()))
    assert not path.exists()
    first = History.of_process(path, writes=True)
    first.add(Moment(4, ()))
    assert History.of_process(path, writes=False).next_step == first.next_step == 5
    first.close()


@pytest.mark.parametrize("cut", [1, 8, 30, -1])
def test_half_a_last_line_is_dropped_and_nothing_before_it(tmp_path, cut):
    path = tmp_path / "h.jsonl"
    lines = [moment(s).line() for s in (0, 1, 2)]
    path.write_text("\n".join([*lines[:2], lines[2][:cut]]))
    assert [m.step for m in History(path, write=False).moments] == [0, 1]
    history = History(path)
    history.add(moment(2, 7.0))
    assert steps(path) == [0, 1, 2]
    assert json.loads(path.read_text().splitlines()[2])["values"][0]["value"] == 7.0


@pytest.mark.parametrize("content", [b"my notes", b"a,b\n1,2\n", b'{"step": 0}\n', b"\x80\x02model", b"[]\n", b"0\n{"])
def test_another_file_is_refused_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(rs.OutputError, match=r"line 1 of .*mine\.txt' is no step of a monitor's history"):
        rs.RankMonitor(net(), ["0"], path=path)
    assert path.read_bytes() == content


def test_a_folder_cannot_be_the_file(tmp_path):
    with pytest.raises(rs.OutputError, match=r"cannot write the history .*: Is a directory"):
        rs.RankMonitor(net(), ["0"], path=tmp_path)
    with pytest.raises(rs.OutputError, match=r"cannot read the history .*: Is a directory"):
        History(tmp_path, write=False)


def test_a_place_that_cannot_be_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(rs.OutputError, match="cannot write the history"):
        rs.RankMonitor(net(), ["0"], path=tmp_path / "file" / "h.jsonl")


def test_a_step_that_goes_back_replaces_what_came_after(tmp_path):
    path = tmp_path / "h"
    history = History(path)
    for step, value in ((0, 1.0), (10, 2.0), (20, 3.0), (10, 4.0)):
        history.add(moment(step, value))
    history.close()
    for found in (history, History(path, write=False)):
        assert [(m.step, m.entries[0].value) for m in found.moments] == [(0, 1.0), (10, 4.0)]


def test_two_monitors_do_not_write_one_file(tmp_path):
    path = tmp_path / "h"
    with rs.RankMonitor(net(), ["0"], path=path) as monitor:
        with pytest.raises(rs.OutputError, match="another monitor writes it; close that one first, or give another"):
            rs.RankMonitor(net(), ["0"], path=path)
        History(path, write=False)  # to look is allowed
    rs.RankMonitor(net(), ["0"], path=path).close()
    assert monitor.history.empty


def test_a_run_that_is_killed_loses_no_earlier_step(tmp_path):
    script = textwrap.dedent(
        """
        import os, sys, torch, rankscope as rs
        net = torch.nn.Linear(4, 3)
        model = torch.nn.Sequential(net)
        monitor = rs.RankMonitor(model, ["0"], every=2, path=sys.argv[1])
        for step in range(5):
            model(torch.randn(8, 4)); monitor.step()
        os._exit(9)
        """
    )
    path = tmp_path / "h"
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == 9
    assert steps(path) == [0, 2, 4]
    model = net()
    with rs.RankMonitor(model, ["0"], every=2, path=path) as monitor:  # goes on after the last monitored step
        train(model, monitor, batches(4))
    assert steps(path) == [0, 2, 4, 6, 8]
    assert monitor.history["step"].unique().tolist() == [0, 2, 4, 6, 8]


class Full:
    """``os.write`` on a disk that takes half a line and then is full, until it has room again."""

    def __init__(self, monkeypatch, code=errno.ENOSPC):
        self.full, self.code, self.write = False, code, os.write
        monkeypatch.setattr("rankscope.monitor.history.os.write", self)

    def __call__(self, at, data):
        if not self.full:
            return self.write(at, bytes(data)[:7])  # a short write is none to complain of
        if len(data) > 20:
            return self.write(at, bytes(data)[:20])
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_told_once_and_made_up_for(tmp_path, monkeypatch, code):
    disk, path, model = Full(monkeypatch, code), tmp_path / "h", net()
    with rs.RankMonitor(model, ["0"], every=1, path=path) as monitor:
        train(model, monitor, batches(2))
        disk.full = True
        with pytest.warns(UserWarning, match=f"step 2: the history cannot be written .{os.strerror(code)}") as told:
            train(model, monitor, batches(3))
        assert len(told) == 1
        assert steps(path) == [0, 1]  # whole lines alone
        assert monitor.history["step"].unique().tolist() == [0, 1, 2, 3, 4]
        disk.full = False
        train(model, monitor, batches(1))
        assert steps(path) == [0, 1, 2, 3, 4, 5]
        disk.full = True
        with pytest.warns(UserWarning, match="step 6: the history cannot be written"):  # it is news again
            train(model, monitor, batches(1))


def test_a_file_that_was_removed_is_written_anew(tmp_path):
    path, model = tmp_path / "h", net()
    with rs.RankMonitor(model, ["0"], every=1, path=path) as monitor:
        train(model, monitor, batches(2))
        path.unlink()
        train(model, monitor, batches(1))
    assert steps(path) == [0, 1, 2]


def test_a_checkpoint_brings_what_the_file_lacks(tmp_path):
    model = net()
    with rs.RankMonitor(model, ["0"], every=1, path=tmp_path / "first") as monitor:
        train(model, monitor, batches(4))
        state = monitor.state_dict()
        train(model, monitor, batches(2))
        monitor.load_state_dict(state)
        assert monitor.history["step"].max() == 3
        train(model, monitor, batches(1))
    assert steps(tmp_path / "first") == [0, 1, 2, 3, 4, 5, 4]
    assert [m.step for m in History(tmp_path / "first", write=False).moments] == [0, 1, 2, 3, 4]
    other = History(tmp_path / "other")
    other.add(moment(2, 99.0))
    other.close()
    with rs.RankMonitor(model, ["0"], every=1, path=tmp_path / "other") as monitor:
        monitor.load_state_dict(state)
        train(model, monitor, batches(1))
    found = History(tmp_path / "other", write=False)
    assert [m.step for m in found.moments] == [0, 1, 2, 3, 4]
    assert found.moments[2].entries[0].value == 99.0  # the file's own stays


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": "now"}, {"step": 1, "moments": ["{}"]}, [], None])
def test_what_is_no_state_is_refused(state):
    with rs.RankMonitor(net(), ["0"]) as monitor, pytest.raises(rs.UsageError, match=r"no state of a monitor|step is"):
        monitor.load_state_dict(state)
