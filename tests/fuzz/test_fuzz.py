"""A seeded part of the fuzzing, about half a minute: nothing certified wrong, no error but the package's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing.campaign import finished
from fuzzing.choices import PIECES, Choices
from fuzzing.judge import run
from fuzzing.networks import make
from fuzzing.outcome import Outcome
from fuzzing.report import table

# Chosen so that together they use every ingredient
SEEDS = (
    0,
    3,
    6,
    11,
    25,
    28,
    30,
    31,
    32,
    38,
    39,
    41,
    45,
    54,
    55,
    62,
    67,
    72,
    73,
    74,
    78,
    82,
    83,
    88,
    89,
    96,
    102,
    110,
    111,
    115,
    116,
    126,
)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_certified_wrong(seed: int) -> None:
    found = run(seed)
    assert found.status not in ("wrong", "raw error", "changed", "refused", "incomplete"), found.detail


def test_the_seeds_use_every_ingredient() -> None:
    used: set[str] = set()
    for seed in SEEDS:
        choices = Choices(seed)
        make(choices)
        used |= set(choices.used)
    assert not set(PIECES) - used
    assert {"several outputs", "nested", "module called twice", "module in two places", "argument: mask"} <= used


def test_one_seed_is_one_network() -> None:
    first, second = make(Choices(12)), make(Choices(12))
    assert str(first.model) == str(second.model)
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert a.equal(b)


def test_a_line_that_was_cut_off_is_dropped_and_the_table_counts(tmp_path: Path) -> None:
    whole = [Outcome(1, "measured", ("relu",), "", {"measured": 4}), Outcome(2, "wide", ("relu",), "", {"wide": 1})]
    file = tmp_path / "lines.jsonl"
    text = "".join(o.line() + "\n" for o in whole)
    file.write_text(text + '{"seed": 3, "sta', encoding="utf-8")
    assert finished(file) == {1: whole[0], 2: whole[1]}
    assert file.read_text(encoding="utf-8") == text
    shown = table(whole)
    assert "| tried | 2 | 5 |" in shown
    assert "80.0% of the 5 cells" in shown


def test_a_cut_point_beyond_the_range_of_the_precision_is_named() -> None:
    """It is 1.7e39 at the second call of a shared module. float32 has no such number, as the result says."""
    found = run(404176)
    assert found.status == "range", found.detail
    assert found.cells["measured"] == 14  # seven cut points of two samples
