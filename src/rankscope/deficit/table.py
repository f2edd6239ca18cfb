"""The ``DependencyTable``: what every class depends on, how well, and against which null."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from rankscope._base.errors import OutputError, UsageError
from rankscope.deficit.path import RegularisationPath

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ClassDependency", "DependencyTable", "PathPoint"]

_SCHEMA = 1


@dataclass(frozen=True)
class PathPoint:
    """One η that was tried on the way to the chosen one: how many classes it used and what it kept."""

    n_dependencies: int
    accuracy_replaced: float
    positive_accuracy_replaced: float


@dataclass(frozen=True)
class ClassDependency:
    """One class: the others that its logit is made of, and what holds of that.

    Attributes
    ----------
    index, name : int, str
        The class.
    status : str
        ``dependent``; ``all zero`` (no other class is used: η is at or above η_max, so nothing is explained);
        ``not beyond null`` (R² no higher than the permutation null reaches, or not held out); ``no null`` (no
        permutation was run, or too few arrangements of the target exist for one to reject anything, as with one sample
        a class: the weights may be those of noise); ``no eta keeps
        accuracy`` (under ``eta=None``; the smallest η tried is shown); ``not converged`` (gap above the tolerance).
    eta, eta_max : float
        Penalty used, and the least one with an all-zero solution; units of the squared logits.
    depends_on, names, weights : tuple
        The other classes with non-zero λ, by falling |λ|.
    intercept : float
        Constant of the fit; 0 under ``reference``.
    r2, r2_uncentred : float
        1 − residual/variance and 1 − residual/mean square, on the fitted samples.
    r2_held_out : float
        Centred R² on held-out samples (positive ones under ``reference``); NaN without any.
    r2_null, r2_null_max, r2_uncentred_null : float
        Mean and largest fitted R² over the permutations, and the mean uncentred one; NaN without permutations.
    r2_null_limit : float
        What ``r2`` must exceed: the null's mean plus four of its standard deviations.
    duality_gap : float
        (primal − dual)/primal.
    accuracy, accuracy_replaced : float
        Top-1 over all samples, with the true logit and with the replaced one.
    positive_accuracy, positive_accuracy_replaced : float
        The same over the class's own samples.
    trivial : str or None
        None where the class is no exact combination of the others; else why it is one: ``samples`` (fewer fitted
        samples than classes), ``features`` (fewer dimensions than classes), ``logits`` (neither is known).
    tried : tuple of PathPoint
        The path down to the chosen η; empty at a fixed η.
    """

    index: int
    name: str
    status: str
    eta: float
    eta_max: float
    depends_on: tuple[int, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    r2: float
    r2_uncentred: float
    r2_held_out: float
    r2_null: float
    r2_null_max: float
    r2_null_limit: float
    r2_uncentred_null: float
    duality_gap: float
    accuracy: float
    accuracy_replaced: float
    positive_accuracy: float
    positive_accuracy_replaced: float
    trivial: str | None
    tried: tuple[PathPoint, ...] = ()

    @property
    def n_dependencies(self) -> int:
        """Number of other classes used."""
        return len(self.depends_on)

    @property
    def eta_over_eta_max(self) -> float:
        """η/η_max; at 1 and above the solution is all zero. Infinite where nothing correlates at all."""
        return self.eta / self.eta_max if self.eta_max > 0 else math.inf

    def fewest(self, keep: float) -> int | None:
        """Fewest classes, at the η of this record or one tried on the path, that keep this share of the accuracies."""
        here = PathPoint(self.n_dependencies, self.accuracy_replaced, self.positive_accuracy_replaced)
        enough = [
            p.n_dependencies
            for p in (*self.tried, here)
            if p.n_dependencies > 0
            and p.positive_accuracy_replaced >= keep * self.positive_accuracy
            and p.accuracy_replaced >= keep * self.accuracy
        ]
        return min(enough) if enough and self.positive_accuracy > 0 else None


@dataclass(frozen=True, eq=False)
class DependencyTable:
    """Result of ``independence_deficit``: one ``ClassDependency`` a class, with the settings that made it.

    ``table[i]`` is the record of class i (its index among all classes); iterating gives every record. ``keep`` is the
    share of accuracy that ``eta=None`` asked for, None at a fixed η. ``eta`` is what was asked for; the η and η_max of
    the records belong to logits divided by ``unit``, which is 1 for all but extreme logits.
    """

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
    notes: tuple[str, ...] = ()
    _follow: Callable[[int, int, float], RegularisationPath] | None = field(default=None, repr=False)

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
        """One row a class, indexed by the class; ``top`` names the largest dependencies with their weights."""
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
                "no permutation null was run, so nothing tells dependence from noise; measure with permutations=5, or "
                "ask for beyond_null=False"
            )
        if k < 1:
            raise UsageError(f"k is {k}; a class needs at least 1 other to be determined by")
        if not 0 < keep <= 1:
            raise UsageError(f"keep is {keep}; give a share above 0, at most 1")
        if self.keep is not None and keep > self.keep:
            raise UsageError(
                f"keep is {keep}, but the path was followed only until {self.keep} of the accuracy was kept; "
                f"measure again with keep={keep}"
            )
        refused = {"all zero", "not converged"} | ({"not beyond null", "no null"} if beyond_null else set())
        fewest = [r.fewest(keep) for r in self.rows if r.status not in refused]
        return sum(n is not None and n <= k for n in fewest) / len(self.rows)

    def path(self, index: int, *, points: int = 30, floor: float = 1e-2) -> RegularisationPath:
        """Exact solutions of class ``index`` at ``points`` values of η from η_max down to ``floor``·η_max."""
        self[index]
        if self._follow is None:
            raise UsageError("this table was read back without its logits; run independence_deficit again for a path")
        if points < 1 or not 0 < floor < 1:
            raise UsageError(f"points is {points} and floor {floor}; give points from 1 on and 0 < floor < 1")
        return self._follow(index, points, floor)

    def plot(self, index: int, *, most: int = 8) -> Axes:
        """Class ``index`` with the ``most`` classes of largest |λ| around it, as in the paper's Fig. 4."""
        from rankscope.deficit.figure import draw_dependence

        return draw_dependence(self[index], most=most)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON (NaN and infinity as None); ``from_dict`` reads them back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("rows", "_follow")}
        rows = [_plain(dataclasses.asdict(r)) for r in self.rows]
        return {"schema_version": _SCHEMA, "kind": "dependency_table", **_plain(fields), "rows": rows}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DependencyTable:
        """What ``to_dict`` wrote, without the logits that ``path`` needs."""
        if data.get("schema_version") != _SCHEMA or data.get("kind") != "dependency_table":
            raise OutputError(
                f"this is {data.get('kind')!r} of schema {data.get('schema_version')!r}; "
                f"a 'dependency_table' of schema {_SCHEMA} is needed"
            )
        rest = {k: v for k, v in data.items() if k not in ("schema_version", "kind", "rows")}
        if "convention" in rest:  # its name in earlier versions
            rest["samples_used"] = rest.pop("convention")
        rest["notes"] = tuple(rest.get("notes", ()))
        return cls(rows=tuple(_row(r) for r in data["rows"]), **rest)

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        counts = pd.Series([r.status for r in self.rows]).value_counts()
        eta = f"eta={self.eta:g}" if self.eta is not None else f"largest eta that keeps {self.keep:g} of the accuracy"
        null = f"null {self.null} × {self.permutations}" if self.permutations else "no null was run"
        lines = [
            f"Independence deficit of {len(self.rows)} of {self.n_classes} classes, "
            f"samples used: {self.samples_used}, {eta}",
            f"{self.samples} samples fitted, {self.held_out_samples} held out, {null}; "
            + ", ".join(f"{n} {s}" for s, n in counts.items()),
        ]
        if self.permutations and any(r.status == "no null" for r in self.rows):
            lines.append(
                f"Caution: for {counts['no null']} classes no null can be had: too few samples can change places, so "
                "nothing tells dependence from noise."
            )
        lines[:0] = [f"Caution: {one}." for one in self.notes]
        trivial = sorted({r.trivial for r in self.rows if r.trivial})
        if trivial:
            why = {
                "features": f"features have {self.feature_dimension} dimensions for {self.n_classes} classes",
                "logits": f"the logits have numerical rank {self.logit_rank} for {self.n_classes} classes",
                "samples": f"classes are fitted on fewer samples than {self.n_classes - 1} unknowns",
            }
            count = sum(r.trivial is not None for r in self.rows)
            lines.append(
                f"{count} of {len(self.rows)} classes are exact combinations of the others: "
                + "; ".join(why[t] for t in trivial)
                + "."
            )
        columns = ["name", "status", "eta_over_eta_max", "n_dependencies", "r2", "r2_held_out", "r2_null"]
        columns += ["positive_accuracy", "positive_accuracy_replaced", "top"]
        shown = (
            self.table()[columns]
            .head(20)
            .rename(
                columns={
                    "eta_over_eta_max": "eta/max",
                    "n_dependencies": "n",
                    "positive_accuracy": "acc",
                    "positive_accuracy_replaced": "replaced",
                }
            )
        )
        lines.append(shown.to_string(float_format=lambda v: f"{v:.3g}"))
        if len(self.rows) > 20:
            lines.append(f"… {len(self.rows) - 20} more classes in .table()")
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(data: dict[str, Any]) -> ClassDependency:
    values = dict(data)
    for f in dataclasses.fields(ClassDependency):
        if f.type == "float" and values[f.name] is None:
            values[f.name] = math.nan
        elif str(f.type).startswith("tuple") and f.name != "tried":
            values[f.name] = tuple(values[f.name])
    values["tried"] = tuple(PathPoint(**p) for p in values["tried"])
    return ClassDependency(**values)
