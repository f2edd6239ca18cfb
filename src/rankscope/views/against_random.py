"""A network beside a random chain, in a sentence or two and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rankscope._base.text import one_line
from rankscope.views.compared import Compared
from rankscope.views.phrases import bounds, capital, counted

__all__ = ["MEANING", "comparison_sentence", "comparison_text"]


MEANING = (
    "The random Gaussian chain has one independent dense Gaussian matrix for each operation that mixes features, such "
    "as a matrix product or a convolution. It starts from the same input columns, has the same numbers of outputs, and "
    "is measured with the same tolerance. A plain chain of n such operations counts as n layers; a block with branches "
    "(residual, attention) counts as one. Random layers have no nonlinearity, no skip connection and no shared "
    "weights. The comparison therefore shows where a network differs from random layers, but not why."
)


def comparison_sentence(
    chain: Sequence[Compared], judged: Sequence[Compared], verdict: str, network: str = "the network", *, double: bool
) -> str:
    """How rank falls beside a random chain, where both differ most, and how sure that is.

    ``judged`` are those of the chain with a random layer to be compared with; ``double`` says that float64 was used.
    """
    remedy = "use a larger tolerance" if double else "measure in float64"
    said = capital(_said(chain[-1].name, judged, verdict, network, remedy))
    joined = max((x.joined for x in judged), default=0)
    if joined > 1:
        said += f" Each block counts as one layer; the largest has {joined:,} mixing operations."
    return one_line(said)


def comparison_text(layers: Sequence[Compared], *, head: str, sentence: str) -> str:
    """Header, one line per cut point, and the sentence."""
    width = max([len(one_line(x.name)) for x in layers] + [5])
    lines = [
        one_line(head),
        f"{'layer':<{width}}  {'depth':>5} {'outputs':>9} {'measured':>9} {'random':>9}  difference",
    ]
    for x in layers:
        mark = "" if x.verdict in ("same", "none") else x.verdict
        branch = "" if x.true_cut else "in a branch"
        lines.append(
            f"{one_line(x.name):<{width}}  {x.depth:>5} {x.rows:>9,} {x.measured:>9,} {x.predicted:>9,.1f}  "
            f"{x.difference:>+10,.1f} {mark:<9} {branch}".rstrip()
        )
    return "\n".join([*lines, sentence])


def _said(last: str, chain: Sequence[Compared], verdict: str, network: str, remedy: str) -> str:
    if verdict == "none":
        return f"No operation that mixes features was recognised up to {last}, so there is no random chain to compare."
    total = counted(len(chain), "cut point")
    below = [x for x in chain if x.verdict == "less"]
    above = [x for x in chain if x.verdict == "more"]
    open_ = [x for x in chain if x.verdict == "undecided"]
    if verdict == "undecided":
        widest = max(open_, key=lambda x: x.upper - x.lower)
        return (
            f"At {len(open_):,} of {total} the certified bounds are too wide to compare {network} with {_CHAIN} "
            f"({_most(open_)}{widest.name}: {bounds(widest.lower, widest.upper)} against {widest.predicted:,.0f}); "
            f"{remedy}." + (" The other ranks agree." if len(chain) > len(open_) else "")
        )
    if verdict == "alike":
        full = all(x.predicted > x.possible - 0.5 for x in chain)
        where = {1: "the only cut point", 2: "both cut points"}.get(len(chain), f"all {total}")
        if full:
            return f"{network} keeps all the rank that its widths allow at {where}, as {_CHAIN} does."
        return f"{network}'s rank agrees with that of {_CHAIN} at {where}."
    if verdict == "mixed":
        said = (
            f"{network} loses more rank than {_CHAIN} at {len(below):,} of {total} ({_at(below)}) and less at "
            f"{len(above):,} ({_at(above)})."
        )
    else:
        word, found = ("more", below) if below else ("less", above)
        said = f"{network} loses {word} rank than {_CHAIN} at {len(found):,} of {total} ({_at(found)})."
    if open_:
        said += f" At {len(open_):,} more the certified bounds are too wide to compare; {remedy}."
    return said


_CHAIN = "a random Gaussian chain of the same widths"


def _at(layers: Sequence[Compared]) -> str:
    most = max(layers, key=lambda x: abs(x.difference))
    return f"{_most(layers)}{most.name}: {most.measured:,} against {most.predicted:,.0f}"


def _most(layers: Sequence[Compared]) -> str:
    return "most at " if len(layers) > 1 else ""
