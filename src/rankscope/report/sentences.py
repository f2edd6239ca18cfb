"""What a profile shows, one plain sentence a finding, in an order that a reader wants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.views.against_random import MEANING
from rankscope.views.phrases import counted, first_few, joined, number, own_verb, span
from rankscope.views.sentences import phrase, sentence

if TYPE_CHECKING:
    from rankscope.jacobian import JacobianProfile

__all__ = ["Finding", "findings"]

_NAMED = ("paper", "reference", "torch")
_SHOWN = 4  # names in one sentence; the table has them all
_ADJOINT_LIMIT = 1e-3


@dataclass(frozen=True)
class Finding:
    """``finding``: a result; ``caution``: what limits it; ``meaning``: how to read it."""

    text: str
    kind: Literal["finding", "caution", "meaning"] = "finding"

    @classmethod
    def of(cls, fact: Fact) -> Finding:
        """A fact as its sentence."""
        return cls(sentence(fact), "caution" if fact.caution else "meaning")


def findings(profile: JacobianProfile, network: str | None = None) -> list[Finding]:
    """Results, then cautions, then how to read them; ``network`` says which one it is where a page has several."""
    rows = list(profile.reading.rows)
    made = [Finding(t) for t in _results(profile, rows, network)]
    made += [Finding(t, "caution") for t in _cautions(profile, rows)]
    made += [Finding(t, "meaning") for t in _meanings(profile)]
    return made


def _results(profile: JacobianProfile, rows: list[dict[str, Any]], network: str | None) -> Iterator[str]:
    first, last = rows[0], rows[-1]
    count = _images(profile)
    ends = [first, last] if len(rows) > 1 else [first]
    of = f" of {network}" if network else ""
    yield (
        f"Function rank{of} (largest over {count}, tolerance: {profile.tolerance.name}) is "
        f"{' and '.join(_at(row) for row in ends)}."
    )
    yield from _estimated(rows)
    if profile.reading.one_size:  # what is lost between two layers is that of one and the same sample
        yield from _loss(profile, rows)
    yield from _spread(profile, rows)
    if profile.comparable:
        yield profile.against_random().sentence_about(network or "the network")
    yield from _conventions(profile)


def _estimated(rows: list[dict[str, Any]]) -> Iterator[str]:
    probed = [row for row in rows if row.get("bracket") is not None]
    if probed:
        where = f"{len(probed):,} of {counted(len(rows), 'cut point')}"
        trust = "bounds" if all(row["certified"] for row in probed) else "standard errors"
        yield f"At {where} the rank is an estimate from Lanczos probes; the table of layers has its {trust}."


def _loss(profile: JacobianProfile, rows: list[dict[str, Any]]) -> Iterator[str]:
    """The largest falls; between estimated ranks, those beyond the errors of both."""
    reading = profile.reading
    doubts = [reading.doubt(k) for k in range(len(rows))]
    seen = [k for k, row in enumerate(rows) if row["true_cut"]] or list(range(len(rows)))
    drops = []
    for i, k in pairwise(seen):
        a, b = rows[i], rows[k]
        lost = a["rank"]["max"] - b["rank"]["max"]
        if lost > math.hypot(doubts[i], doubts[k]):
            drops.append((lost, a, b))
    chosen = max((d for d in drops if d[2]["rank"]["max"] < _room(d[2])), key=lambda d: d[0], default=None)
    if chosen is not None:
        lost, a, b = chosen
        yield (
            f"Most rank is lost between {a['name']} and {b['name']}: it falls from {a['rank']['max']:,} to "
            f"{b['rank']['max']:,}, where {_room(b):,} is possible."
        )
    forced = max((d for d in drops if _keeps_all(d[2])), key=lambda d: d[0], default=None)
    if forced is not None:
        lost, a, b = forced
        yield (
            f"Rank falls by {lost:,} from {a['name']} to {b['name']} because {b['name']} has only "
            f"{counted(b['rows'], 'output')}, and it uses all of them."
        )
    if all(map(_keeps_all, rows)):
        yield "On the best image every layer keeps all the rank that its width and the chosen columns allow."


def _keeps_all(row: dict[str, Any]) -> bool:
    """Whether the function rank is all that there can be; an estimate that says so has to have it as lower bound."""
    value = row["rank"]["max"] if row.get("bracket") is None else row["function_rank"]["lower"]
    return bool(value == _room(row))


def _spread(profile: JacobianProfile, rows: list[dict[str, Any]]) -> Iterator[str]:
    if len(profile.images) < 2:
        return
    apart = [r["rank"]["max"] - r["rank"]["min"] for r in rows]
    # of two estimates, both of which may be off
    most = [math.sqrt(2) * profile.reading.doubt(k) for k in range(len(rows))]
    varied = [k for k in range(len(rows)) if apart[k] > most[k]]
    if varied:
        widest = rows[max(varied, key=lambda k: apart[k])]
        low, middle, high = (widest["rank"][k] for k in ("min", "median", "max"))
        yield (f"Rank varies most between images at {widest['name']}: {low:,} to {high:,}, median {number(middle)}.")
    elif any(most):
        yield "At no layer do the images' ranks differ by more than the errors of the estimates."
    else:
        every = "Both" if len(profile.images) == 2 else f"All {len(profile.images):,}"
        yield f"{every} images have the same rank at every layer."


def _conventions(profile: JacobianProfile) -> Iterator[str]:
    """The layer where another tolerance changes the function rank most; nothing where none changes it."""
    own = np.array(profile.function_rank)
    names = [name for name in _NAMED if name != profile.tolerance.name]
    others = np.array([profile.with_tolerance(name).function_rank for name in names])
    changed = np.abs(others - own).max(axis=0)
    if changed.any():
        layer = int(changed.argmax())
        ranks = joined(f"{rank:,} ({name})" for name, rank in zip(names, others[:, layer].tolist(), strict=True))
        yield (
            f"Other tolerances change the function rank most at {profile.layers[layer].name}: it is {ranks}, where "
            f"{profile.tolerance.name} gives {own[layer]:,}."
        )


def _cautions(profile: JacobianProfile, rows: list[dict[str, Any]]) -> Iterator[str]:
    for kind in (FactKind.RANDOM_WEIGHTS, FactKind.FACTORY_BUILT):
        yield from map(sentence, of_kind(profile.facts, kind))
    rises = profile.rises()
    if rises:
        text = _list([f"{k} (by {v:,})" for k, v in rises.items()])
        yield (
            f"Rank rises with depth at {text}. Exact rank cannot rise. The threshold follows each layer's own largest "
            "singular value, so the rise is numerical."
        )
    near = [r for r in rows if r["certified"] and r["near_threshold"]]
    if near:
        text = _list([f"{r['name']} ({r['near_threshold']:,})" for r in near])
        yield (
            f"At {text}, some singular values are so near the threshold that {profile.dtype} rounding decides whether "
            "they count (in brackets: how many, in the worst image). The rank there is known only within its bounds."
        )
    bare = [r["name"] for r in rows if not r["certified"]]
    if bare:
        why = phrase(profile.certificate)
        yield f"The ranks at {_list(bare)} are not certified ({why})."
    zero = [f"{r['name']} ({counted(r['zero_images'], 'image')})" for r in rows if r["zero_images"]]
    if zero:
        yield f"The Jacobian is exactly zero at {_list(zero)}: these outputs do not depend on the chosen inputs."
    bad = [f"{r['name']} ({counted(r['not_finite_images'], 'image')})" for r in rows if r["not_finite_images"]]
    if bad:
        yield f"The Jacobian has NaN or infinite entries at {_list(bad)}. These images are not counted there."
    for name, why in profile.unmeasured.items():
        yield f"{name} was not measured: {why}."
    if profile.skipped:
        named = _list([f"{k} ({v})" for k, v in profile.skipped.items()])
        yield f"{counted(len(profile.skipped), 'image')} could not be used: {named}."
    inside = [r["name"] for r in rows if not r["true_cut"]]
    if inside:
        yield (
            f"{_list(inside)} {own_verb(len(inside), 'be')} inside a branch. Information also passes around "
            "it, so the rank there may be larger or smaller than before and after."
        )
    if profile.adjoint_error is not None and profile.adjoint_error > _ADJOINT_LIMIT:
        yield f"Forward and reverse mode disagree by {profile.adjoint_error:.1%}. Do not trust these numbers."
    most = max(profile.kinks, default=0)
    if most:
        yield (
            f"In the worst image {counted(most, 'unit')} {own_verb(most, 'be')} within rounding error of a kink, such "
            "as ReLU at 0 or two equal entries of a max pool. Another precision may take the derivative on the other "
            "side; the bounds hold for this side."
        )


def _meanings(profile: JacobianProfile) -> Iterator[str]:
    inputs = [math.prod(shape) for shape in profile.input_shapes or (profile.input_shape,)]
    counts = profile.columns.counts or (profile.columns.count,) * len(inputs)
    if any(columns < size for columns, size in zip(counts, inputs, strict=True)):
        yield (
            f"These are partial ranks: {span(min(counts), max(counts))} of {span(min(inputs), max(inputs))} input "
            "directions. A fall with depth is evidence that the full rank falls, but no proof. The paper's Lemma 2 "
            "holds for the exact rank at one input, not for numerical rank or for the maximum over inputs."
        )
    if profile.comparable:
        yield MEANING
    elif profile.tolerance.atol:
        yield (
            f"No random chain is shown: the tolerance {profile.tolerance.name} has an absolute part, and a random "
            "chain has no scale of its own."
        )
    yield from map(sentence, of_kind(profile.facts, FactKind.SEVERAL_SIZES))
    if profile.background == "zero":
        yield "The image was set to zero outside the patch, as the authors' code does. The ranks hold at that input."


def _room(row: dict[str, Any]) -> int:
    if "room" in row:
        return int(row["room"][1])
    return min(row["rows"], row["columns"])


def _of(row: dict[str, Any]) -> str:
    return f"{row['rank']['max']:,} of {_room(row):,} possible"


def _at(row: dict[str, Any]) -> str:
    return f"{_of(row)} at {row['name']}"


def _images(profile: JacobianProfile) -> str:
    return counted(len(profile.images), "image" if len(profile.input_shape) == 3 else "sample")


def _list(names: list[str]) -> str:
    return first_few(names, _SHOWN)
