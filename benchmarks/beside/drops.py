"""What happens from one cut point to a later one: drops of the full rank, beside those of a partial rank.

Lemma 2 of the paper, at one input and for exact rank: rank(A) − rank(BA) ≥ rank(AS) − rank(BAS) for all A, B, S, which
is Frobenius' inequality. Here it is asked of numerical ranks, each known between two bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd

__all__ = ["KINDS", "SAME", "drops", "verdict"]

SAME = ["network", "weights", "tolerance", "image"]
KINDS = ("patch", "sketch")


def verdict(full: tuple[float, float], partial: tuple[float, float]) -> str:
    """Whether the drop of the full rank is at least that of the partial one, each between two bounds.

    >>> verdict((10, 12), (3, 4)), verdict((1, 2), (3, 4)), verdict((1, 5), (3, 4))
    ('holds', 'fails', 'open')
    """
    if full[0] >= partial[1]:
        return "holds"
    return "fails" if full[1] < partial[0] else "open"


def drops(ranks: pd.DataFrame, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """One row a pair of true cuts, the earlier one first, and kind of partial rank.

    ``full`` and ``partial`` are the best estimates of both drops, ``*_lower`` and ``*_upper`` their bounds. ``verdict``
    judges by the bounds, ``estimate`` by the best estimates alone.
    """
    found: list[dict[str, Any]] = []
    for same, group in ranks[ranks["true_cut"]].groupby(SAME, sort=False):
        by_kind = {kind: part.sort_values("depth").set_index("depth") for kind, part in group.groupby("columns")}
        full = by_kind["full"]
        for kind in kinds:
            partial = by_kind[kind]
            common = [depth for depth in full.index if depth in partial.index]
            for i, j in combinations(range(len(common)), 2):
                a, b = common[i], common[j]
                row: dict[str, Any] = dict(zip(SAME, same, strict=True))
                row |= {
                    "columns": kind,
                    "from": full.loc[a, "layer"],
                    "to": full.loc[b, "layer"],
                    "adjacent": j == i + 1,
                }
                for name, table in (("full", full), ("partial", partial)):
                    one, two = table.loc[a], table.loc[b]
                    row[name] = int(one["rank"] - two["rank"])
                    row[f"{name}_lower"] = int(one["lower"] - two["upper"])
                    row[f"{name}_upper"] = int(one["upper"] - two["lower"])
                bounds = [(row[f"{name}_lower"], row[f"{name}_upper"]) for name in ("full", "partial")]
                row["verdict"] = verdict(*bounds)
                row["estimate"] = verdict((row["full"],) * 2, (row["partial"],) * 2)
                found.append(row)
    return pd.DataFrame(found)
