"""Feature space of the shipped network on its digits: dimension of every layer, of classification, of the classes."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from rankscope.deficit import independence_deficit
from rankscope.demo.context import Context, Measured
from rankscope.demo.digits_network import digits_network, digits_split
from rankscope.features import Collection, classification_dimension, collect, feature_rank
from rankscope.report import Finding
from rankscope.report.deficit_page import deficit_section
from rankscope.report.feature_section import classification_section as components_on_page
from rankscope.report.feature_section import feature_section as features_on_page

__all__ = ["classification_section", "deficit_section_of_digits", "feature_section"]

_NAMES = tuple("0123456789")


def feature_section(context: Context) -> Measured:
    """How many dimensions the features of every layer span over all held-out digits."""
    split = digits_split()
    _say(context, "feature dimension")
    profile = feature_rank(digits_network(), split.held_out_images, reduce="flatten", batch_size=150, progress=False)
    layers = list(profile)
    section = features_on_page(
        profile,
        title="Feature dimension of every layer on digits",
        lead=f"Whole feature maps of the trained network, over {layers[0].samples} held-out digits.",
        samples="digit",
    )
    return Measured(section, values={"pca_dimension": {x.name: x.pca_dimension for x in layers}})


def classification_section(context: Context) -> Measured:
    """How many components of the final features the classifier needs."""
    _say(context, "classification dimension")
    held_out, train = _collected(held_out=True), _collected(held_out=False)
    found = classification_dimension(
        held_out.features,
        held_out.labels,
        held_out.head,
        logits=held_out.logits,
        fit_features=train.features,
        progress=False,
    )
    low, high = found.interval or (found.dimension, found.dimension)
    small = found.head()
    with torch.no_grad():
        right = float((small(held_out.features).argmax(1) == held_out.labels).double().mean())
    section = components_on_page(
        found,
        title="Classification dimension on digits",
        lead=(
            "The final features are projected on their top principal components and then classified. The axes come "
            f"from the training set; the accuracy is that on {found.samples} held-out digits."
        ),
        more=[
            Finding(
                f"A head cut down to these {found.dimension} components classifies {right:.1%} of the held-out digits."
            )
        ],
    )
    return Measured(section, values={"classification_dimension": found.dimension, "interval": [low, high]})


def deficit_section_of_digits(context: Context) -> Measured:
    """Which digits' logits the other digits' logits determine."""
    _say(context, "independence deficit")
    found = _collected(held_out=True)
    table = independence_deficit(
        found.logits,
        found.labels,
        class_names=_NAMES,
        feature_dimension=found.features.shape[1],
        progress=False,
    )
    section = deficit_section(
        table, title="Independence deficit on digits", source=f"{len(found)} held-out digits", name="deficit"
    )
    values: dict[str, Any] = {"deficit_of_5": table.deficit(5), "status": {r.name: r.status for r in table}}
    return Measured(section, values=values)


def _collected(*, held_out: bool) -> Collection:
    """Final features, logits and labels of the trained network; the shards are not kept."""
    split = digits_split()
    data = (split.held_out_images, split.held_out_labels) if held_out else (split.train_images, split.train_labels)
    with tempfile.TemporaryDirectory() as folder:
        return collect(digits_network(), data, cut_points=[], out=folder, batch_size=256)


def _say(context: Context, text: str) -> None:
    if context.progress is not None:
        context.progress(0, None, f"digits: {text}")
