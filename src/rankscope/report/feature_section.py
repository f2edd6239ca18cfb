"""Feature dimensions, and what a classifier uses of them, as sections of a page and as pages of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankscope._base.facts import Fact
from rankscope.report.figures import drawn
from rankscope.report.page import Page
from rankscope.report.section import Section
from rankscope.report.sentences import Finding
from rankscope.report.table import Share, Table
from rankscope.views.phrases import bounds, counted, with_values

if TYPE_CHECKING:
    from rankscope.features import ClassificationDimension, FeatureProfile

__all__ = ["classification_page", "classification_section", "feature_page", "feature_section"]

_REDUCED = {
    "flatten": "Feature maps are taken whole (flatten).",
    "pool": "Feature maps are averaged over their positions (pool).",
    "positions": "Each position of a feature map counts as a sample (positions).",
}
_HEAD = ("layer", "width", "PCA dimension", "effective rank", "participation ratio", "stable rank", "limited by")

_MEANING = (
    "λ are the eigenvalues of the features' covariance and σ their square roots. PCA dimension: number of λ that reach "
    "the threshold. Effective rank: exp(−Σ p log p) with p = σ/Σσ. Participation ratio: (Σλ)²/Σλ². Stable rank: Σλ/λ₁. "
    "Limited by: what sets the PCA dimension (the network, the number of samples, or the precision)."
)


def feature_page(profile: FeatureProfile, *, model: str | None, data: str | None, facts: Iterable[Fact] = ()) -> Page:
    """One profile, one page; ``facts`` are those of the data."""
    title = f"Feature dimension{_of(model)}"
    lead = _REDUCED[profile[0].reduce] + _data(data)
    return Page.of(
        feature_section(profile, title=title, lead=lead, facts=facts), profile.provenance.get("versions", {})
    )


def classification_page(found: ClassificationDimension, *, model: str | None, data: str | None) -> Page:
    """One result, one page."""
    section = classification_section(found, title=f"Classification dimension{_of(model)}", lead=_data(data).strip())
    return Page.of(section, found.provenance.get("versions", {}))


def _of(model: str | None) -> str:
    return f" of {model}" if model else ""


def _data(data: str | None) -> str:
    return f" Data: {data}." if data else ""


def feature_section(
    profile: FeatureProfile,
    *,
    title: str = "Feature dimension of every layer",
    lead: str = "",
    samples: str = "sample",
    facts: Iterable[Fact] = (),
    name: str = "features",
) -> Section:
    """How many dimensions the features span. ``samples`` is the word for one, ``facts`` are those of the data."""
    layers = list(profile)
    first, last = layers[0], layers[-1]
    widest = max(layers, key=lambda layer: layer.participation_ratio)
    limited = [layer.name for layer in layers if layer.limited_by == "samples"]
    among = [first] if len(layers) == 1 else [first, last]
    spans = " and ".join(f"{layer.pca_dimension:,} of {layer.width:,} at {layer.name}" for layer in among)
    found = [
        Finding(
            f"Features span {spans.replace(' at ', ' dimensions at ', 1)} (PCA dimension over "
            f"{counted(first.samples, samples)})."
        ),
        Finding(
            f"The participation ratio, which counts the directions with most of the variance, is "
            f"{widest.participation_ratio:.1f} at {widest.name}"
            + (f", its largest value, and {last.participation_ratio:.1f} at {last.name}." if widest != last else ".")
        ),
    ]
    if limited:
        found.append(
            Finding(
                f"At {', '.join(limited)} the number of {samples}s, not the network, limits the PCA dimension. More "
                f"{samples}s would raise it.",
                "caution",
            )
        )
    rows = [
        (x.name, x.width, x.pca_dimension, x.effective_rank, x.participation_ratio, x.stable_rank, x.limited_by)
        for x in layers
    ]
    return Section(
        title=title,
        lead=lead,
        findings=[*found, *map(Finding.of, (*profile.facts, *facts))],
        figures=(drawn(profile.plot, "Dimensions of the features of every layer.", name=name),),
        tables=(
            Table("Feature dimension of every layer", _HEAD, rows, meaning=_MEANING),
            Table.of(profile.table(), "Every number", folded=True),
        ),
        provenance={
            "PCA dimension": "eigenvalues of the covariance of at least eps32·width·largest",
            **_versions(profile.provenance),
        },
    )


def classification_section(
    found: ClassificationDimension,
    *,
    title: str = "Classification dimension",
    lead: str = "",
    more: Sequence[Finding] = (),
    name: str = "components",
) -> Section:
    """How many components of the final features the classifier needs; ``more`` follows the first sentence."""
    score, form = ("score", ".4g") if found.classes is None else ("accuracy", ".1%")
    interval = "" if found.interval is None else f" The 95% bootstrap interval is {bounds(*found.interval)}."
    caption = f"{score.capitalize()} by number of principal components. The dot marks the classification dimension."
    curve = found.curve_table().rename(columns={"k": "components", "top1": score, "kept": "share kept"})
    return Section(
        title=title,
        lead=lead,
        findings=[
            Finding(
                f"{found.dimension:,} of {found.ambient:,} principal components keep at least {found.keep:.0%} of the "
                f"{score}: {found.accuracy:{form}}, where all components give {found.full_accuracy:{form}}.{interval}"
            ),
            *more,
            *map(Finding.of, found.facts),
        ],
        figures=(drawn(found.plot, caption, name=name),),
        tables=(
            _dimension_table(found, score),
            Table.of(curve, f"{score.capitalize()} at every number of components", folded=True),
        ),
        provenance={k: str(v) for k, v in found.provenance.items() if k != "versions"} | _versions(found.provenance),
    )


def _dimension_table(found: ClassificationDimension, score: str) -> Table:
    """One row: the dimension, how certain it is, and what it keeps."""
    interval = "none" if found.interval is None else bounds(*found.interval)
    scores: list[Any] = [found.accuracy, found.full_accuracy]
    kind = score
    if found.classes is not None:
        scores, kind = [Share(value) for value in scores], f"{found.accuracy_kind} {score}"
    head = ("dimension", "of", "95% interval", kind, "with all", "to keep", "projection", "samples")
    row = (found.dimension, found.ambient, interval, *scores, Share(found.keep), found.projection, found.samples)
    return Table("Classification dimension", head, [row])


def _versions(provenance: Mapping[str, Any]) -> dict[str, str]:
    return {"versions": with_values(provenance.get("versions", {}))}
