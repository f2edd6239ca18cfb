"""Counts have a comma between thousands wherever people read them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.jacobian.against_random import AgainstRandom
from rankscope.spectra import RankEstimate
from rankscope.theory.bounds import CompositionBound
from rankscope.views.chain_text import chain_text
from rankscope.views.chains import ChainView, Law
from rankscope.views.compared import Compared
from rankscope.views.deficit_text import dependency_text, exact_reasons
from rankscope.views.probe_text import probes_text, remedies_text
from rankscope.views.probes import Bounded, ProbeRow, ProbesView, RemediesView, RemedyLine
from rankscope.views.profile_text import profile_text

BARE = re.compile(r"(?<![\d.,])\d{4,}(?![\d.]*e)")  # four digits in a row, and no decimals
MANY = 20480


def test_the_search_sees_a_bare_number() -> None:
    assert BARE.search("rank 2048 of 4,096")
    assert not BARE.search("rank 2,048, 0.00012, 1.2345, [64, 1,064]")


def test_a_profile() -> None:
    rank = {"min": 1024, "median": 1030.5, "max": MANY}
    row = {
        "name": "fc", "rows": MANY, "rank": rank, "function_rank": {"lower": MANY, "upper": MANY + 1},
        "certified": True, "rises_by": MANY, "near_threshold": MANY, "zero_images": MANY, "not_finite_images": MANY,
        "uncalled_images": MANY, "true_cut": True,
    }  # fmt: skip
    text = profile_text(
        [row], head=("model",), certificate=Fact(FactKind.PROBES, {"probes": MANY, "failure": 1e-6}),
        method=Fact(FactKind.PUSHED, {"name": "vmap(jvp)"}), adjoint_error=None, kinks=(MANY,), unmeasured={},
        skipped={}, facts=(),
    )  # fmt: skip
    assert not BARE.search(text), text
    assert "1,030.5  20,480  [20,480, 20,481]" in text


def test_probes() -> None:
    count = Bounded(MANY, 1024, MANY, True)
    row = ProbeRow("a", "a", MANY, count, count, count, replace(count, certified=False), True, MANY, (MANY, 1024), "",
                   Fact(FactKind.NOT_CERTIFIED), ())  # fmt: skip
    text = probes_text(ProbesView((row,), (3, 64, 64), MANY, "dense", MANY, "paper", "float32", "cpu", MANY))
    assert not BARE.search(text), text
    ranks = np.full((2, 3), 1024.5)
    line = RemedyLine("plain", ranks, ranks, certain=False, batchnorm=True)
    view = RemediesView((line,), np.arange(1, 4), MANY, None, 2, 1.0, "paper", MANY)
    assert not BARE.search(remedies_text(view)), remedies_text(view)


def test_a_chain() -> None:
    found = np.array([[1024.0, 2048.0], [1030.0, 2048.0]])
    view = ChainView(
        title="chain", dtype="float64", tolerance="paper", samples=MANY, seconds=1.0, width=MANY, depth=2,
        residual=False, ranks=found, dimensions=found, predicted=(found[0], found[1]), law=Law.GAUSSIAN,
        law_range="far", in_range=False, seeds=(0, 1), stops=(None, None), singular=(((1, 1024),), ()), rises=(),
        floor=0.1,
    )  # fmt: skip
    assert not BARE.search(chain_text(view)), chain_text(view)
    assert "1,027.0 [1,024, 1,030]" in chain_text(view)


def test_a_comparison() -> None:
    one = Compared("fc", 3, MANY, MANY, 1024, 1024, 1024, 2048.0, 3.0, 2048, 2048, True)
    text = str(AgainstRandom("net", rs.Tolerance.paper(), MANY, (one, replace(one, measured=4096, lower=4096))))
    assert not BARE.search(text), text


def test_a_deficit() -> None:
    columns = ["name", "status", "eta_over_eta_max", "n_dependencies", "r2", "r2_held_out", "r2_null"]
    values = dict.fromkeys([*columns, "positive_accuracy", "positive_accuracy_replaced", "top"], 0.5)
    table = pd.DataFrame([values | {"name": "a", "top": "b", "n_dependencies": MANY}])
    text = dependency_text(
        table, classes=MANY, samples_used="all", eta=20, keep=None, samples=(MANY, MANY), null=("permutation", MANY),
        counts={"dependent": MANY}, without_null=MANY, exact={"features": MANY},
        reasons=exact_reasons(MANY, MANY, MANY), facts=(),
    )  # fmt: skip
    assert not BARE.search(text), text


def test_small_records() -> None:
    said = [
        str(RankEstimate(MANY, 1024, MANY, 0.1, 0.1, "paper", "float32")),
        str(rs.theory.predicted_rank(2048, 1500)),
        str(CompositionBound(MANY, MANY, MANY, 1.0, 1e-4, "paper")),
    ]
    assert not [text for text in said if BARE.search(text)], said
