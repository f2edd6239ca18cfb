"""The sentences about a derivative and what bounds its error, each written once."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, capital, counted, in_memory, joined

__all__ = ["DERIVATIVE_SENTENCES"]


def _way_failed(v: Values) -> str:
    return f"{capital(v['name'])} was not used: {v['reason']}."


def _way_differs(v: Values) -> str:
    return f"{capital(v['name'])} was not used: it differs from {v['other']} by {v['difference']:.0e} of the largest."


def _way_given_up(v: Values) -> str:
    return f"{capital(v['name'])} was not used from a later image on: {v['reason']}."


def _reverse_unchecked(v: Values) -> str:
    return f"Forward mode was not checked against reverse mode, which fails: {v['reason']}."


def _reverse_disagrees(v: Values) -> str:
    return (
        f"Forward and reverse mode disagree by {v['error']:.1%} at {v['where']!r}. {_causes(v)} No rank from there on "
        "is certified."
    )


def _some_disagree(v: Values) -> str:
    return (
        f"On some samples forward and reverse mode disagree, by {v['error']:.1%} at {v['where']!r} on the first. "
        f"{_causes(v)} No rank of these samples from there on is certified."
    )


def _underflow(v: Values) -> str:
    return f"The derivative at {v['where']!r} is so small that {v['dtype']} loses digits of it or all of it.{_wider(v)}"


def _overflow(v: Values) -> str:
    return f"The derivative at {v['where']!r} is too large for {v['dtype']}.{_wider(v)}"


def _no_estimate(v: Values) -> str:
    return (
        f"From {v['where']!r} on, a shorter precision than float64 has hardly a correct digit of the derivative. "
        "How many float64 has cannot be estimated from that, so no rank is certified where this holds."
    )


def _no_float64(v: Values) -> str:
    return f"No rank is certified, because the model does not run in float64: {v['reason']}."


def _other_path(v: Values) -> str:
    return (
        f"On some samples rounding decides which modules the model calls, and another precision than {v['dtype']} "
        "calls different ones. Ranks that could not be compared for this reason are those of the path that was taken, "
        "and are not certified."
    )


def _casts_down(v: Values) -> str:
    if "to" not in v:  # of earlier versions, whose probes had the casts too
        return (
            "The model casts to lower precision inside. Probes in another precision therefore bound the error only "
            "roughly."
        )
    return (
        f"The model casts to {v['to']} inside. Ranks are compared with the derivative of the model without the casts, "
        "so the bounds cover what they round off."
    )


def _custom_backward(v: Values) -> str:
    return (
        f"On some samples the backward of {v['operator']} (torch.autograd.Function) is not the derivative of its "
        f"forward, or this could not be checked. No rank of these samples from {v['where']!r} on is certified."
    )


def _leaves(v: Values) -> str:
    return (
        f"The outputs at {v['where']!r} differ from their linear prediction by {v['gap']:.0%} of the change. A tensor "
        "leaves the computation (detach, .data, numpy, .item()) there or before and counts as a constant, or a custom "
        "operator's derivative is not that of its function. From there on ranks and bounds describe the derivative "
        "that autograd gives, not the function."
    )


def _random(v: Values) -> str:
    return (
        f"The model is random in evaluation mode: the same input gives different outputs at {v['where']!r}. The "
        "results belong to one draw."
    )


def _draws_unused(v: Values) -> str:
    return (
        "The model draws random numbers in evaluation mode. "
        f"{counted(v['calls'], 'call')} with the same input gave the same outputs."
    )


def _function_unchecked(v: Values) -> str:
    at = f" at {v['where']!r}" if v.get("where") else ""
    return f"The derivative was not checked against the function itself{at}: {v['reason']}."


def _raised(v: Values) -> str:
    return f"The model's weights are {joined(v['dtypes'])}. They were measured in float32."


def _on_demand(v: Values) -> str:
    return (
        f"All weights in {v['dtype']} would take {in_memory(v['bytes'])}, more than the memory budget of "
        f"{in_memory(v['budget'])}. The certificate therefore converted each large weight anew for every operator."
    )


def _held(v: Values) -> str:
    return (
        f"The certificate held all weights in {v['dtype']}, {in_memory(v['bytes'])}, which is more than the memory "
        f"budget of {in_memory(v['budget'])}: the model did not run on weights that are converted on demand "
        f"({v['reason']})."
    )


def _no_graph(_: Values) -> str:
    return "Autograd gave no graph of the model. True cuts are therefore unknown, and rises are not marked."


def _coupled(v: Values) -> str:
    return (
        "The samples of a batch are coupled. The Jacobian is that of one sample in a batch of "
        f"{v['context']:,} of which the others are held fixed."
    )


def _masks(_: Values) -> str:
    return (
        "The component is random in training mode. One mask is drawn for each Jacobian, and another for each sample of "
        "the features."
    )


def _leading(v: Values) -> str:
    return (
        f"These are the leading {v['tracked']:,} of {counted(v['width'], 'exponent')}, from a random orthonormal start "
        f"(seed {v['seed']}). Their sum is the growth rate of a random volume of {counted(v['tracked'], 'dimension')}."
    )


def _short_chain(v: Values) -> str:
    return (
        f"Over {counted(v['blocks'], 'block')} the frame still depends on its random start. These are growth rates of "
        "random directions, not the limit of Theorem 4."
    )


def _causes(v: Values) -> str:
    if v.get("casts"):
        return (
            f"The model casts to {v['casts']} inside, and its rounding is the likely cause. Otherwise an operator has "
            "a wrong derivative, or its input is exactly at a kink."
        )
    return "An operator has a wrong derivative, or its input is exactly at a kink."


def _wider(v: Values) -> str:
    return " float64 has the range for it." if v["dtype"] == "float32" else ""


DERIVATIVE_SENTENCES: Sentences = {
    FactKind.WAY_FAILED: _way_failed,
    FactKind.WAY_DIFFERS: _way_differs,
    FactKind.WAY_GIVEN_UP: _way_given_up,
    FactKind.REVERSE_UNCHECKED: _reverse_unchecked,
    FactKind.REVERSE_DISAGREES: _reverse_disagrees,
    FactKind.SOME_DISAGREE: _some_disagree,
    FactKind.UNDERFLOW: _underflow,
    FactKind.OVERFLOW: _overflow,
    FactKind.NO_ESTIMATE: _no_estimate,
    FactKind.NO_FLOAT64: _no_float64,
    FactKind.OTHER_PATH: _other_path,
    FactKind.CASTS_DOWN: _casts_down,
    FactKind.CUSTOM_BACKWARD: _custom_backward,
    FactKind.LEAVES_COMPUTATION: _leaves,
    FactKind.RANDOM_MODEL: _random,
    FactKind.DRAWS_UNUSED: _draws_unused,
    FactKind.FUNCTION_UNCHECKED: _function_unchecked,
    FactKind.WEIGHTS_RAISED: _raised,
    FactKind.WEIGHTS_ON_DEMAND: _on_demand,
    FactKind.WEIGHTS_HELD: _held,
    FactKind.NO_GRAPH: _no_graph,
    FactKind.SAMPLES_COUPLED: _coupled,
    FactKind.RANDOM_MASKS: _masks,
    FactKind.LEADING_EXPONENTS: _leading,
    FactKind.SHORT_CHAIN: _short_chain,
}
