"""Fig. 4 where no penalty keeps the accuracy, and the letters of its panels."""

from __future__ import annotations

import statistics
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rankscope.deficit import DependencyTable, independence_deficit
from rankscope.reproduce.deficit import _median
from rankscope.reproduce.deficit_figure import draw_deficit
from rankscope.reproduce.deficit_rows import compare, replaced, shown_class
from rankscope.reproduce.partial_rank import _compare as compare_ranks


@pytest.fixture(scope="module")
def tables() -> dict[str, DependencyTable]:
    """Logits that tell nothing of one another, and logits of which the last is the mean of two others."""
    rng = torch.Generator().manual_seed(0)
    alone = torch.randn(400, 6, generator=rng)
    tied = torch.randn(400, 6, generator=rng)
    tied[:, 5] = (tied[:, 0] + tied[:, 1]) * 0.8
    given: dict[str, Any] = {"samples_used": "all", "held_out": 0, "permutations": 1}
    names = [f"class {k}" for k in range(6)]
    return {
        kind: independence_deficit(logits, logits.argmax(1), class_names=names, **given, eta=eta)
        for kind, logits, eta in (("alone", alone, None), ("tied", tied, None), ("zero", alone, 1e6))
    }


def one(name: str) -> Any:
    return SimpleNamespace(network=SimpleNamespace(name=name), why=lambda text, data: text)


def test_the_smallest_eta_is_not_called_the_largest_that_keeps(tables: dict[str, DependencyTable]) -> None:
    alone, tied = tables["alone"][0], tables["tied"][5]
    assert (alone.status, tied.status) == ("no eta keeps accuracy", "dependent")
    said = f"the smallest η tried, {alone.eta:.2g}: none keeps 90% of the accuracy"
    rows = compare(one("ResNet-50"), tables["alone"], alone, "largest-eta")
    of_class, of_all = rows[:5], rows[5:]
    assert all("largest" not in row.quantity + row.how for row in of_class)
    assert rows[0].quantity.startswith("ResNet-50 at the smallest η tried: ")
    assert said in rows[0].how
    kept = compare(one("ResNet-50"), tables["tied"], tied, "largest-eta")
    assert kept[0].quantity.startswith("ResNet-50 at its largest η: ")
    assert f"the largest η that keeps 90% of the accuracy, {tied.eta:.2g}" in kept[0].how
    # every class has its own η there: the summary must not carry the one of the class that is shown
    low, high = (f(r.eta for r in tables["alone"]) for f in (min, max))
    own = f"each class at its own η ({low:.2g}…{high:.2g}): the largest that keeps 90%, else the smallest tried"
    assert len(of_all) == 6
    assert all(own in row.how and "each class's own η" in row.quantity for row in of_all)


def test_panels_say_the_same_and_carry_the_papers_letters(tables: dict[str, DependencyTable]) -> None:
    zero, alone, tied = tables["zero"][0], tables["alone"][0], tables["tied"][5]
    assert not zero.n_dependencies
    drawn = [("GluMixer-24", zero, alone), ("Swin-T", zero, tied), ("mine", zero, alone)]
    panels = draw_deficit(drawn, "paper").axes
    titles = [" ".join(ax.get_title(loc="left").split()) for ax in panels]
    assert titles == [
        "(c) GluMixer-24, η = 20, paper: all images, intercept",
        "(d) Swin-T, η = 20, paper: all images, intercept",
        "mine, η = 20, paper: all images, intercept",
        f"GluMixer-24: the smallest η tried, {alone.eta:.2g}: none keeps 90% of the accuracy; all images, intercept",
        f"Swin-T: the largest η that keeps 90% of the accuracy, {tied.eta:.2g}; all images, intercept",
        f"mine: the smallest η tried, {alone.eta:.2g}: none keeps 90% of the accuracy; all images, intercept",
    ]
    # the second row is not solved as the first one is
    coded = draw_deficit(drawn, "reference").axes
    assert coded[0].get_title(loc="left").endswith("η = 20, reference:\npositive images, no intercept")
    assert coded[3].get_title(loc="left").endswith("\nall images, intercept")
    assert "no eta keeps accuracy" in panels[3].texts[-1].get_text()
    row = compare(one("GluMixer-24"), tables["zero"], zero, "paper")[0]
    assert "(panel c)" in row.quantity


