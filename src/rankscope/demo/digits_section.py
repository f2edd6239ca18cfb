"""Trained against untrained: the full Jacobian of the shipped network on digits that it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rankscope._base.errors import UsageError
from rankscope._base.facts import Fact, FactKind, as_facts
from rankscope.demo.context import Context, Measured
from rankscope.demo.digits_network import DigitsNetwork, digits_network, digits_split
from rankscope.jacobian import JacobianProfile, jacobian_rank
from rankscope.loading import calibrate_batchnorm
from rankscope.report import Figure, Finding, Section, findings, profiles_figure
from rankscope.report.profile_section import conventions_table, image_table, provenance, rank_table
from rankscope.views.sentences import sentence

if TYPE_CHECKING:
    from rankscope.demo.digits_network import DigitsSplit

__all__ = ["digits_section"]


def digits_section(context: Context) -> Measured:
    """Both networks on the same held-out digits, all 64 columns."""
    split = digits_split()
    if not 0 < context.digits <= len(split.held_out_images):
        raise UsageError(f"{context.digits} digits; there are {len(split.held_out_images)} held-out ones")
    networks = {"trained": digits_network("trained"), "untrained": digits_network("random", seed=0)}
    # a network that never saw data has BatchNorm statistics of none; these make the comparison a fair one
    calibrated = calibrate_batchnorm(networks["untrained"], split.train_images.split(256))
    facts: dict[str, tuple[Fact, ...]] = {
        "trained": as_facts("The network was trained by examples/digits/train.py. These images were held out."),
        "untrained": (
            Fact(FactKind.RANDOM_WEIGHTS, {"seed": 0}, caution=True),
            *([calibrated] if calibrated is not None else []),
        ),
    }
    weights = {"trained": "trained on scikit-learn's digits", "untrained": "random, seed 0"}
    profiles = {
        name: jacobian_rank(
            network,
            split.held_out_images[: context.digits],
            columns="all",
            progress=context.watch(f"digits, {name}"),
            names=lambda i: f"digit {i} (a {int(split.held_out_labels[i])})",
            provenance={"model": f"digits, {name}", "weights": weights[name], "notes": facts[name]},
        )
        for name, network in networks.items()
    }
    accuracy = {name: _accuracy(network, split) for name, network in networks.items()}
    trained, untrained = profiles["trained"], profiles["untrained"]
    section = Section(
        title="A small residual network on digits: trained and untrained",
        lead=(
            f"The network ships with rankscope. Its input has 64 pixels, so this is the full Jacobian, exact and "
            f"without a patch, on {context.digits} held-out digits."
        ),
        findings=[
            Finding(
                f"The trained network classifies {accuracy['trained']:.1%} of the held-out digits, the untrained one "
                f"{accuracy['untrained']:.1%}."
            ),
            *_comparison(trained, untrained),
            *findings(trained, "the trained network"),
        ],
        figures=[_figure(profiles)],
        tables=[
            rank_table(trained, caption="Trained: rank of every layer"),
            rank_table(untrained, caption="Untrained: rank of every layer"),
            conventions_table(trained, caption="Trained: the same spectra under each tolerance"),
            conventions_table(untrained, caption="Untrained: the same spectra under each tolerance"),
            image_table(trained, caption="Trained: rank on every image"),
            image_table(untrained, caption="Untrained: rank on every image"),
        ],
        provenance=provenance(trained) | {"note on the untrained network": " ".join(map(sentence, facts["untrained"]))},
    )
    return Measured(
        section,
        {f"digits-{name}": profile for name, profile in profiles.items()},
        {"held_out_accuracy": accuracy, "rank": {name: _ranks(p) for name, p in profiles.items()}},
    )


def _comparison(trained: JacobianProfile, untrained: JacobianProfile) -> list[Finding]:
    """Where training moved the rank of a typical image most."""
    pairs = [(trained.summary(trained[x.name]), untrained.summary(x)) for x in untrained.layers]
    moved = max(pairs, key=lambda p: abs(p[0]["rank"]["median"] - p[1]["rank"]["median"]))
    a, b = (row["rank"]["median"] for row in moved)
    name = moved[0]["name"]
    if a == b:
        return [Finding("Training did not change the median rank of any layer.")]
    word = "less" if a < b else "more"
    return [
        Finding(
            f"Training changed the rank most at {name}: {a:g} in the median image, {word} than the {b:g} of the "
            f"untrained network; the largest over the images is {moved[0]['rank']['max']} against "
            f"{moved[1]['rank']['max']}."
        )
    ]


def _figure(profiles: dict[str, JacobianProfile]) -> Figure:
    caption = (
        "Rank of the full Jacobian (64 columns) of every layer. Solid: function rank, the largest over the images; "
        "dashed: median; band: from the smallest to the largest. Dotted: expected rank of random layers of the same "
        "widths."
    )
    return profiles_figure(profiles.items(), caption, name="digits")


def _ranks(profile: JacobianProfile) -> dict[str, Any]:
    return {layer.name: profile.summary(layer)["rank"] for layer in profile.layers}


@torch.no_grad()
def _accuracy(network: DigitsNetwork, split: DigitsSplit) -> float:
    right = network(split.held_out_images).argmax(1) == split.held_out_labels
    return float(right.float().mean())
