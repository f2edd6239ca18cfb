"""The sentences about the checkpoints of a run, each written once."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, capital, counted, first_few, was

__all__ = ["WATCH_SENTENCES"]


def _left_out(v: Values) -> str:
    return f"Checkpoint {v['file']!r} was left out: {v['reason']}."


def _without_step(v: Values) -> str:
    count = len(v["names"])
    return (
        f"{counted(count, 'checkpoint')} {was(count)} left out, since neither the file nor its name gives a step: "
        f"{first_few(v['names'])}."
    )


def _steps_differ(v: Values) -> str:
    unit, used = v.get("unit", "step"), v.get("used", v["inside"])  # records of earlier versions lack them
    return (
        f"The name of checkpoint {v['file']!r} gives {unit} {v['name']:,}, and the file holds {unit} {v['inside']:,}. "
        f"{capital(unit)} {used:,} was used."
    )


def _same_weights(v: Values) -> str:
    return f"The checkpoints of step {v['step']:,} hold the same weights: {first_few(v['names'])}. They count once."


def _one_step(v: Values) -> str:
    count = counted(len(v["names"]), "checkpoint")
    return (
        f"{count} of step {v['step']:,} hold different weights and were left out, since it is unclear which belongs to "
        f"the run: {first_few(v['names'])}."
    )


def _gone(v: Values) -> str:
    count = len(v["names"])
    return (
        f"{counted(count, 'checkpoint')} {was(count)} measured and {'is' if count == 1 else 'are'} no longer there: "
        f"{first_few(v['names'])}."
    )


WATCH_SENTENCES: Sentences = {
    FactKind.CHECKPOINT_LEFT_OUT: _left_out,
    FactKind.CHECKPOINTS_WITHOUT_STEP: _without_step,
    FactKind.CHECKPOINT_STEPS_DIFFER: _steps_differ,
    FactKind.CHECKPOINTS_ALIKE: _same_weights,
    FactKind.CHECKPOINTS_OF_ONE_STEP: _one_step,
    FactKind.CHECKPOINTS_GONE: _gone,
}
