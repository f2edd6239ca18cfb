"""The ``DependencyTable``: what every class depends on, how well, and against which null."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from rankscope._base.checks import count_of, number_of
from rankscope._base.encoding import read
from rankscope._base.errors import OutputError, RankscopeError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope._base.records import Record
from rankscope.deficit.dependency import ClassDependency, Status
from rankscope.deficit.regularisation_path import RegularisationPath
from rankscope.views.deficit_figure import draw_dependence
from rankscope.views.deficit_text import dependency_text, exact_reasons
from rankscope.views.noted import Noted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DependencyTable"]

_Follow = Callable[[int, int, float], RegularisationPath]
_UNSOLVED = (Status.ALL_ZERO, Status.NOT_CONVERGED)
_NO_MORE_THAN_NOISE = (Status.NOT_BEYOND_NULL, Status.NO_NULL)


@dataclass(frozen=True, eq=False, repr=False)
class DependencyTable(Noted, Record):
    """Result of ``independence_deficit``: one ``ClassDependency`` a class, with the settings that made it.

    ``table[i]`` is the record of class i (its index among all classes); iterating gives every record. ``keep`` is the
    share of accuracy that ``eta=None`` asked for, None at a fixed η. ``eta`` is what was asked for; the η and η_max of
    the records belong to logits divided by ``unit``, which is 1 for all but extreme logits. ``facts`` hold
    what to know before the numbers; ``notes`` are their sentences.
    """

    derived: ClassVar[tuple[str, ...]] = ("notes",)

    rows: tuple[ClassDependency, ...]
    samples_used: str
    eta: float | None
    keep: float | None
    tol: float
    samples: int
    held_out_samples: int
    n_classes: int
    logit_rank: int
    feature_dimension: int | None
    null: str
    permutations: int
    seed: int
    device: str
    versions: dict[str, str]
    unit: float = 1.0
    accuracy_kind: str = "overall"
    facts: tuple[Fact, ...] = ()
    # it holds the logits, which are no part of the result
    _follow: _Follow | None = field(default=None, init=False, compare=False)

    def following(self, follow: _Follow) -> DependencyTable:
        """The same, able to give the path of a class."""
        object.__setattr__(self, "_follow", follow)
        return self

    def __getitem__(self, index: int) -> ClassDependency:
        for row in self.rows:
            if row.index == index:
                return row
        raise UsageError(f"class {index} is not in this table of {len(self.rows)} classes; name it in classes=")

    def __iter__(self) -> Iterator[ClassDependency]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> pd.DataFrame:
        """One row per class, indexed by the class; ``top`` names the largest dependencies with their weights."""
        skip = {"index", "depends_on", "names", "weights", "tried"}
        lines = []
        for r in self.rows:
            line = {f.name: getattr(r, f.name) for f in dataclasses.fields(r) if f.name not in skip}
            line["eta_over_eta_max"] = r.eta_over_eta_max
            line["n_dependencies"] = r.n_dependencies
            line["top"] = ", ".join(f"{w:+.2f} {n}" for n, w in zip(r.names[:4], r.weights[:4], strict=True))
            lines.append(line)
        return pd.DataFrame(lines, index=pd.Index([r.index for r in self.rows], name="class"))

    def deficit(self, k: int, keep: float = 0.9, *, beyond_null: bool = True) -> float:
        """Share of the table's classes that at most ``k`` others determine while keeping ``keep`` of their accuracy.

        Both the class's accuracy on its own samples and the accuracy on all samples must be kept, by the solution of
        this table or, under ``eta=None``, any on the path to it. Classes with an all-zero or unfinished solution do
        not count, nor, with ``beyond_null``, those whose R² the permutation null reaches too; that needs a null.
        """
        if beyond_null and not self.permutations:
            raise UsageError(
                "no permutation null was run, so dependence cannot be distinguished from noise; measure with "
                "permutations=5, or ask for beyond_null=False"
            )
        k, keep = count_of(k, "k"), number_of(keep, "keep", above=0, most=1)
        if self.keep is not None and keep > self.keep:
            raise UsageError(
                f"keep is {keep}, but the path was followed only until {self.keep} of the accuracy was kept; "
                f"measure again with keep={keep}"
            )
        refused = {*_UNSOLVED, *(_NO_MORE_THAN_NOISE if beyond_null else ())}
        fewest = [r.fewest(keep) for r in self.rows if r.status not in refused]
        return sum(n is not None and n <= k for n in fewest) / len(self.rows)

    def path(self, index: int, *, points: int = 30, floor: float = 1e-2) -> RegularisationPath:
        """Exact solutions of class ``index`` at ``points`` values of η from η_max down to ``floor``·η_max."""
        self[index]
        if self._follow is None:
            raise UsageError("this table was read back without its logits; run independence_deficit again for a path")
        points, floor = count_of(points, "points", most=10**5), number_of(floor, "floor", above=0)
        if floor >= 1:
            raise UsageError(f"floor is {floor}; it must be below 1, where the path starts")
        return self._follow(index, points, floor)

    def plot(self, index: int | None = None, *, most: int = 8) -> Axes:
        """Class ``index`` with the ``most`` classes of largest |λ| around it, as in the paper's Fig. 4.

        By default the class that others explain best, beyond the null where there is one.
        """
        row = self.best_explained() if index is None else self[index]
        return draw_dependence(row, most=count_of(most, "most"))

    def best_explained(self) -> ClassDependency:
        """The class that others explain best beyond the null; the best explained one where there is none."""
        return max(self, key=lambda r: (r.status is Status.DEPENDENT, r.r2))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DependencyTable:
        """What ``to_dict`` wrote, without the logits that ``path`` needs; infinite values come back as NaN.

        Raises ``OutputError`` for anything else.
        """
        if data.get("schema_version") != cls.schema_version or data.get("kind") != cls.kind_name():
            raise OutputError(
                f"this is {data.get('kind')!r} of schema {data.get('schema_version')!r}; "
                f"a {cls.kind_name()!r} of schema {cls.schema_version} is needed"
            )
        rest = dict(data)
        if "convention" in rest:  # its name in earlier versions
            rest["samples_used"] = rest.pop("convention")
        if "facts" not in rest:  # sentences alone in earlier versions, all of them cautions
            told = [Fact(FactKind.EARLIER_NOTE, {"text": f"{one}."}, caution=True) for one in rest.get("notes", ())]
            rest["facts"] = [one.to_dict() for one in told]
        try:
            found: DependencyTable = read(cls, rest)
        except (KeyError, TypeError, ValueError, RankscopeError) as error:
            raise OutputError(f"this {cls.kind_name()} is damaged: {error}") from error
        return found

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        counts = Counter(r.status for r in self.rows)
        return dependency_text(
            self.table(),
            classes=self.n_classes,
            samples_used=self.samples_used,
            eta=self.eta,
            keep=self.keep,
            samples=(self.samples, self.held_out_samples),
            null=(self.null, self.permutations),
            counts={status.value: count for status, count in counts.most_common()},
            without_null=counts[Status.NO_NULL] if self.permutations else 0,
            exact=Counter(r.trivial.value for r in self.rows if r.trivial),
            reasons=exact_reasons(self.n_classes, self.logit_rank, self.feature_dimension),
            facts=self.facts,
        )