def test_the_share_of_classes_is_the_deficit_of_the_library(tables: dict[str, DependencyTable]) -> None:
    """Classes of which at most k others keep 90% of the accuracy: counted by hand and by ``DependencyTable``."""
    table = tables["tied"]
    rows = {r.quantity: r.ours for r in compare(one("net"), table, table[5], "paper")[5:]}
    assert list(rows) == [
        f"net: deficit({k}){words} (% of 6 classes)"
        for words in (", beyond the null", ", regardless of the null")
        for k in (1, 5, 20)
    ]
    for beyond, words in ((True, "beyond the null"), (False, "regardless of the null")):
        for k in (1, 5, 20):
            by_hand = 0
            for row in table:
                points = [(p.n_dependencies, p.accuracy_replaced, p.positive_accuracy_replaced) for p in row.tried]
                points.append((row.n_dependencies, row.accuracy_replaced, row.positive_accuracy_replaced))
                good = any(
                    0 < n <= k and whole >= 0.9 * row.accuracy and own >= 0.9 * row.positive_accuracy > 0
                    for n, whole, own in points
                )
                refused = row.status in ("all zero", "not converged") or (beyond and row.status == "not beyond null")
                by_hand += good and not refused
            assert rows[f"net: deficit({k}), {words} (% of 6 classes)"] == pytest.approx(100 * by_hand / 6)
    # classes 0, 1 and 5 share one relation: two others determine each of them
    assert rows["net: deficit(1), beyond the null (% of 6 classes)"] == 0
    assert rows["net: deficit(5), beyond the null (% of 6 classes)"] == 50


def test_the_null_counts_in_one_share_and_not_in_the_other(tables: dict[str, DependencyTable]) -> None:
    rows = tuple(replace(r, status="not beyond null") if r.index == 5 else r for r in tables["tied"])
    table = replace(tables["tied"], rows=rows)
    shares = {r.quantity: r.ours for r in compare(one("net"), table, table[5], "paper")[5:]}
    for k in (5, 20):
        without, whatever = (
            shares[f"net: deficit({k}), {words} (% of 6 classes)"]
            for words in ("beyond the null", "regardless of the null")
        )
        assert whatever - without == pytest.approx(100 / 6)


def test_the_class_that_the_text_names_is_shown_if_others_explain_it(tables: dict[str, DependencyTable]) -> None:
    def with_junco(index: int, **changed: Any) -> DependencyTable:
        rows = [replace(r, name="junco", **changed) if r.index == index else r for r in tables["tied"]]
        return replace(tables["tied"], rows=tuple(rows))

    best = shown_class(tables["tied"], "GluMixer-24").index
    other = next(r.index for r in tables["tied"] if r.n_dependencies and r.index != best)
    assert shown_class(with_junco(other), "GluMixer-24").index == other
    assert shown_class(with_junco(other), "Swin-T").index == best  # named in the text on panel (c) alone
    # nothing can be shown of a class that no other takes part in
    assert shown_class(with_junco(other, depends_on=()), "GluMixer-24").index == best


