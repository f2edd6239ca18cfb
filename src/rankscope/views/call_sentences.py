"""The sentences about what a model was called with and what its cut points returned, each written once."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, first_few, joined, noun, own_verb, shapes_of, span, was

__all__ = ["CALL_SENTENCES"]


def _differentiated(v: Values) -> str:
    return f"The Jacobian is taken with respect to {v['name']}.{_beside(v)}"


def _counted(v: Values) -> str:
    return f"Each row of {v['name']} is a sample.{_beside(v)}"


def _beside(v: Values) -> str:
    own = f" Each sample has its own {joined(v['per_sample'])}." if v["per_sample"] else ""
    whose = "All samples of a batch" if v.get("by_batch") else "All samples"
    shared = f" {whose} share {joined(v['shared'])}." if v["shared"] else ""
    return own + shared


def _noised(v: Values) -> str:
    others = [*v["per_sample"], *v["shared"]]
    beside = f" All copies share {joined(others)}." if others else ""
    return f"Noise is added to {v['name']}.{beside}"


def _input_left_out(v: Values) -> str:
    return f"The model is called without {v['name']}: {v['reason']}."


def _several_sizes(v: Values) -> str:
    if len(v["shapes"]) > 1:
        what = f"The samples have shapes {shapes_of(v['shapes'])}. "
    else:
        what = "The cut points have different numbers of outputs for different samples. "
    own = (
        f"Each has its own K ({span(v['least'], v['most'])}) and its own threshold. " if v["least"] != v["most"] else ""
    )
    return f"{what}{own}No comparison with random layers is made, since that needs one size."


def _unwrapped(v: Values) -> str:
    return f"The network inside {joined(v['wrappers'])} was measured, and layers have their names there."


def _passed_through(v: Values) -> str:
    return f"The modules inside {joined(v['wrappers'])} ({_quoted(v['inside'])}) were called directly."


def _training_mode(_: Values) -> str:
    return "The model was in training mode. It was measured in evaluation mode."


def _keeps_state(v: Values) -> str:
    return (
        f"The model keeps state between calls ({joined(v['where'])}). Every call was measured from the state in which "
        "the model was given."
    )


def _several_tensors(v: Values) -> str:
    names, tensors = v["names"], v["tensors"]
    each = "" if len(names) == 1 else " each"
    what = f"{own_verb(len(names), 'return')} {counted(len(tensors), 'tensor')}{each}"
    return (
        f"{_quoted(names)} {what}, measured together: {', '.join(tensors)}. Each is a cut point too, such as "
        f"'{names[0]}.{tensors[0]}'."
    )


def _left_out(v: Values) -> str:
    verb = own_verb(len(v["names"]), "return")
    return f"{_quoted(v['names'])} also {verb} {', '.join(v['what'])}, not measured as part of the cut point."


def _not_called(v: Values) -> str:
    each = [f"{name!r} ({count:,})" for name, count in zip(v["names"], v["counts"], strict=True)]
    if v.get("left_out"):
        return (
            f"The model's path depends on its input. Of {counted(v['total'], 'sample')} some do not call "
            f"{first_few(each)}, {noun(len(each), 'which was', 'which were')} left out, since every layer needs a row "
            "of each sample."
        )
    return (
        f"The model's path depends on its input. Of {counted(v['total'], 'sample')} some do not call "
        f"{first_few(each)}. The numbers there are those of the samples that do."
    )


def _called_alone(v: Values) -> str:
    if v.get("place"):
        return (
            "This model's output for a sample depends on the sample's place in a pass, or on the number of samples in "
            "it, as with a position encoding that treats samples as steps. Each sample was therefore called alone."
        )
    if v.get("undecided"):
        return (
            "It is not known whether samples that share a pass of this model change each other in "
            f"{v['undecided']}. Each sample was therefore called alone."
        )
    if v.get("coupled"):
        return "Samples that share a pass of this model change each other. Each sample was therefore called alone."
    return "The model's computation depends on the values of a sample. Each sample was therefore called alone."


def _no_rows(v: Values) -> str:
    count = len(v["names"])
    return (
        f"{_quoted(v['names'])} {was(count)} left out, since {noun(count, 'it is', 'they are')} called with no row of "
        "any sample."
    )


def _called_once(v: Values) -> str:
    verb = was(len(v["names"]))
    return f"{_quoted(v['names'])} {verb} left out, since only one sample calls it and its features have no spread."


def _chosen_late(v: Values) -> str:
    verb, it = was(len(v["names"])), noun(len(v["names"]), "it", "them")
    return (
        f"{_quoted(v['names'])} {verb} left out. Only some samples have a cut point there; others call {it} without "
        f"being measured there. Name {it} among the cut points to measure every sample."
    )


def _complex_rows(v: Values) -> str:
    count = len(v["names"])
    what = f"{own_verb(count, 'return')} {noun(count, 'a complex tensor', 'complex tensors')}"
    return f"{_quoted(v['names'])} {what}. Real and imaginary parts are separate rows."


def _one_worker(v: Values) -> str:
    return (
        f"The loader has {counted(v['workers'], 'worker')}, each of which would read the whole data set, so one "
        "of them read it. If the data set gives each worker a part of its own, only that part was read: give "
        "num_workers=0 or a map-style data set."
    )


def _quoted(names: Sequence[str]) -> str:
    return first_few([repr(name) for name in names])


CALL_SENTENCES: Sentences = {
    FactKind.DIFFERENTIATED: _differentiated,
    FactKind.COUNTED: _counted,
    FactKind.NOISED: _noised,
    FactKind.INPUT_LEFT_OUT: _input_left_out,
    FactKind.ONE_WORKER: _one_worker,
    FactKind.SEVERAL_SIZES: _several_sizes,
    FactKind.UNWRAPPED: _unwrapped,
    FactKind.PASSED_THROUGH: _passed_through,
    FactKind.TRAINING_MODE: _training_mode,
    FactKind.KEEPS_STATE: _keeps_state,
    FactKind.SEVERAL_TENSORS: _several_tensors,
    FactKind.LEFT_OUT: _left_out,
    FactKind.CALLED_ALONE: _called_alone,
    FactKind.NO_ROWS: _no_rows,
    FactKind.CALLED_ONCE: _called_once,
    FactKind.CHOSEN_LATE: _chosen_late,
    FactKind.NOT_CALLED: _not_called,
    FactKind.COMPLEX_ROWS: _complex_rows,
}
