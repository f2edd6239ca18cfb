"""A network beside random layers, in one sentence and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope._base.text import one_line
from rankscope.views.compared import Compared

__all__ = ["comparison_sentence", "comparison_text"]


def comparison_sentence(chain: Sequence[Compared], judged: Sequence[Compared], verdict: str, *, double: bool) -> str:
    """How rank falls beside random layers, where both differ most, and how sure that is.

    ``judged`` are those of the chain with a random layer to be compared with; ``double`` says that float64 was used.
    """
    remedy = "read it with a larger tolerance" if double else 'measure with dtype="float64"'
    said = _said(chain[-1].name, judged, verdict, remedy)
    joined = max((x.joined for x in judged), default=0)
    if joined > 1:
        said += f", each block of up to {joined} mixing operations counted as one layer"
    return one_line(said) + "."


def comparison_text(layers: Sequence[Compared], *, head: str, sentence: str) -> str:
    """Header, one line a cut point, and the sentence."""
    width = max([len(one_line(x.name)) for x in layers] + [5])
    lines = [
        one_line(head),
        f"{'layer':<{width}}  {'depth':>5} {'outputs':>9} {'measured':>8} {'random':>8}  difference",
    ]
    for x in layers:
        mark = "" if x.verdict in ("same", "none") else x.verdict
        branch = "" if x.true_cut else "in a branch"
        lines.append(
            f"{one_line(x.name):<{width}}  {x.depth:>5} {x.rows:>9,} {x.measured:>8} {x.predicted:>8.1f}  "
            f"{x.difference:>+10.1f} {mark:<9} {branch}".rstrip()
        )
    return "\n".join([*lines, sentence])


def _said(last: str, chain: Sequence[Compared], verdict: str, remedy: str) -> str:
    count = f"{len(chain)} cut point{'s' * (len(chain) != 1)}"
    if verdict == "none":
        return (
            f"No operation that mixes features was recognised up to {last}, so there are no random layers to lay "
            "beside the network"
        )
    below = [x for x in chain if x.verdict == "less"]
    above = [x for x in chain if x.verdict == "more"]
    open_ = [x for x in chain if x.verdict == "undecided"]
    if verdict == "undecided":
        widest = max(open_, key=_width)
        return (
            "Whether the network loses rank as random layers of the same widths would is undecided at "
            f"{len(open_)} of {count}, where the certified bounds are too wide (most at {widest.name}, "
            f"{widest.lower:,} to {widest.upper:,} against {widest.predicted:,.0f}; {remedy})"
            + (f"; at the other {len(chain) - len(open_)} both are alike" if len(chain) > len(open_) else "")
        )
    left = f" ({len(open_)} more undecided, their certified bounds too wide; {remedy})" if open_ else ""
    if verdict == "alike":
        full = all(x.predicted > x.possible - 0.5 for x in chain)
        why = ", where both keep what the widths allow" if full else ""
        return f"The network keeps rank as random layers of the same widths would at all {count}{why}"
    if verdict == "mixed":
        return (
            f"Beside random layers of the same widths the network has lost more rank at {len(below)} of {count} "
            f"(most at {_at(min(below, key=_difference))}) and less at {len(above)} "
            f"(most at {_at(max(above, key=_difference))}){left}"
        )
    most = max(below or above, key=lambda x: abs(x.difference))
    return (
        f"The network loses rank {verdict} than random layers of the same widths would: it has "
        f"{'less' if below else 'more'} left at {len(below or above)} of {count}, most at {_at(most)}{left}"
    )


def _width(layer: Compared) -> int:
    return layer.upper - layer.lower


def _difference(layer: Compared) -> float:
    return layer.difference


def _at(layer: Compared) -> str:
    return f"{layer.name}, {layer.measured:,} against {layer.predicted:,.0f}"
