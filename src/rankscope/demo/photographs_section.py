"""A network of real size on real photographs, with random weights: nothing is downloaded."""

from __future__ import annotations

from dataclasses import replace

from rankscope.demo.context import Context, Measured
from rankscope.jacobian import jacobian_rank
from rankscope.loading import calibrate_batchnorm, load_images, load_model
from rankscope.report import Finding, profile_section
from rankscope.slicing import Patch

__all__ = ["photographs_section"]


def photographs_section(context: Context) -> Measured:
    """The central patch's profile of a random network on the two photographs of scikit-learn."""
    if context.progress is not None:
        context.progress(0, None, f"loading {context.photographs_model}")
    loaded = load_model(context.photographs_model, weights="random", seed=0)
    images = load_images("photos", preprocessing=loaded.preprocessing)
    calibrated = calibrate_batchnorm(loaded.model, images.tensor)
    short = loaded.name.partition(":")[2]
    profile = jacobian_rank(
        loaded.model,
        images,
        columns=Patch(context.patch),
        progress=context.watch(f"{short}, random weights"),
        names=lambda i: images.names[i],
        provenance={
            "model": loaded.name,
            "weights": loaded.weights,
            "notes": (*loaded.facts, *([calibrated] if calibrated else []), f"Images: {images.preprocessing}."),
        },
    )
    size = "×".join(map(str, images.shape[1:]))
    section = profile_section(
        profile, title=f"{short} at {size} with random weights, on two photographs", name="photographs"
    )
    smaller = Finding(
        f"The patch is {context.patch}×{context.patch} pixels, so that the demo stays short; the paper's is 16×16.",
        "meaning",
    )
    extra = [smaller] if context.patch < 16 else []
    return Measured(
        replace(section, findings=[*section.findings, *extra]),
        {f"{short}-random": profile},
        {"rank": {layer.name: profile.summary(layer)["rank"] for layer in profile.layers}},
    )
