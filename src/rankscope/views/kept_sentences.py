"""The sentences about what an earlier run kept, each written once."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, first_few

__all__ = ["KEPT_SENTENCES"]


def _read_back(v: Values) -> str:
    return f"The results of {v['kept']:,} of {counted(v['total'], v['unit'])} were read back from an earlier run."


def _cuts_read_back(v: Values) -> str:
    return f"The results of {counted(v['kept'], 'cut point')} were read back from an earlier run that was interrupted."


def _kept_damaged(v: Values) -> str:
    return f"The kept results of {counted(v['count'], v['unit'])} were damaged and were measured again."


def _kept_missing(v: Values) -> str:
    what = f"all {v['unit']}s after the first {v['after']:,}" if v["after"] else f"all {v['unit']}s"
    return f"The folder no longer held {first_few(v['names'])}. Therefore {what} were measured again."


def _kept_other(v: Values) -> str:
    return (
        f"The kept results of {counted(v['count'], v['unit'])} belong to another model, input or setting and were "
        "measured again."
    )


def _kept_differs(v: Values) -> str:
    return (
        f"The {v['unit']}s of an earlier run differ from a new measurement at {v['where']}. All {v['unit']}s were "
        "therefore measured again."
    )


def _kept_unchecked(v: Values) -> str:
    return f"What was read back was not compared with a new measurement: {v['reason']}."


def _kept_incomparable(v: Values) -> str:
    return (
        f"The {v['owner']} holds objects that cannot be compared between two runs ({', '.join(v['types'])}). Nothing "
        "that an earlier run kept was reused."
    )


KEPT_SENTENCES: Sentences = {
    FactKind.READ_BACK: _read_back,
    FactKind.CUTS_READ_BACK: _cuts_read_back,
    FactKind.KEPT_DAMAGED: _kept_damaged,
    FactKind.KEPT_MISSING: _kept_missing,
    FactKind.KEPT_OTHER: _kept_other,
    FactKind.KEPT_DIFFERS: _kept_differs,
    FactKind.KEPT_UNCHECKED: _kept_unchecked,
    FactKind.KEPT_INCOMPARABLE: _kept_incomparable,
}
