"""A network trained on ImageNet beside the same network untrained, on two photographs: nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rankscope._base.errors import UsageError, nearest
from rankscope.demo.context import Context, Measured
from rankscope.jacobian import JacobianProfile, jacobian_rank
from rankscope.loading import Images, LoadedModel, load_images, load_model
from rankscope.loading.packaged import PACKAGED, has_weights
from rankscope.report import Figure, Finding, Section, findings, profiles_figure
from rankscope.report.profile_section import conventions_table, image_table, provenance, rank_table
from rankscope.slicing import Patch
from rankscope.views.phrases import joined

__all__ = ["POOLED", "photographs_section"]

POOLED = "global_pool.flatten"
_BATCHNORM = (
    "BatchNorm of the untrained network has the statistics that it starts with (mean 0, variance 1), as no data have "
    "passed through it."
)


def photographs_section(context: Context) -> Measured:
    """The central patch's profile of both networks on the two photographs of scikit-learn."""
    name = context.photographs_model
    if name not in PACKAGED:
        raise UsageError(f"no package has weights of {name!r}; {nearest(name, PACKAGED)}")
    networks: dict[str, LoadedModel] = {}
    if context.progress is not None:
        context.progress(0, None, f"loading {name}")
    if has_weights(name):
        networks["trained"] = load_model(name)
    networks["untrained"] = load_model(name, weights="random", seed=0)
    images = load_images("photos", preprocessing=networks["untrained"].preprocessing)
    profiles = {
        weights: _profile(context, weights, loaded, images, patch=context.patch) for weights, loaded in networks.items()
    }
    seen = {weights: _seen(loaded, images) for weights, loaded in networks.items()}
    section = _section(name, context.patch, images, profiles, seen)
    values = {
        "sees": seen,
        "rank": {
            weights: {t: _ranks(profile, t) for t in ("paper", "reference")} for weights, profile in profiles.items()
        },
    }
    return Measured(section, {f"{name}-{weights}": profile for weights, profile in profiles.items()}, values)


def _profile(context: Context, weights: str, loaded: LoadedModel, images: Images, *, patch: int) -> JacobianProfile:
    return jacobian_rank(
        loaded.model,
        images,
        columns=Patch(patch),
        progress=context.watch(f"{loaded.name}, {weights}"),
        names=lambda i: images.names[i],
        provenance={
            "model": loaded.name,
            "weights": loaded.weights,
            "notes": (
                *loaded.facts,
                *([_BATCHNORM] if loaded.random else []),
                f"The images are scikit-learn's two photographs ({images.preprocessing}).",
            ),
        },
    )


@torch.no_grad()
def _seen(loaded: LoadedModel, images: Images) -> dict[str, dict[str, Any]]:
    """The most probable class of every photograph: its number, its name where the network was trained, its share."""
    shares = loaded.model(images.tensor).softmax(1)
    found: dict[str, dict[str, Any]] = {}
    for image, share in zip(images.names, shares, strict=True):
        label = int(share.argmax())
        name = loaded.class_names[label] if loaded.class_names is not None else None
        found[image] = {"label": label, "class": name, "probability": round(float(share[label]), 4)}
    return found


def _section(
    name: str,
    patch: int,
    images: Images,
    profiles: dict[str, JacobianProfile],
    seen: dict[str, dict[str, dict[str, Any]]],
) -> Section:
    shown = profiles.get("trained", profiles["untrained"])
    side = images.shape[-1]
    both = "trained on ImageNet and untrained" if "trained" in profiles else "untrained"
    tables = []
    for weights, profile in profiles.items():
        word = weights.capitalize()
        tables += [
            rank_table(profile, caption=f"{word}: rank of every layer"),
            conventions_table(profile, caption=f"{word}: the same spectra under each tolerance"),
            image_table(profile, caption=f"{word}: rank on every photograph"),
        ]
    return Section(
        title=f"{name} on two photographs: {both}",
        lead=(
            f"The Jacobian of every layer with respect to the central {patch}×{patch} pixels, {shown.columns.count} of "
            f"{3 * side * side:,} inputs, on scikit-learn's two photographs at {side}×{side}."
        ),
        findings=[*_findings(name, profiles, seen), *_readings(patch, shown)],
        figures=[_figure(profiles, patch)],
        tables=tables,
        provenance=provenance(shown)
        | ({"note on the untrained network": f"Random weights, seed 0. {_BATCHNORM}"} if len(profiles) > 1 else {}),
    )


def _findings(
    name: str, profiles: dict[str, JacobianProfile], seen: dict[str, dict[str, dict[str, Any]]]
) -> Iterator[Finding]:
    if "trained" in seen:
        sees = joined(
            f"{found['class']} in {image} (probability {found['probability']:.2f})"
            for image, found in seen["trained"].items()
        )
        yield Finding(f"The trained network sees {sees}.")
    for tolerance in ("paper", "reference"):
        parts: list[str] = []
        for weights, profile in profiles.items():
            ranks = _ranks(profile, tolerance)[POOLED]
            listed = joined(f"{rank:,} ({image})" for image, rank in ranks.items())
            parts.append(f"the {weights} network keeps {listed}" if not parts else f"the {weights} one {listed}")
        room = profiles["untrained"][POOLED]
        yield Finding(
            f"Of {min(room.rows, room.columns):,} directions at the pooled features (tolerance: {tolerance}), "
            f"{', '.join(parts)}."
        )
    if "trained" in profiles:
        yield Finding(profiles["trained"].against_random().sentence_about("the trained network"))
    else:
        yield Finding(
            f"The ImageNet weights of {name} are not installed, so this page has the untrained network alone. "
            f"Install them with {PACKAGED[name].install} and run the demo again.",
            "caution",
        )


def _readings(patch: int, profile: JacobianProfile) -> Iterator[Finding]:
    """Cautions and what the numbers mean."""
    yield Finding("Two photographs are two examples. They say nothing about ImageNet as a whole.", "caution")
    yield from (f for f in findings(profile) if f.kind != "finding")
    if patch < 16:
        yield Finding(f"The patch is {patch}×{patch} pixels; the paper's is 16×16.", "meaning")


def _ranks(profile: JacobianProfile, tolerance: str) -> dict[str, dict[str, int]]:
    """Rank by layer and photograph."""
    table = profile.per_image(tolerance)
    found: dict[str, dict[str, int]] = {}
    for layer, image, rank in zip(table["layer"], table["image"], table["rank"], strict=True):
        found.setdefault(layer, {})[image] = int(rank)
    return found


def _figure(profiles: dict[str, JacobianProfile], patch: int) -> Figure:
    caption = (
        f"Rank of the Jacobian of every layer with respect to the central {patch}×{patch} patch. Solid: the larger of "
        "the two photographs; dashed: their median; band: from the smaller to the larger; whiskers: certified bounds. "
        "Dotted: expected rank of random layers of the same widths."
    )
    return profiles_figure(profiles.items(), caption, name="photographs")
