"""Feature dimensions and the classification dimension as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankscope._base.facts import Fact
from rankscope._base.text import one_line
from rankscope.views.phrases import bounds, counted, in_columns
from rankscope.views.sentences import note

__all__ = ["classification_text", "layers_text"]

_HEAD = ("layer", "width", "samples", "PCA dim.", "eff. rank", "part. ratio", "RankMe", "stable rank", "limited by")
_COLLAPSE = ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4")
_CLASS_HEAD = (
    "layer",
    "NC1",
    "NC2 norms",
    "NC2 angles",
    "NC3",
    "NC4",
    "class rank",
    "within",
    "means",
    "classes limited by samples",
)


def layers_text(rows: Sequence[Mapping[str, Any]], facts: Sequence[Fact]) -> str:
    """One line per layer, then what is to be known of them."""
    body = [
        (
            one_line(row["name"]),
            f"{row['width']:,}",
            f"{row['samples']:,}",
            _dimension(row),
            *(f"{row[name]:,.1f}" for name in ("effective_rank", "participation_ratio", "rankme", "stable_rank")),
            row["limited_by"],
        )
        for row in rows
    ]
    table = in_columns([_HEAD, *body], left=(0, len(_HEAD) - 1))
    return "\n".join([*table, *_by_class([row for row in rows if "nc1" in row]), *map(note, facts)])


def _by_class(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Neural collapse and class ranks of the layers that have them, as a table of its own."""
    if not rows:
        return []
    body = []
    for row in rows:
        ranks = (row["class_rank"], row["class_rank_within"], row["class_rank_means"])
        collapse = ("–" if row[name] is None else f"{row[name]:.3g}" for name in _COLLAPSE)
        limited = f"{row['class_rank_limited']:,} of {row['classes']:,}"
        body.append((one_line(row["name"]), *collapse, *("–" if n is None else f"{n:,g}" for n in ranks), limited))
    return in_columns([_CLASS_HEAD, *body])


def _dimension(row: Mapping[str, Any]) -> str:
    low, high = row["pca_bounds"]
    if row["sketch_error"]:
        return bounds(low, high)
    return f"{row['pca_dimension']:,}" + (f" {bounds(low, high)}" if row["limited_by"] == "precision" else "")


def classification_text(found: Mapping[str, Any], facts: Sequence[Fact]) -> str:
    """Cautions, the number with its interval and its settings, then what else was found."""
    low_high = found["interval"]
    interval = f"{bounds(*low_high)} (95% bootstrap)" if low_high else "not estimated"
    kept = "accuracy kept" if found["accuracy_kind"] == "overall" else "balanced accuracy kept"
    classes = f", {counted(found['classes'], 'class', 'classes')}" if found["classes"] else ""
    rows = [
        ("classification dimension", f"{found['dimension']:,} of {found['ambient']:,}"),
        ("interval", interval),
        (kept, f"{found['accuracy']:.4f} of {found['full_accuracy']:.4f} (≥ {found['keep']:g} ×)"),
        ("variance kept", f"{found['variance_kept']:.1%}"),
        ("projection", found["projection"]),
        ("samples", f"{found['samples']:,}{classes}"),
    ]
    if found["head_error"] is not None:
        error = found["head_error"]
        agree = f"differs by {error:.1e} of the largest logit" if error else "equal"
        rows.append(("head against stored logits", agree))
    width = max(len(name) for name, _ in rows)
    first = [note(fact) for fact in facts if fact.caution]
    last = [note(fact) for fact in facts if not fact.caution]
    return "\n".join([*first, *(f"{name:<{width}}  {value}" for name, value in rows), *last])
