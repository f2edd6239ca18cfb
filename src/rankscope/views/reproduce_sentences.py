"""The sentences about the data and the networks of a reproduction, each written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, joined, own_verb, shape_of, was

__all__ = ["REPRODUCE_SENTENCES"]

_LOST = {
    "RGBA": "transparency dropped",
    "LA": "transparency dropped",
    "PA": "transparency dropped",
    "I;16": "16 bits scaled to 8",
    "I;16B": "16 bits scaled to 8",
}
_SHOWN = 3


def _small(v: Values) -> str:
    words: dict[str, Callable[[Any], str]] = {
        "width": lambda n: f"width {n:,}",
        "depth": lambda n: counted(n, "layer"),
        "input_shape": lambda shape: f"inputs of {shape_of(shape)}",
        "samples": lambda n: counted(n, "sample"),
        "images": lambda n: counted(n, "image"),
        "patch": lambda n: f"a patch of {n}×{n}",
    }
    used = joined([words[name](size) for name, size in v["sizes"]])
    return f"The scale is small: {used or 'fewer resamples for the intervals'}, not the paper's."


def _rank_kept(v: Values) -> str:
    kept = v["names"]
    if not kept:
        return f"None of {counted(v['total'], 'component')} kept the Jacobian rank, as in the paper."
    return (
        f"{len(kept):,} of {counted(v['total'], 'component')} kept the Jacobian rank ({', '.join(kept)}). In the paper "
        "none does."
    )


def _sample_limit(v: Values) -> str:
    return f"{counted(v['samples'], 'sample')} cannot show more than {v['samples'] - 1:,} feature dimensions."


def _not_imagenet(v: Values) -> str:
    folders = f"{counted(v['classes'], 'class folder')} {own_verb(v['classes'], 'be')}"
    return f"The {folders} not ImageNet's 1,000. The paper's numbers are of other data."


def _other_count(v: Values) -> str:
    there = f"{own_verb(v['images'], 'be')} {counted(v['images'], 'image')}"
    return f"There {there}, and ImageNet's validation set has {v['usual']:,}."


def _unreadable(v: Values) -> str:
    files = v["files"]
    shown = "; ".join(f"{file} ({reason})" for file, reason in files[:_SHOWN])
    more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
    return f"{counted(len(files), 'image')} could not be read and {was(len(files))} left out: {shown}{more}."


def _converted(v: Values) -> str:
    total = sum(count for _, count, _ in v["modes"])
    parts = [
        f"{count:,} of mode {mode}{f', {_LOST[mode]}' if mode in _LOST else ''} ({'first: ' * (count > 1)}{first})"
        for mode, count, first in v["modes"]
    ]
    return f"{counted(total, 'image')} {was(total)} converted to {v['to']}: {', '.join(parts)}."


def _too_few(v: Values) -> str:
    return (
        f"{counted(v['images'], 'image')} {own_verb(v['images'], 'be')} too few to distinguish an accuracy of "
        f"{v['accuracy']:.2%} from guessing among {counted(v['classes'], 'class', 'classes')} ({1 / v['classes']:.2%})."
    )


def _like_guessing(v: Values) -> str:
    return (
        f"The accuracy of {v['accuracy']:.2%} on {counted(v['images'], 'image')} is not clearly above guessing among "
        f"{counted(v['classes'], 'class', 'classes')} ({1 / v['classes']:.2%}; four standard errors above it is "
        f"{v['above']:.2%}). Check that the class folders are in the order of the head and the weights its own."
    )


def _all_zero(v: Values) -> str:
    shown = (
        f"the largest η that keeps 90% of the accuracy, {v['shown']:.2g}"
        if v["kept"]
        else f"the smallest η tried, {v['shown']:.2g}, since none keeps 90% of the accuracy"
    )
    return (
        f"At η = {v['eta']:g} every solution is zero under {v['as_printed']}, where η_max is at most "
        f"{v['largest']:.3g}: the penalty outweighs all that the logits share. The lower panel shows {shown}."
    )


def _dependent(v: Values) -> str:
    features = v["features"] or 0
    made = f"{counted(features, 'feature')} {own_verb(features, 'make')} {counted(v['classes'], 'logit')}"
    if "dependent" not in v:  # earlier files have the counts alone
        return f"{made}."
    exact = f"{v['dependent']:,} of {counted(v['classes'], 'class', 'classes')}"
    of_others = "is an exact linear combination" if v["dependent"] == 1 else "are exact linear combinations"
    return f"{exact} {of_others} of the others. {made}."


def _left_out(v: Values) -> str:
    return f"It was left out: {v['reason']}."


def _not_measured(v: Values) -> str:
    return f"{v['where']!r} was not measured: {v['reason']}."


def _own_weights(v: Values) -> str:
    return f"{v['folder']!r} has no {v['file']}.safetensors (or .pth). The weights are the factory's own."


REPRODUCE_SENTENCES: Sentences = {
    FactKind.SMALL_SCALE: _small,
    FactKind.RANK_KEPT: _rank_kept,
    FactKind.SAMPLE_LIMIT: _sample_limit,
    FactKind.NOT_IMAGENET: _not_imagenet,
    FactKind.OTHER_COUNT: _other_count,
    FactKind.IMAGES_UNREADABLE: _unreadable,
    FactKind.IMAGES_CONVERTED: _converted,
    FactKind.TOO_FEW_TO_JUDGE: _too_few,
    FactKind.LIKE_GUESSING: _like_guessing,
    FactKind.ALL_ZERO: _all_zero,
    FactKind.LOGITS_DEPENDENT: _dependent,
    FactKind.NETWORK_LEFT_OUT: _left_out,
    FactKind.LAYER_NOT_MEASURED: _not_measured,
    FactKind.FACTORY_WEIGHTS: _own_weights,
}
