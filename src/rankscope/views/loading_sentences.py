"""The sentences about how a model and its data were loaded, each written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankscope._base.facts import FactKind

__all__ = ["LOADING_SENTENCES"]

_Values = Mapping[str, Any]
_NAMED = 3


def _random_weights(v: _Values) -> str:
    return (
        "The weights are random: nothing here was learned. This shows what the architecture and its initialisation "
        f"(seed {v['seed']}) do, not what a trained network of this kind does."
    )


def _norms_opened(v: _Values) -> str:
    start = "starts" if v["count"] == 1 else "start"
    return (
        f"{_many(v['count'], 'norm scale')} that {start} at zero {_was(v['count'])} set to 1, so "
        "that the residual branches take part."
    )


def _weights_drawn(v: _Values) -> str:
    kind = "linear or convolution weight"
    start = "starts" if v["count"] == 1 else "start"
    return f"{_many(v['count'], kind)} that {start} at zero {_was(v['count'])} drawn at random."


def _closed(v: _Values) -> str:
    start = "starts" if v["count"] == 1 else "start"
    return (
        f"{_many(v['count'], 'gain or layer scale', 'gains or layer scales')} {start} at zero and {_was(v['count'])} "
        "left so. Their branches add nothing."
    )


def _nearly_closed(v: _Values) -> str:
    start = "starts" if v["count"] == 1 else "start"
    return (
        f"{_many(v['count'], 'layer scale')} {start} at {v['largest']:.0e} or below. Untrained, the branches behind "
        "them change almost nothing, and the rank is nearly that of what comes before."
    )


def _factory(v: _Values) -> str:
    return (
        f"The model was built by {v['factory']}() under seed {v['seed']}. The file decides whether its weights are "
        "random."
    )


def _taken_as(v: _Values) -> str:
    return f"{v['given']!r} was taken as {v['taken']}."


def _lazy(v: _Values) -> str:
    return f"Lazy layers were sized by one forward pass on zeros of shape {tuple(v['shape'])}."


def _fresh(v: _Values) -> str:
    verb = "is" if len(v["names"]) == 1 else "are"
    return f"{_many(len(v['names']), 'parameter')} {verb} not in the weights and {verb} random: {_few(v['names'])}."


def _also_fits(v: _Values) -> str:
    key = v["names"][0]
    return (
        f"{v['file']} also holds {_few([repr(n) for n in v['names']])}, which would fit as well. "
        f"The key {key!r} of the weights chooses it."
    )


def _left_over(v: _Values) -> str:
    return (
        f"{v['file']} also holds {_many(len(v['names']), 'tensor')} that the model does not have: {_few(v['names'])}."
    )


def _translated(v: _Values) -> str:
    return f"The names of {v['file']} were translated by {v['by']}."


def _resampled(v: _Values) -> str:
    names = v["names"]
    return (
        f"{_many(len(names), 'tensor')} of {v['file']} {_was(len(names))} resampled to the model's size: {_few(names)}."
    )


def _rounded(v: _Values) -> str:
    return f"Weights of the file in {v['given']} were rounded to the model's {v['own']}."


def _batchnorm(v: _Values) -> str:
    few = " The images are too few for it." if v["source"] == "noise" else ""
    noise = " of noise" if v["source"] == "noise" else ""
    unused = f" {_many(v['unused'], 'other layer')} never ran." if v["unused"] else ""
    return (
        f"The running statistics of {_many(v['layers'], 'BatchNorm layer')} were set from "
        f"{_many(v['images'], 'image')}{noise}.{few}{unused}"
    )


def _example(v: _Values) -> str:
    shape = "×".join(map(str, v["shape"]))
    return f"The model names no image size. It was measured on one random example input of shape {shape}."


def _images(v: _Values) -> str:
    return f"Images: {v['source']}, {v['preprocessing']}."


def _folder_order(v: _Values) -> str:
    if v["rule"] == "numbers":
        return "The class folders are numbers and were taken in numerical order."
    return "The class folders were taken in alphabetical order."


def _fewer_classes(v: _Values) -> str:
    return f"The head has {_many(v['classes'], 'class', 'classes')}. The labels name {v['found']:,} of them."


def _fewer_folders(v: _Values) -> str:
    pairs = [f"{folder} = {label}" for folder, label in zip(v["folders"], v["labels"], strict=True)]
    order = " They are counted from 0, since their names do not show the order of the head." if v["positions"] else ""
    return (
        f"The head has {_many(v['classes'], 'class', 'classes')}. The folder holds {len(pairs):,} of them: "
        f"{_few(pairs)}.{order}"
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def _was(count: int) -> str:
    return "was" if count == 1 else "were"


LOADING_SENTENCES: dict[FactKind, Callable[[_Values], str]] = {
    FactKind.RANDOM_WEIGHTS: _random_weights,
    FactKind.NORMS_OPENED: _norms_opened,
    FactKind.WEIGHTS_DRAWN: _weights_drawn,
    FactKind.BRANCHES_CLOSED: _closed,
    FactKind.BRANCHES_NEARLY_CLOSED: _nearly_closed,
    FactKind.FACTORY_BUILT: _factory,
    FactKind.TAKEN_AS: _taken_as,
    FactKind.LAZY_SIZED: _lazy,
    FactKind.FRESH_PARAMETERS: _fresh,
    FactKind.FILE_ALSO_FITS: _also_fits,
    FactKind.FILE_LEFT_OVER: _left_over,
    FactKind.FILE_TRANSLATED: _translated,
    FactKind.FILE_RESAMPLED: _resampled,
    FactKind.FILE_ROUNDED: _rounded,
    FactKind.BATCHNORM_SET: _batchnorm,
    FactKind.EXAMPLE_INPUT: _example,
    FactKind.IMAGES: _images,
    FactKind.FOLDER_ORDER: _folder_order,
    FactKind.FEWER_CLASSES: _fewer_classes,
    FactKind.FEWER_FOLDERS: _fewer_folders,
}
