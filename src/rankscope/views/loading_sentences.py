"""The sentences about how a model and its data were loaded, each written once."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, first_few, own_verb, shape_of, was

__all__ = ["LOADING_SENTENCES"]


def _random_weights(v: Values) -> str:
    return (
        "The weights are random: nothing here was learned. This shows what the architecture and its initialisation "
        f"(seed {v['seed']}) do, not what a trained network of this kind does."
    )


def _norms_opened(v: Values) -> str:
    return f"{_at_zero(v['count'], 'norm scale')} {was(v['count'])} set to 1, so that the residual branches take part."


def _weights_drawn(v: Values) -> str:
    return f"{_at_zero(v['count'], 'linear or convolution weight')} {was(v['count'])} drawn at random."


def _at_zero(count: int, kind: str) -> str:
    return f"{counted(count, kind)} that {own_verb(count, 'start')} at zero"


def _closed(v: Values) -> str:
    what = counted(v["count"], "gain or layer scale", "gains or layer scales")
    return (
        f"{what} {own_verb(v['count'], 'start')} at zero and {was(v['count'])} left so. The branches there add nothing."
    )


def _nearly_closed(v: Values) -> str:
    what = f"{counted(v['count'], 'layer scale')} {own_verb(v['count'], 'start')}"
    return (
        f"{what} at {v['largest']:.0e} or below. Untrained, the branches behind them change almost nothing, and the "
        "rank is nearly that of what comes before."
    )


def _factory(v: Values) -> str:
    return (
        f"The model was built by {v['factory']}() under seed {v['seed']}. The file decides whether its weights are "
        "random."
    )


def _taken_as(v: Values) -> str:
    return f"{v['given']!r} was taken as {v['taken']}."


def _lazy(v: Values) -> str:
    return f"Lazy layers were sized by one forward pass on zeros of shape {tuple(v['shape'])}."


def _fresh(v: Values) -> str:
    verb = own_verb(len(v["names"]), "be")
    return (
        f"{counted(len(v['names']), 'parameter')} {verb} not in the weights and {verb} random: {first_few(v['names'])}."
    )


def _also_fits(v: Values) -> str:
    key = v["names"][0]
    return (
        f"{v['file']} also holds {first_few([repr(n) for n in v['names']])}, which would fit as well. "
        f"The key {key!r} of the weights chooses it."
    )


def _left_over(v: Values) -> str:
    what = counted(len(v["names"]), "tensor")
    return f"{v['file']} also holds {what} that the model does not have: {first_few(v['names'])}."


def _translated(v: Values) -> str:
    return f"The names of {v['file']} were translated by {v['by']}."


def _resampled(v: Values) -> str:
    names = v["names"]
    what = f"{counted(len(names), 'tensor')} of {v['file']} {was(len(names))}"
    return f"{what} resampled to the model's size: {first_few(names)}."


def _rounded(v: Values) -> str:
    return f"Weights of the file in {v['given']} were rounded to the model's {v['own']}."


def _batchnorm(v: Values) -> str:
    few = " The images are too few for it." if v["source"] == "noise" else ""
    noise = " of noise" if v["source"] == "noise" else ""
    unused = f" {counted(v['unused'], 'other layer')} never ran." if v["unused"] else ""
    return (
        f"The running statistics of {counted(v['layers'], 'BatchNorm layer')} were set from "
        f"{counted(v['images'], 'image')}{noise}.{few}{unused}"
    )


def _example(v: Values) -> str:
    return (
        f"The model names no image size. It was measured on one random example input of shape {shape_of(v['shape'])}."
    )


def _plain_preprocessing(v: Values) -> str:
    _, height, width = v["size"]
    return (
        f"The model's files do not describe its preprocessing. Pictures are resized to {height:,}×{width:,} and "
        "scaled to [0, 1], which may not be what it was trained on."
    )


def _images(v: Values) -> str:
    return f"The images come from {v['source']} ({v['preprocessing']})."


def _folder_order(v: Values) -> str:
    if v["rule"] == "numbers":
        return "The class folders are numbers and were taken in numerical order."
    return "The class folders were taken in alphabetical order."


def _beside_folders(v: Values) -> str:
    what, has = counted(v["count"], "image"), own_verb(v["count"], "have")
    return f"{what} beside the class folders {has} no class and {was(v['count'])} left out, the first {v['first']}."


def _fewer_classes(v: Values) -> str:
    return f"The head has {counted(v['classes'], 'class', 'classes')}. The labels name {v['found']:,} of them."


def _fewer_folders(v: Values) -> str:
    pairs = [f"{folder} = {label}" for folder, label in zip(v["folders"], v["labels"], strict=True)]
    order = " They are counted from 0, since their names do not show the order of the head." if v["positions"] else ""
    return (
        f"The head has {counted(v['classes'], 'class', 'classes')}. The folder holds {len(pairs):,} of them: "
        f"{first_few(pairs)}.{order}"
    )


LOADING_SENTENCES: Sentences = {
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
    FactKind.PLAIN_PREPROCESSING: _plain_preprocessing,
    FactKind.IMAGES: _images,
    FactKind.FOLDER_ORDER: _folder_order,
    FactKind.BESIDE_FOLDERS: _beside_folders,
    FactKind.FEWER_CLASSES: _fewer_classes,
    FactKind.FEWER_FOLDERS: _fewer_folders,
}
