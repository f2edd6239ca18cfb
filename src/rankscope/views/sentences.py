"""The sentence of every kind of fact: one table, written once. Nothing reads what is written here but people.

The rooms' own tables stand in files beside this one; each kind of fact is in exactly one of them.
"""

from __future__ import annotations

from rankscope._base.facts import Fact, FactKind
from rankscope._base.text import one_line
from rankscope.views.call_sentences import CALL_SENTENCES
from rankscope.views.comparison_sentences import COMPARISON_SENTENCES
from rankscope.views.density_sentences import DENSITY_SENTENCES
from rankscope.views.derivative_sentences import DERIVATIVE_SENTENCES
from rankscope.views.feature_sentences import FEATURE_SENTENCES
from rankscope.views.kept_sentences import KEPT_SENTENCES
from rankscope.views.loading_sentences import LOADING_SENTENCES
from rankscope.views.phrases import Sentences, Values, capital
from rankscope.views.reproduce_sentences import REPRODUCE_SENTENCES
from rankscope.views.watch_sentences import WATCH_SENTENCES
from rankscope.views.way_phrases import WAY_PHRASES

__all__ = ["ROOMS", "note", "phrase", "sentence"]


def _text(v: Values) -> str:
    return str(v["text"])


_OWN: Sentences = {FactKind.NOTE: _text, FactKind.EARLIER_NOTE: _text}

ROOMS: tuple[Sentences, ...] = (
    _OWN,
    WAY_PHRASES,
    CALL_SENTENCES,
    COMPARISON_SENTENCES,
    KEPT_SENTENCES,
    DERIVATIVE_SENTENCES,
    DENSITY_SENTENCES,
    FEATURE_SENTENCES,
    LOADING_SENTENCES,
    REPRODUCE_SENTENCES,
    WATCH_SENTENCES,
)
_TABLE: Sentences = {kind: words for room in ROOMS for kind, words in room.items()}


def sentence(fact: Fact) -> str:
    """The fact in words, without the word "Caution".

    >>> sentence(Fact(FactKind.NO_GRAPH))
    'Autograd gave no graph of the model. True cuts are therefore unknown, and rises are not marked.'
    """
    said = _TABLE[fact.kind](fact.values)
    return one_line(f"{capital(said)}." if fact.kind in WAY_PHRASES else said)


def phrase(fact: Fact) -> str:
    """How tangents were pushed, or what certifies a rank, as words inside a sentence; a note as it is.

    >>> phrase(Fact(FactKind.LINEARISED, {"name": "vmap(jvp)", "difference": 5e-7}))
    'linearised network; agrees with vmap(jvp) to 5e-07'
    """
    return _TABLE[fact.kind](fact.values)


def note(fact: Fact) -> str:
    """The fact as a line of its own: a caution says so, once."""
    return f"Caution: {sentence(fact)}" if fact.caution else f"Note: {sentence(fact)}"
