"""The sentence of every kind of fact, written once. Nothing reads what is written here but people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankscope._base.facts import Fact, FactKind
from rankscope._base.text import one_line
from rankscope.views.density_sentences import DENSITY_SENTENCES
from rankscope.views.feature_sentences import FEATURE_SENTENCES
from rankscope.views.loading_sentences import LOADING_SENTENCES
from rankscope.views.phrases import PHRASES, phrase, shapes_of, span

__all__ = ["note", "sentence"]

_Values = Mapping[str, Any]


def sentence(fact: Fact) -> str:
    """The fact in words, without the word "Caution".

    >>> sentence(Fact(FactKind.NO_GRAPH))
    'Autograd gave no graph of the model. True cuts are therefore unknown, and rises are not marked.'
    """
    if fact.kind in PHRASES:
        return one_line(f"{phrase(fact)}.")
    return one_line(_SENTENCES[fact.kind](fact.values))


def note(fact: Fact) -> str:
    """The fact as a line of its own: a caution says so, once."""
    return f"Caution: {sentence(fact)}" if fact.caution else f"Note: {sentence(fact)}"


def _text(v: _Values) -> str:
    return str(v["text"])


def _way_failed(v: _Values) -> str:
    return f"{_capital(v['name'])} was not used: {v['reason']}."


def _way_differs(v: _Values) -> str:
    return f"{_capital(v['name'])} was not used: it differs from {v['other']} by {v['difference']:.0e} of the largest."


def _way_given_up(v: _Values) -> str:
    return f"{_capital(v['name'])} was not used from a later image on: {v['reason']}."


def _capital(text: str) -> str:
    return text if "(" in text else text[:1].upper() + text[1:]  # code keeps its letters


def _differentiated(v: _Values) -> str:
    own = f" Each sample has its own {_and(v['per_sample'])}." if v["per_sample"] else ""
    shared = f" All samples share {_and(v['shared'])}." if v["shared"] else ""
    return f"The Jacobian is that with respect to {v['name']}.{own}{shared}"


def _counted(v: _Values) -> str:
    own = f" Each sample has its own {_and(v['per_sample'])}." if v["per_sample"] else ""
    shared = f" All samples share {_and(v['shared'])}." if v["shared"] else ""
    return f"Each row of {v['name']} is a sample.{own}{shared}"


def _input_left_out(v: _Values) -> str:
    return f"The model is called without {v['name']}: {v['reason']}."


def _several_sizes(v: _Values) -> str:
    if len(v["shapes"]) > 1:
        what = f"The samples have shapes {shapes_of(v['shapes'])}. "
    else:
        what = "The cut points have other numbers of outputs for other samples. "
    own = (
        f"Each has its own K ({span(v['least'], v['most'])}) and its own threshold. " if v["least"] != v["most"] else ""
    )
    return f"{what}{own}No comparison with random layers is made, since that needs one size."


def _read_back(v: _Values) -> str:
    return f"The results of {v['kept']:,} of {_count(v['total'], v['unit'])} were read back from an earlier run."


def _kept_damaged(v: _Values) -> str:
    return f"The kept results of {_count(v['count'], v['unit'])} were damaged and were measured again."


def _kept_other(v: _Values) -> str:
    return (
        f"The kept results of {_count(v['count'], v['unit'])} belong to another model, input or setting and were "
        "measured again."
    )


def _kept_differs(v: _Values) -> str:
    return (
        f"The {v['unit']}s of an earlier run differ from a new measurement at {v['where']}. All {v['unit']}s were "
        "therefore measured again."
    )


def _kept_unchecked(v: _Values) -> str:
    return f"What was read back was not compared with a new measurement: {v['reason']}."


def _kept_incomparable(v: _Values) -> str:
    return (
        f"The {v['owner']} holds objects that cannot be compared between two runs ({', '.join(v['types'])}). Nothing "
        "that an earlier run kept was reused."
    )


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"


def _reverse_unchecked(v: _Values) -> str:
    return f"Forward mode was not checked against reverse mode, which fails: {v['reason']}."


def _reverse_disagrees(v: _Values) -> str:
    return (
        f"Forward and reverse mode disagree by {v['error']:.1%} at {v['where']!r}. {_causes(v)} No rank from there on "
        "is certified."
    )


def _some_disagree(v: _Values) -> str:
    return (
        f"On some samples forward and reverse mode disagree, by {v['error']:.1%} at {v['where']!r} on the first. "
        f"{_causes(v)} No rank of these samples from there on is certified."
    )


def _causes(v: _Values) -> str:
    if v.get("casts"):
        return (
            f"The model casts to {v['casts']} inside, and its rounding is the likely cause. Otherwise an operator has "
            "a wrong derivative, or its input is exactly at a kink."
        )
    return "An operator has a wrong derivative, or its input is exactly at a kink."


def _underflow(v: _Values) -> str:
    return f"The derivative at {v['where']!r} is so small that {v['dtype']} loses digits of it or all of it.{_wider(v)}"


def _overflow(v: _Values) -> str:
    return f"The derivative at {v['where']!r} is too large for {v['dtype']}.{_wider(v)}"


def _wider(v: _Values) -> str:
    return " float64 has the range for it." if v["dtype"] == "float32" else ""


def _no_float64(v: _Values) -> str:
    return f"No rank is certified, because the model does not run in float64: {v['reason']}."


def _casts_down(v: _Values) -> str:
    if "to" not in v:  # of earlier versions, whose probes had the casts too
        return (
            "The model casts to lower precision inside. Probes in another precision therefore bound the error only "
            "roughly."
        )
    return (
        f"The model casts to {v['to']} inside. Ranks are compared with the derivative of the model without the casts, "
        "so the bounds cover what they round off."
    )


def _leaves(v: _Values) -> str:
    return (
        f"The outputs at {v['where']!r} differ from their linear prediction by {v['gap']:.0%} of the change. A tensor "
        "leaves the computation (detach, .data, numpy, .item()) there or before and counts as a constant, or a custom "
        "operator's derivative is not that of its function. Do not trust layers from there on."
    )


def _training_mode(_: _Values) -> str:
    return "The model was in training mode. It was measured in evaluation mode."


def _keeps_state(v: _Values) -> str:
    return (
        f"The model keeps state between calls ({_and(v['where'])}). Every call was measured from the state in which "
        "the model was given."
    )


def _random(v: _Values) -> str:
    return (
        f"The model is random in evaluation mode: the same input gives other outputs at {v['where']!r}. The "
        "derivative belongs to one draw."
    )


def _function_unchecked(v: _Values) -> str:
    at = f" at {v['where']!r}" if v.get("where") else ""
    return f"The derivative was not checked against the function itself{at}: {v['reason']}."


def _not_called(v: _Values) -> str:
    each = [f"{name!r} ({count:,})" for name, count in zip(v["names"], v["counts"], strict=True)]
    shown = ", ".join(each[:_NAMED]) + (f" and {len(each) - _NAMED} more" if len(each) > _NAMED else "")
    return (
        f"The model's path depends on its input. Of {v['total']:,} samples some do not call {shown}: there the numbers "
        "are those of the samples that do."
    )


def _raised(v: _Values) -> str:
    return f"The model's weights are {_and(v['dtypes'])}. They were measured in float32."


def _no_graph(_: _Values) -> str:
    return "Autograd gave no graph of the model. True cuts are therefore unknown, and rises are not marked."


_NAMED = 3


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _coupled(v: _Values) -> str:
    return (
        "The samples of a batch are coupled. The Jacobian is that of one sample in a batch of "
        f"{v['context']:,} of which the others are held fixed."
    )


def _masks(_: _Values) -> str:
    return (
        "The component is random in training mode. One mask is drawn for a Jacobian, another for each sample of the "
        "features."
    )


def _several_tensors(v: _Values) -> str:
    names, tensors = v["names"], v["tensors"]
    verb, each = ("returns", "") if len(names) == 1 else ("return", " each")
    return (
        f"{_listed(names)} {verb} {len(tensors)} tensors{each}, measured together: {', '.join(tensors)}. Each is "
        f"a cut point too, such as '{names[0]}.{tensors[0]}'."
    )


def _left_out(v: _Values) -> str:
    verb = "returns" if len(v["names"]) == 1 else "return"
    return f"{_listed(v['names'])} also {verb} {', '.join(v['what'])}, not measured as part of the cut point."


def _complex_rows(v: _Values) -> str:
    what = "a complex tensor" if len(v["names"]) == 1 else "complex tensors"
    verb = "returns" if len(v["names"]) == 1 else "return"
    return f"{_listed(v['names'])} {verb} {what}. Real and imaginary parts are separate rows."


def _leading(v: _Values) -> str:
    return (
        f"These are the leading {v['tracked']:,} of {v['width']:,} exponents, from a random orthonormal start (seed "
        f"{v['seed']}). Their sum is the growth rate of a random volume of {v['tracked']:,} dimensions."
    )


def _short_chain(v: _Values) -> str:
    return (
        f"Over {v['blocks']:,} blocks the frame still depends on its random start. These are growth rates of random "
        "directions, not the limit of Theorem 4."
    )


def _and(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


_SENTENCES: dict[FactKind, Callable[[_Values], str]] = {
    FactKind.NOTE: _text,
    FactKind.EARLIER_NOTE: _text,
    FactKind.WAY_FAILED: _way_failed,
    FactKind.WAY_DIFFERS: _way_differs,
    FactKind.WAY_GIVEN_UP: _way_given_up,
    FactKind.DIFFERENTIATED: _differentiated,
    FactKind.COUNTED: _counted,
    FactKind.INPUT_LEFT_OUT: _input_left_out,
    FactKind.SEVERAL_SIZES: _several_sizes,
    FactKind.READ_BACK: _read_back,
    FactKind.KEPT_DAMAGED: _kept_damaged,
    FactKind.KEPT_OTHER: _kept_other,
    FactKind.KEPT_DIFFERS: _kept_differs,
    FactKind.KEPT_UNCHECKED: _kept_unchecked,
    FactKind.KEPT_INCOMPARABLE: _kept_incomparable,
    FactKind.REVERSE_UNCHECKED: _reverse_unchecked,
    FactKind.REVERSE_DISAGREES: _reverse_disagrees,
    FactKind.SOME_DISAGREE: _some_disagree,
    FactKind.UNDERFLOW: _underflow,
    FactKind.OVERFLOW: _overflow,
    FactKind.NO_FLOAT64: _no_float64,
    FactKind.CASTS_DOWN: _casts_down,
    FactKind.LEAVES_COMPUTATION: _leaves,
    FactKind.TRAINING_MODE: _training_mode,
    FactKind.KEEPS_STATE: _keeps_state,
    FactKind.RANDOM_MODEL: _random,
    FactKind.FUNCTION_UNCHECKED: _function_unchecked,
    FactKind.WEIGHTS_RAISED: _raised,
    FactKind.NO_GRAPH: _no_graph,
    FactKind.SAMPLES_COUPLED: _coupled,
    FactKind.RANDOM_MASKS: _masks,
    FactKind.SEVERAL_TENSORS: _several_tensors,
    FactKind.LEFT_OUT: _left_out,
    FactKind.COMPLEX_ROWS: _complex_rows,
    FactKind.NOT_CALLED: _not_called,
    FactKind.LEADING_EXPONENTS: _leading,
    FactKind.SHORT_CHAIN: _short_chain,
    **DENSITY_SENTENCES,
    **FEATURE_SENTENCES,
    **LOADING_SENTENCES,
}
