"""Feature space of the shipped network on its digits: dimension of every layer, of classification, of the classes."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from rankscope.deficit import independence_deficit
from rankscope.demo.context import Context, Measured
from rankscope.demo.digits_network import digits_network, digits_split
from rankscope.features import Collection, classification_dimension, collect, feature_rank
from rankscope.report import Finding, Section, Table, figure_of
from rankscope.report.deficit_page import deficit_section

__all__ = ["classification_section", "deficit_section_of_digits", "feature_section"]

_NAMES = tuple("0123456789")


def feature_section(context: Context) -> Measured:
    """How many dimensions the features of every layer span over all held-out digits."""
    split = digits_split()
    _say(context, "feature dimension")
    profile = feature_rank(digits_network(), split.held_out_images, reduce="flatten", batch_size=150, progress=False)
    layers = list(profile)
    first, last = layers[0], layers[-1]
    widest = max(layers, key=lambda x: x.participation_ratio)
    limited = [x.name for x in layers if x.limited_by == "samples"]
    found = [
        Finding(
            f"Features span {first.pca_dimension:,} of {first.width:,} dimensions at {first.name} and "
            f"{last.pca_dimension:,} of {last.width:,} at {last.name} (PCA dimension over {first.samples} digits)."
        ),
        Finding(
            "Most of the variance is in far fewer dimensions. The participation ratio is largest at "
            f"{widest.name} ({widest.participation_ratio:.1f}) and is {last.participation_ratio:.1f} at {last.name}."
        ),
    ]
    if limited:
        found.append(
            Finding(
                f"At {', '.join(limited)} the number of digits, not the network, limits the PCA dimension. More digits "
                "would raise it.",
                "caution",
            )
        )
    rows = [
        (x.name, x.width, x.pca_dimension, x.effective_rank, x.participation_ratio, x.stable_rank, x.limited_by)
        for x in layers
    ]
    head = ("layer", "width", "PCA dimension", "effective rank", "participation ratio", "stable rank", "limited by")
    section = Section(
        title="Feature dimension of every layer on digits",
        lead=f"Whole feature maps of the trained network over {first.samples} held-out digits, centred.",
        findings=found,
        figures=[figure_of(profile.plot(), "Dimensions of the features of every layer, over depth.", name="features")],
        tables=[Table("Feature dimension of every layer", head, rows)],
        provenance={
            "PCA dimension": "eigenvalues of the covariance of at least eps32·width·largest",
            "versions": ", ".join(f"{k} {v}" for k, v in profile.provenance["versions"].items()),
        },
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
    section = Section(
        title="Classification dimension on digits",
        lead=(
            f"Final features projected on their top principal components, then classified: axes from the training set, "
            f"accuracy on {found.samples} held-out digits."
        ),
        findings=[
            Finding(
                f"{found.dimension} of {found.ambient} components keep {found.keep:.0%} of the accuracy "
                f"({found.accuracy:.1%} of {found.full_accuracy:.1%}); the 95% bootstrap interval is {low} to {high}."
            ),
            Finding(
                f"A head cut down to these {found.dimension} components classifies {right:.1%} of the held-out digits."
            ),
            *[Finding(note, "caution") for note in found.notes],
        ],
        figures=[
            figure_of(
                found.plot(),
                "Accuracy over the number of components; the dot is the first crossing.",
                name="components",
            )
        ],
        tables=[
            Table(
                "Classification dimension",
                ("dimension", "low", "high", "ambient", "accuracy", "full accuracy", "projection"),
                [(found.dimension, low, high, found.ambient, found.accuracy, found.full_accuracy, found.projection)],
            ),
            Table(
                "Accuracy at every number of components",
                ("components", "top-1", "share kept"),
                [(int(k), float(a), float(a) / found.full_accuracy) for k, a in enumerate(found.curve, 1)],
                folded=True,
            ),
        ],
        provenance={k: str(v) for k, v in found.provenance.items() if k != "versions"},
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
