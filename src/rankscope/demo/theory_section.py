"""What depth alone does to rank: a small random chain beside its prediction, with and without skip connections."""

from __future__ import annotations

import math

from rankscope.demo.context import Context, Measured
from rankscope.report import Finding, Section, Table, figure_of
from rankscope.theory import ChainProfile, deep_chain, depth_to_rank
from rankscope.views.phrases import with_values

__all__ = ["theory_section"]

_WIDTH, _DEPTH, _SAMPLES = 200, 40, 1000  # a fifth of the paper's: three seconds in place of fifteen


def theory_section(context: Context) -> Measured:
    """Rank and feature dimension of a random linear chain by depth, and of the same chain with small branches."""
    if context.progress is not None:
        context.progress(0, None, "random chains beside the theory")
    plain = deep_chain(width=_WIDTH, depth=_DEPTH, samples=_SAMPLES, init="xavier_normal", progress=False)
    branch = 1 / math.sqrt(_DEPTH)
    skipping = deep_chain(
        width=_WIDTH, depth=_DEPTH, samples=_SAMPLES, init="xavier_normal", residual=branch, progress=False
    )
    rank, dimension = plain.jacobian_ranks[0], plain.feature_dimensions[0]
    predicted = plain.predicted[0]
    half = depth_to_rank(_WIDTH, _WIDTH // 2)
    section = Section(
        title="Theory: random layers lose rank by depth alone",
        lead=(
            f"The chain has {_DEPTH} random linear layers of width {_WIDTH} with nothing between them (the paper's "
            "Fig. 1 d to f at a fifth of its width). Predictions are closed forms; nothing is fitted."
        ),
        findings=[
            Finding(
                f"After {_DEPTH} layers the Jacobian has rank {rank[-1]:.0f} of {_WIDTH}, where {predicted[-1]:.1f} is "
                f"predicted. The features have {dimension[-1]:.0f} dimensions."
            ),
            Finding(
                f"Half of the rank is predicted to be lost after {half} layers. It {_first_half(plain)}."
            ),
            Finding(
                f"With a skip connection around every layer and branches of size 1/√{_DEPTH}, "
                f"{skipping.jacobian_ranks[0, -1]:.0f} dimensions are left."
            ),
            Finding(
                "The scale of the weights cancels, so no Gaussian initialisation prevents this loss. A layer much "
                "wider than the rank, such as an early convolution, keeps all of it.",
                "meaning",
            ),
        ],
        figures=[
            figure_of(
                plain.plot(), "Measured (markers) and predicted (dashed, dotted) dimensions by depth.", name="theory"
            )
        ],
        tables=[
            Table(
                "Rank by depth",
                ("depth", "Jacobian rank", "predicted", "feature dimension", "predicted", "rank with skip connections"),
                [
                    (k, int(rank[k - 1]), float(round(predicted[k - 1], 1)), int(dimension[k - 1]),
                     float(round(plain.predicted[1][k - 1], 1)), int(skipping.jacobian_ranks[0, k - 1]))
                    for k in (1, 2, 5, 10, 20, 30, 40)
                ],
                folded=True,
            )
        ],
        provenance={
            "initialisation": plain.init,
            "tolerance": plain.tolerance.name,
            "samples behind the features": f"{plain.samples:,}",
            "computed in": plain.dtype,
            "prediction": plain.prediction,
            "versions": with_values({k: v for k, v in plain.provenance.items() if k != "device"}),
        },
    )  # fmt: skip
    return Measured(
        section,
        values={
            "jacobian_rank": int(rank[-1]),
            "predicted_jacobian_rank": float(predicted[-1]),
            "jacobian_rank_with_skip_connections": int(skipping.jacobian_ranks[0, -1]),
        },
    )


def _first_half(profile: ChainProfile) -> str:
    ranks = profile.jacobian_ranks[0]
    below = [k for k, rank in enumerate(ranks, 1) if rank <= profile.width / 2]
    return f"was lost after {below[0]}" if below else f"was not lost within {profile.depth}"
