"""The sentences about features, their classes and their deficit, each written once."""

from __future__ import annotations

from rankscope._base.facts import FactKind
from rankscope.views.phrases import Sentences, Values, counted, first_few, gigabytes, own_verb, was

__all__ = ["FEATURE_SENTENCES"]


def _at_chance(v: Values) -> str:
    return (
        f"The accuracy is at chance: {v['accuracy']:.2%}, where always answering class {v['answer']} gives "
        f"{v['share']:.2%}. Check that labels and {v['of']} use the same class order.{_balance(v)}"
    )


def _kept_by_chance(v: Values) -> str:
    return (
        f"Always answering class {v['answer']} gives an accuracy of {v['share']:.2%}, and only {v['kept']:.2%} has to "
        f"be kept. Keeping it is therefore a weak requirement.{_balance(v)}"
    )


def _balance(v: Values) -> str:
    return "" if v["measure"] == "balanced" else ' With accuracy="balanced" every class counts alike.'


def _other_class_names(v: Values) -> str:
    unknown = v.get("unknown")
    said = (
        f"None of the data's {len(v['data']):,} class names ({first_few(v['data'])}) is a class of the model"
        if unknown is None
        else f"{len(unknown):,} of the data's {len(v['data']):,} class names ({first_few(unknown)}) "
        f"{own_verb(len(unknown), 'be')} not among the classes of the model"
    )
    return (
        f"{said} ({first_few(v['model'])}). The labels are the positions of the names in the data. Check that data and "
        "model have the same order."
    )


def _other_class_order(v: Values) -> str:
    return (
        f"{counted(v['count'], 'class name')} of the data {own_verb(v['count'], 'have')} another place in the model: "
        f"{v['name']} is label {v['label']:,} of the data, and class {v['place']:,} of the model. Give labels in the "
        "order of the model's classes."
    )


def _full_width_alone(_: Values) -> str:
    return "The threshold is reached only at full width, where the projection changes nothing."


def _not_monotone(v: Values) -> str:
    what = f"{counted(v['count'], 'larger number')} of components {own_verb(v['count'], 'fall')}"
    return f"The accuracy is not monotone: {what} below the threshold again."


def _few_directions(v: Values) -> str:
    return (
        f"The features vary in only {counted(v['directions'], 'direction')}. The order of the components beyond is "
        "arbitrary, and so is what each adds."
    )


def _constant_layer(v: Values) -> str:
    return f"{v['name']!r} gives the same features for all {counted(v['samples'], 'sample')}. Its dimension is 0."


def _rows_not_samples(v: Values) -> str:
    sizes = "×".join(map(str, v["shape"]))
    count = len(v["names"])
    return (
        f"{counted(count, 'chosen layer')} {own_verb(count, 'return')} rows that are not samples ({sizes} at "
        f"{v['names'][0]!r}) and {was(count)} left out: {first_few(v['names'])}."
    )


def _few_rows(v: Values) -> str:
    return (
        f"{v['name']!r} has {counted(v['samples'], 'row')} of {counted(v['width'], 'dimension')}. They span at most "
        f"{counted(v['samples'] - 1, 'direction')}, so more rows would raise its dimension."
    )


def _rounded_layer(v: Values) -> str:
    return (
        f"{v['name']!r} has a PCA dimension between {v['low']:,} and {v['high']:,}. The rounding of the features to "
        "their dtype does not allow a closer value. Compute the features in float32 or float64."
    )


def _rounded_classes(v: Values) -> str:
    return (
        f"The class ranks of {v['name']!r} count rounding of the features to {v['dtype']} as dimensions and may be too "
        "high. Compute the features in float32 or float64."
    )


def _sketched_layer(v: Values) -> str:
    rows = "" if v["rows"] is None else f", all rows {gigabytes(v['rows'])}"
    return (
        f"{v['name']!r} was sketched with {counted(v['directions'], 'direction')}. Of "
        f"{counted(v['width'], 'dimension')} a covariance needs {gigabytes(v['covariance'])}{rows}, and "
        f"{gigabytes(v['memory'])} are allowed. The PCA dimension is known between "
        "its bounds, and the soft ranks are those of the sketch."
    )


def _duplicates(v: Values) -> str:
    return (
        f"{v['name']!r} has {counted(v['count'], 'row')} that {own_verb(v['count'], 'equal')} an earlier one among "
        f"{v['total']:,}. Equal rows count once, since the distance between them does not depend on the dimension."
    )


def _tied(v: Values) -> str:
    return (
        f"{v['share']:.0%} of the samples at {v['name']!r} have several nearest neighbours at the same distance. The "
        "estimate assumes features that are spread smoothly, and these are discrete."
    )


def _beyond_samples(v: Values) -> str:
    return (
        f"The intrinsic dimension of {v['name']!r}, {v['value']:.1f}, exceeds {v['most']:.1f}, which "
        f"{counted(v['samples'], 'sample')} can resolve (twice the decimal logarithm). It is likely too low."
    )


FEATURE_SENTENCES: Sentences = {
    FactKind.AT_CHANCE: _at_chance,
    FactKind.KEPT_BY_CHANCE: _kept_by_chance,
    FactKind.OTHER_CLASS_NAMES: _other_class_names,
    FactKind.OTHER_CLASS_ORDER: _other_class_order,
    FactKind.FULL_WIDTH_ALONE: _full_width_alone,
    FactKind.NOT_MONOTONE: _not_monotone,
    FactKind.FEW_DIRECTIONS: _few_directions,
    FactKind.CONSTANT_LAYER: _constant_layer,
    FactKind.ROWS_NOT_SAMPLES: _rows_not_samples,
    FactKind.FEW_ROWS: _few_rows,
    FactKind.ROUNDED_LAYER: _rounded_layer,
    FactKind.ROUNDED_CLASSES: _rounded_classes,
    FactKind.SKETCHED_LAYER: _sketched_layer,
    FactKind.DUPLICATES_LEFT_OUT: _duplicates,
    FactKind.TIED_NEIGHBOURS: _tied,
    FactKind.BEYOND_SAMPLES: _beyond_samples,
}
