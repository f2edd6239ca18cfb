"""What a run of the fuzzer shows, as Markdown: by outcome, and by ingredient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fuzzing.outcome import ORDER, Outcome

__all__ = ["table"]

_ASKED = ("measured", "near", "wide", "uncertified", "refused", "incomplete", "wrong", "raw error", "changed")
_NO_TRUTH = ("kink", "noise", "range", "ambiguous")  # nothing to compare with


def table(outcomes: Sequence[Outcome]) -> str:
    """Networks by the worst that happened in each; cells (cut point × sample) by what happened at each."""
    networks = Counter(o.status for o in outcomes)
    cells: Counter[str] = Counter()
    for outcome in outcomes:
        cells.update(outcome.cells)
    lines = ["| | networks | cut points × samples |", "|---|---|---|"]
    lines.append(f"| tried | {len(outcomes)} | {sum(cells.values())} |")
    for status in reversed(ORDER):
        lines.append(f"| {status} | {networks[status]} | {cells[status]} |")
    judged = sum(cells.values()) - sum(cells[s] for s in _NO_TRUTH)
    share = 100 * cells["measured"] / judged if judged else 0.0
    lines += ["", f"{share:.1f}% of the {judged} cells with one truth were measured.", ""]
    lines += ["| ingredient | networks | " + " | ".join(_ASKED) + " |", "|---|---|" + "---|" * len(_ASKED)]
    by: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        for name in outcome.ingredients:
            by.setdefault(name, []).append(outcome)
    for name in sorted(by):
        counted = Counter(o.status for o in by[name])
        part: Counter[str] = Counter()
        for outcome in by[name]:
            part.update(outcome.cells)
        total = sum(part.values()) - sum(part[s] for s in _NO_TRUTH)
        shown = [f"{100 * part['measured'] / total:.0f}%" if total else "", *(str(counted[s]) for s in _ASKED[1:])]
        lines.append(f"| {name} | {len(by[name])} | " + " | ".join(shown) + " |")
    return "\n".join(lines)
