"""Fig. 4 in numbers: what is shown of a network beside the paper, and under which η."""

from __future__ import annotations

from rankscope._base.text import counted, own_verb
from rankscope.deficit import ClassDependency, DependencyTable, Status
from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.measured import Prepared

__all__ = ["ETA", "KEEP", "MANY", "PANELS", "SOLVED", "compare", "replaced", "shown_class", "solution", "which_eta"]

ETA = 20.0  # paper, §6.2
KEEP = 0.9  # of the class's accuracy: what the deficit asks for
MANY = (1, 5, 20)  # the deficit's k: how many others may be used
# As independence_deficit names them, with their η. The third is rankscope's own: the largest η that keeps the accuracy,
# since under the text's reading η = 20 may outweigh all that the logits share.
SOLVED: dict[str, tuple[str, float | None]] = {
    "paper": ("all", ETA),
    "reference": ("reference", ETA),
    "largest-eta": ("all", None),
}
# Accuracy on positive samples with the logit replaced, in %: paper, caption of Fig. 4 (b, c, d). Of the classes in the
# centre the text names one alone, of panel (c).
PANELS = {"ResNet-50": ("b", 98.0, None), "GluMixer-24": ("c", 90.0, "junco"), "Swin-T": ("d", 82.0, None)}
# where the smallest η tried is shown
_NONE_KEEPS = (Status.NO_ETA_KEEPS, Status.NOT_CONVERGED)
_WHY = (
    "the text names only the class of panel (c); elsewhere ours is the class that others explain best among those that "
    "they replace; the authors' solver stops early, ours is exact"
)
_CODE = "5,000 plain gradient steps at rate 1e-5 on the 50 positive images of the class (999 unknowns), no intercept"
_FIGURE = "only the figure shows it, in {}; no value in the text"


def solution(as_printed: str) -> str:
    """On what a solution of ``SOLVED`` is fitted.

    >>> solution("reference"), solution("largest-eta")
    ('positive images, no intercept', 'all images, intercept')
    """
    return "positive images, no intercept" if SOLVED[as_printed][0] == "reference" else "all images, intercept"


def shown_class(table: DependencyTable, network: str) -> ClassDependency:
    """The class that the text names, if it is among the classes, else the best explained one that others replace.

    Replaced is a class whose accuracy on its own images and on all of them is kept, beyond the null. Where there is
    none, classes of which the network gets an image right come first: no other can keep anything.
    """
    named = PANELS.get(network, ("", 0.0, None))[2]
    for row in table:
        if named is not None and row.name == named and row.n_dependencies:
            return row
    return max(
        table,
        key=lambda r: (
            r.n_dependencies > 0,
            replaced(r),
            r.positive_accuracy > 0,
            r.status is Status.DEPENDENT,
            r.r2,
        ),
    )


def replaced(row: ClassDependency) -> bool:
    """Whether the others of this solution really stand for the class: both accuracies are kept, beyond the null."""
    own = row.positive_accuracy_replaced >= KEEP * row.positive_accuracy > 0
    return row.status is Status.DEPENDENT and own and row.accuracy_replaced >= KEEP * row.accuracy


def keeps(row: ClassDependency) -> bool:
    """Whether some η of the third solution keeps 90% of the accuracy."""
    return row.status not in _NONE_KEEPS


def which_eta(row: ClassDependency) -> str:
    """What η the third solution has: the walk down from η_max stops where the accuracy is kept, or at its end."""
    if not keeps(row):
        return f"the smallest η tried, {row.eta:.2g}: none keeps 90% of the accuracy"
    return f"the largest η that keeps 90% of the accuracy, {row.eta:.2g}"


def compare(one: Prepared, table: DependencyTable, row: ClassDependency, as_printed: str) -> list[PaperComparison]:
    """The class that is shown, then all classes: how many of them a few others determine."""
    label = one.network.name
    letter, positive, _ = PANELS.get(label, ("", None, None))
    panel = f" (panel {letter})" if letter else ""
    by_others = 100 * row.positive_accuracy_replaced if row.n_dependencies else None
    whole = 100 * row.accuracy_replaced if row.n_dependencies else None
    how = f"class {row.name!r}, {f'η = {ETA:g}' if as_printed != 'largest-eta' else which_eta(row)}"
    at = ""
    if as_printed == "largest-eta":
        at = f" at {'its largest η' if keeps(row) else 'the smallest η tried'}"
        panel, positive = "", None
    how = f"{how}, {solution(as_printed)}"
    why = one.why(_WHY, data="also") if by_others is not None else "at this η no other class is used at all"
    code = _CODE if label in PANELS else ""
    blue, green = (_FIGURE.format(colour) if label in PANELS else "" for colour in ("blue", "green"))
    on_positives = "a number in the caption of Fig. 4" if positive is not None else ""
    return [
        PaperComparison(
            f"{label}{at}{panel}: accuracy on positives, replaced (%)", positive, by_others, None, how, why,
            on_positives, code,
        ),
        PaperComparison(
            f"{label}{at}{panel}: accuracy on positives, own logit (%)", None, 100 * row.positive_accuracy, None, how,
            one.why("it depends on the exact weights and images", data="also"), green,
        ),
        PaperComparison(
            f"{label}{at}{panel}: accuracy on all images, replaced (%)", None, whole, None, how, why, blue, code,
        ),
        PaperComparison(
            f"{label}{at}{panel}: accuracy on all images, own logit (%)", None, 100 * row.accuracy, None, how,
            one.why("it depends on the exact weights and images", data="also"),
        ),
        PaperComparison(
            f"{label}{at}{panel}: other classes used", None, float(row.n_dependencies), None, how,
            one.why("gradient steps never reach exact zeros", data="also"),
            "k ≪ 1000 (§6.2)" if label in PANELS else "", code,
        ),
        *_deficits(one, table, as_printed),
    ]  # fmt: skip


def _deficits(one: Prepared, table: DependencyTable, as_printed: str) -> list[PaperComparison]:
    """The share of classes that at most k others determine, beyond the null and whatever it says."""
    label = one.network.name
    if as_printed == "largest-eta":
        low, high = min(r.eta for r in table), max(r.eta for r in table)
        label = f"{label} at each class's own η"
        eta = f"each class at its own η ({low:.2g}…{high:.2g}): the largest that keeps 90%, else the smallest tried"
    else:
        eta = f"η = {ETA:g} for every class"
    why = one.why("the share depends on k and on what counts as kept", data="also")
    printed = "many categories, without a number (§6.2)" if one.network.name in PANELS else ""
    rows = []
    for beyond, words in ((True, ", beyond the null"), (False, ", regardless of the null")):
        null = "R² above that of permuted logits" if beyond else "noise would count as well"
        rows += [
            PaperComparison(
                f"{label}: deficit({k}){words} (% of {len(table)} classes)",
                None, 100 * table.deficit(k, KEEP, beyond_null=beyond), None,
                f"at most {counted(k, 'other')} {own_verb(k, 'keep')} {KEEP:.0%} of the class's accuracy and of that "
                f"on all images; {eta}, {solution(as_printed)}; {null}",
                why,
                printed,
            )
            for k in MANY
        ]  # fmt: skip
    return rows