@pytest.mark.parametrize("features", [5, 6, 7])
def test_exact_dependence_is_told_of_the_classes_that_have_it(
    features: int, tables: dict[str, DependencyTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes 0, 1 and 5 share one relation, however many features there are; the other logits share none."""
    from rankscope.reproduce import deficit as module

    given = one("net")
    given.about = dict
    settings: Any = SimpleNamespace(as_printed="paper", scale="small", device=torch.device("cpu"), to_dict=dict)
    for kind, exact in (("tied", 3), ("alone", 0)):
        table = replace(tables[kind], feature_dimension=features).to_dict()
        for name, found in {"prepared": [given], "pass_over": {}, "_solved": table, "data_facts": []}.items():
            monkeypatch.setattr(module, name, lambda *_, found=found: found)
        notes = module.deficit("fig4", settings).notes
        told = (
            f"net: {exact} of 6 classes are exact linear combinations of the others. {features} features make 6 logits."
        )
        assert (told in notes) == (exact > 0)
        assert any("exact linear" in note for note in notes) == (exact > 0)


def test_a_class_that_others_really_replace_is_preferred() -> None:
    """Class 5 is explained better, but loses half of its accuracy; class 4 keeps it on its own and on all images."""
    logits = torch.randn(600, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits[:, 4] = 1.2 * (logits[:, 0] - logits[:, 1]) + 0.02 * logits[:, 4]
    logits[:, 5] = 3.0 * (logits[:, 2] - logits[:, 3])
    labels = logits.argmax(1)
    rows = list(independence_deficit(logits, labels, eta=0.05, held_out=0, permutations=2))
    kept = rows[4]
    # the better explained class loses its accuracy on its own images
    lost = replace(rows[5], r2=0.9999, positive_accuracy_replaced=0.5 * rows[5].positive_accuracy)
    table = independence_deficit(logits, labels, eta=0.05, held_out=0, permutations=2)
    others = [replace(r, r2=min(r.r2, 0.5)) for r in rows[:4]]
    both = replace(table, rows=(*others, kept, lost))
    assert replaced(kept)
    assert not replaced(lost)
    assert max(both, key=lambda r: r.r2).index == 5
    assert replaced(shown_class(both, "net"))
    # on all images too
    off = replace(kept, accuracy_replaced=0.5 * kept.accuracy)
    assert not replaced(off)


def test_the_accuracy_on_all_images_stands_beside_that_on_positives(tables: dict[str, DependencyTable]) -> None:
    """Counted by hand: the logit of class 5 replaced by its solution, the largest logit against every label."""
    table = tables["tied"]
    row = table[5]
    rows = {r.quantity: r for r in compare(one("Swin-T"), table, row, "paper")}
    whole = rows["Swin-T (panel d): accuracy on all images, replaced (%)"]
    assert (whole.paper, whole.ours) == (None, 100 * row.accuracy_replaced)
    assert rows["Swin-T (panel d): accuracy on all images, own logit (%)"].ours == 100 * row.accuracy
    rng = torch.Generator().manual_seed(0)
    torch.randn(400, 6, generator=rng)
    logits = torch.randn(400, 6, generator=rng)
    logits[:, 5] = (logits[:, 0] + logits[:, 1]) * 0.8
    labels = logits.argmax(1)
    mixed = logits.double()
    weights = torch.zeros(6, dtype=torch.float64)
    weights[list(row.depends_on)] = torch.tensor(row.weights, dtype=torch.float64)
    mixed[:, 5] = logits.double() @ weights + row.intercept
    right = mixed.argmax(1) == labels
    assert whole.ours == pytest.approx(100 * float(right.double().mean()))
    positive = rows["Swin-T (panel d): accuracy on positives, replaced (%)"]
    assert positive.paper == 82
    assert positive.ours == pytest.approx(100 * float(right[labels == 5].double().mean()))
    text = draw_deficit([("Swin-T", row, row)], "paper").axes[0].texts[-1].get_text()
    assert f"replaced {row.accuracy_replaced:.0%}, own logit {row.accuracy:.0%} of all images" in text


@pytest.mark.parametrize("counts", [[], [3], [5, 1], [4, 0, 2], [1, 9, 3, 7]])
def test_the_median_is_one_of_the_numbers(counts: list[int]) -> None:
    rows: list[Any] = [SimpleNamespace(n_dependencies=n) for n in counts]
    assert _median(rows) == (statistics.median_high(counts) if counts else 0)


@pytest.mark.parametrize("papers", [True, False])
def test_ranks_beside_the_paper_are_those_of_the_first_and_the_last_layer(papers: bool) -> None:
    paper = SimpleNamespace(layers=11, family="resnet") if papers else None
    net = SimpleNamespace(name="net", paper=paper, cuts=lambda as_printed: as_printed if papers else "blocks")
    settings = SimpleNamespace(patch="top-left")
    given: Any = SimpleNamespace(network=net, settings=settings, why=lambda text, **more: f"{more}: {text}")
    layers = [{"rank": k, "layer": f"layer{k}"} for k in (9, 5, 7, 3.5)]
    found = {"layers": layers, "rises": [("b", "c")], "images": ["x", "y"]}
    rows = {r.quantity: r for r in compare_ranks(given, found, "reference")}
    assert {name: (row.paper, row.ours) for name, row in rows.items()} == {
        "net: layers": (11 if papers else None, 4),
        "net: rank at the first layer": (None, 9),
        "net: rank at the last layer": (None, 3.5),
        # the paper says of its own networks alone that none rises
        "net: rises along the depth": (0 if papers else None, 1),
    }
    how = "mean rank of 2 images, tolerance reference, background zero, patch at top-left, at layer3.5"
    assert rows["net: rank at the last layer"].how == how
    assert ("logits" in rows["net: layers"].code) == papers


def test_a_class_without_a_right_image_decides_nothing() -> None:
    """Logit 4 is the sum of 0 and 1 and never the largest: well explained, but no accuracy is there to keep."""
    logits = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    logits[:, 4] = 0.5 * (logits[:, 0] + logits[:, 1]) - 9
    labels = logits.argmax(1)
    labels[:30] = 4
    table = independence_deficit(logits, labels, eta=1.0, samples_used="all", held_out=0, permutations=3)
    assert table[4].status == "dependent"
    assert table[4].positive_accuracy == 0
    assert max(table, key=lambda r: (r.n_dependencies > 0, r.status == "dependent", r.r2)).index == 4
    assert shown_class(table, "net").index != 4
    rows = {r.quantity: r.ours for r in compare(one("net"), table, table[4], "paper")[5:]}
    assert all(value == 0 for value in rows.values())
