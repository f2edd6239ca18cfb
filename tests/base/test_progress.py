"""Progress in its three homes: a terminal, a notebook, a log."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope._base.notebook import in_notebook
from rankscope._base.progress import Lines, Reporter, progress_for, reporting, watched


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shown:
    def __init__(self) -> None:
        self.pages: list[str] = []

    def update(self, html: str) -> None:
        self.pages.append(html)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What IPython is to a process that a kernel runs: a shell with a kernel, and displays that change in place."""
    shown = Shown()
    display: Any = types.SimpleNamespace(HTML=str, display=lambda first, display_id: shown if display_id else None)
    module: Any = types.ModuleType("IPython")
    module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines("demo", clock)
    for second in range(10 * 3600):
        clock.now = float(second)
        lines(second, 36000, "layer")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "demo: 10 of 36,000, layer (10 s)"
    assert said[1] == "demo: 20 of 36,000, layer (20 s)"
    assert 60 < len(said) < 200  # a night's log stays readable
    lines.say("written")
    assert capsys.readouterr().err == "written\n"


def test_a_log_does_not_repeat_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines("demo", clock)
    lines.say("Expected: 28 min.")
    clock.now = 20.0
    lines(0, 1, "Expected: 28 min.")
    assert capsys.readouterr().err.splitlines() == ["Expected: 28 min.", "demo: 0 of 1 (20 s)"]


def test_work_of_seconds_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = Lines("features", clock)
    for second in range(10):
        clock.now = float(second)
        lines(0, None, "loading")
    lines.close()
    assert capsys.readouterr().err == ""


def test_a_notebook_gets_a_bar_below_the_cell(notebook: Shown) -> None:
    assert in_notebook()
    report = progress_for(None, "collect")
    report(0, None, "a <b>")
    report(4, 4, "done")
    report.close()
    assert notebook.pages[0] == "<progress></progress> collect: a &lt;b&gt;"
    assert notebook.pages[1:] == ['<progress value="4" max="4"></progress> collect: 4 of 4, done', ""]


def test_a_notebook_is_not_flooded(notebook: Shown) -> None:
    report = progress_for(True, "collect")
    for k in range(10_000):
        report(k, 10_001, "")
    assert len(notebook.pages) < 100


def test_ipython_on_a_terminal_is_no_notebook(notebook: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace(), raising=False)
    assert not in_notebook()
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None, raising=False)
    assert not in_notebook()


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTerminal:
        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stderr", NoTerminal())
    assert isinstance(progress_for(True, "x"), Lines)
    assert type(progress_for(None, "x")) is type(progress_for(False, "x")) is Reporter
    monkeypatch.setattr(NoTerminal, "isatty", lambda self: True)
    monkeypatch.setattr(NoTerminal, "write", lambda self, text: len(text), raising=False)
    monkeypatch.setattr(NoTerminal, "flush", lambda self: None, raising=False)
    bar = progress_for(None, "x")
    bar(1, 2, "half")
    bar.close()
    assert type(bar).__name__ == "_Bar"
    assert progress_for(bar, "y") is bar


def test_standard_output_in_a_file_is_no_part_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """``rankscope demo > log`` on a terminal: what is printed while the bar moves goes to the log."""
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    log = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", log)
    bar = progress_for(None, "demo")
    print("a finding", flush=True)
    bar.close()
    assert log.getvalue() == "a finding\n"


def test_work_within_work_shows_no_bar_of_its_own(notebook: Shown) -> None:
    outer = progress_for(None, "outer")
    assert type(progress_for(None, "inner")) is Reporter
    outer.close()
    outer.close()
    again = progress_for(None, "next")
    assert type(again) is type(outer)
    again.close()


def test_a_reporter_of_the_caller_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    class Counted(Reporter):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    mine = Counted()
    with reporting(mine, "x") as report:
        assert report is mine
    assert mine.closed == 0


def test_more_than_was_announced_has_no_total() -> None:
    said: list[Any] = []
    assert list(watched("abc", len, lambda: 2, Reporter(lambda *what: said.append(what)), "t")) == ["a", "b", "c"]
    assert said == [(1, 2, "t"), (2, 2, "t"), (3, None, "t")]


def _logits() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(60) % 3
    return torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(3)[labels], labels


X = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
NET = nn.Sequential(nn.Linear(4, 3)).eval()
LONG: dict[str, Callable[[Any], Any]] = {
    "features of a model": lambda p: rs.feature_rank(NET, X, cut_points=["0"], batch_size=4, progress=p),
    "features": lambda p: rs.feature_rank({"a": X, "b": X}, progress=p),
    "local features": lambda p: rs.local_feature_rank(NET, X[:1], cut_points=["0"], samples=9, progress=p),
    "similarity": lambda p: rs.linear_cka(NET, data=X, cut_points=["0"], progress=p),
    "classification": lambda p: rs.classification_dimension(*_logits(), (torch.eye(3), None), progress=p),
    "any head": lambda p: rs.classification_dimension(*_logits(), lambda z: z, progress=p),
    "deficit": lambda p: rs.independence_deficit(*_logits(), permutations=2, path_points=3, progress=p),
    "chain": lambda p: rs.theory.deep_chain(width=4, depth=3, samples=5, progress=p),
    "residual": lambda p: rs.theory.residual_exponents(4, 1.0, samples=5, progress=p),
    "exponents": lambda p: rs.theory.lyapunov_exponents([torch.eye(3)] * 5, progress=p),
    "product": lambda p: rs.theory.chain_singular_values([torch.eye(3)] * 5, progress=p),
    "component": lambda p: rs.probe("relu", input_shape=(4, 2, 2), samples=9, jacobian_points=2, progress=p),
    "images": lambda p: rs.loading.load_images("photos", preprocessing=SMALL, progress=p),
}
SMALL = rs.loading.plain_preprocessing((3, 8, 8))


@pytest.mark.parametrize("name", LONG)
def test_long_work_reports_to_the_end(name: str) -> None:
    said: list[tuple[int, int | None, str]] = []
    found = LONG[name](lambda *what: said.append(what))
    assert said[-1][0] == said[-1][1]
    assert all(text for _, _, text in said)
    assert said == [what for what in said if what[1] is None or what[0] <= what[1]]
    assert type(found) is type(LONG[name](False))
