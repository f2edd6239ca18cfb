"""``compare``: several Jacobian profiles, feature profiles or monitor histories as one table and one figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rankscope._base.checks import count_of, names_of, seed_of
from rankscope._base.errors import UsageError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.records import ByValue, Record
from rankscope._base.text import counted
from rankscope.features.feature_profile import FeatureProfile
from rankscope.jacobian import JacobianProfile
from rankscope.report.plain_names import plain_names
from rankscope.report.runs import Run, run_of
from rankscope.views.comparison_view import comparison_text, plot_comparison
from rankscope.views.noted import Noted
from rankscope.views.phrases import first_few

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ComparedLayer", "Comparison", "compare"]

Comparable: TypeAlias = "JacobianProfile | FeatureProfile | pd.DataFrame | Any"
_INTERVAL = 0.95


@dataclass(frozen=True, eq=False)
class ComparedLayer(ByValue):
    """One layer in every run; tuples have an entry per run, NaN (or an empty name) where the run has none.

    Attributes
    ----------
    layer : str
        Its name in the first run that has it, without those of wrappers.
    names : tuple of str
        Its name in each run.
    values, lower, upper : tuple of float
        The metric and its bounds; NaN bounds where there are none.
    paired, paired_low, paired_high : tuple of float
        Mean over the images of the difference from the first run, and its paired bootstrap interval (95%).
    """

    layer: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    paired: tuple[float, ...]
    paired_low: tuple[float, ...]
    paired_high: tuple[float, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Noted, Record):
    """A comparison of several runs. ``facts`` name the differences in how they were measured.

    Attributes
    ----------
    names : tuple of str
        The runs; differences are from the first.
    metric : str
        ``jacobian_rank`` (largest over the images), a column of ``feature_rank``, or a metric of the histories.
    layers : tuple of ComparedLayer
        In order of depth.
    """

    names: tuple[str, ...]
    metric: str
    layers: tuple[ComparedLayer, ...]
    facts: tuple[Fact, ...] = ()
    seed: int = 0
    resamples: int = 0

    @classmethod
    def from_earlier(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier files call the names of the runs labels."""
        return {**data, "names": data["labels"]} if "labels" in data else data

    def table(self) -> pd.DataFrame:
        """One row per layer and run: value, bounds, difference from the first run, paired mean and interval."""
        import pandas as pd

        rows = []
        for layer in self.layers:
            for run, label in enumerate(self.names):
                row = {"layer": layer.layer, "run": label, "name": layer.names[run], "value": layer.values[run]}
                row |= {"lower": layer.lower[run], "upper": layer.upper[run]}
                row |= {"difference": layer.values[run] - layer.values[0], "paired": layer.paired[run]}
                rows.append(row | {"paired_low": layer.paired_low[run], "paired_high": layer.paired_high[run]})
        return pd.DataFrame(rows)

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """One line per run over the layers."""
        return plot_comparison([asdict(layer) for layer in self.layers], self.names, self.metric, ax=ax)

    def __str__(self) -> str:
        return comparison_text([asdict(layer) for layer in self.layers], self.names, self.metric, self.facts)

    def __repr__(self) -> str:
        return str(self)


def compare(
    profiles: Mapping[str, Comparable] | Sequence[Comparable],
    *,
    metric: str | None = None,
    names: Sequence[str] | None = None,
    same_images: bool | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Comparison:
    """Several runs as one table and one figure, after the differences in how they were measured.

    Layers are matched by name, without those of wrappers: a leading ``module.``; ``_orig_mod.``,
    ``_fsdp_wrapped_module.`` and ``_checkpoint_wrapped_module.`` anywhere; and ``model.`` where all names of one run
    begin with it and none of another. Where the runs share no name and have equally many layers, they are matched by
    their order. Jacobian profiles of the same images get a paired bootstrap interval of
    the mean difference of ranks from the first run.

    Parameters
    ----------
    profiles : mapping from names, or sequence
        ``JacobianProfile``, ``FeatureProfile``, or monitors or their histories (tables), all of one kind. Of histories
        the last step that all have is compared.
    metric : str, optional
        A column of ``feature_rank`` (default: ``effective_rank``) or a metric of the histories (default: the first).
    names : sequence of str, optional
        Default: the keys of the mapping, or the models' names, or ``run 1``, ``run 2``, ….
    same_images : bool, optional
        Whether the profiles saw the same images in the same order; default: whether they have the same names, where
        these are not mere numbers.
    seed, resamples : int
        Of the bootstrap.

    Raises
    ------
    UsageError
        For fewer than two runs, runs of several kinds, a metric that they do not have, and layers that match neither
        by name nor by order.

    Examples
    --------
    >>> import torch
    >>> import rankscope as rs
    >>> nets = {name: torch.nn.Sequential(torch.nn.Linear(4, width)) for name, width in (("a", 2), ("b", 3))}
    >>> found = compare({name: rs.feature_rank(net, torch.randn(9, 4), cut_points=["0"]) for name, net in nets.items()},
    ...                 metric="pca_dimension")
    >>> found.layers[0].values
    (2.0, 3.0)
    """
    seed, resamples = seed_of(seed), count_of(resamples, "resamples")
    given = list(profiles.values()) if isinstance(profiles, Mapping) else list(profiles)
    if len(given) < 2:
        raise UsageError(
            f"there {'is' if len(given) == 1 else 'are'} {counted(len(given), 'run')}; give two or more to compare"
        )
    if names is None and isinstance(profiles, Mapping):
        names = list(profiles)
    told = [] if names is None else list(names_of(names, "names"))
    if names is not None and (len(told) != len(given) or len(set(told)) != len(told)):
        raise UsageError(f"names is {list(names)!r}; give {len(given)} different ones, one per run")
    runs = [run_of(one, metric) for one in given]
    kinds = {run.kind for run in runs}
    if len(kinds) > 1:
        raise UsageError(f"the runs are of several kinds ({', '.join(sorted(kinds))}); compare runs of one kind")
    if runs[0].kind == "history":
        runs = _at_common_step(given, runs, metric)
    if len({run.metric for run in runs}) > 1:
        raise UsageError(
            f"the first metrics of the runs differ ({', '.join(run.metric for run in runs)}); give "
            f"{parameter('metric')}, one that all of them have"
        )
    told = told or _own_names([run.label for run in runs])
    rows, found = _matched(runs, told)
    facts = [*_differences(runs, told), *found]
    paired = _same_images(runs, same_images)
    if paired is None:
        facts.append(Fact(FactKind.IMAGES_UNKNOWN))
    rng = np.random.default_rng(seed)
    layers = tuple(_layer(name, where, runs, rng if paired else None, resamples) for name, where in rows)
    return Comparison(tuple(told), runs[0].metric, layers, tuple(facts), seed, resamples if paired else 0)


def _own_names(found: Sequence[str]) -> list[str]:
    told = [label for label in found if label]
    different = len(set(told)) == len(found)
    return list(found) if different else [f"run {i}" for i in range(1, len(found) + 1)]


def _at_common_step(given: Sequence[Any], runs: Sequence[Run], metric: str | None) -> list[Run]:
    common = set.intersection(*(set(run.steps) for run in runs))
    if not common:
        raise UsageError("the histories share no monitored step; monitor runs with the same every=")
    return [run_of(one, metric, step=max(common)) for one in given]


def _matched(runs: Sequence[Run], labels: Sequence[str]) -> tuple[list[tuple[str, list[int | None]]], list[Fact]]:
    """Each layer with its place in every run."""
    plain = plain_names([run.layers for run in runs])
    for label, names in zip(labels, plain, strict=True):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"{label} has two layers {twice!r}; compare runs with one of them")
    shared = set(plain[0]).intersection(*plain[1:])
    if not shared:
        if len({len(names) for names in plain}) > 1:
            counts = ", ".join(f"{label}: {len(names)}" for label, names in zip(labels, plain, strict=True))
            raise UsageError(
                f"the runs share no layer name and have different numbers of layers ({counts}), so that no rule "
                "matches them; measure them at corresponding cut points"
            )
        fact = Fact(FactKind.MATCHED_BY_DEPTH, {"labels": tuple(labels), "first": tuple(run.layers[0] for run in runs)})
        return [(name, [i] * len(runs)) for i, name in enumerate(plain[0])], [fact]
    order = list(plain[0])
    for names in plain[1:]:
        for i, name in enumerate(names):
            if name not in order:  # behind the layer that it follows in its own run
                order.insert(order.index(names[i - 1]) + 1 if i else 0, name)
    rows = [(name, [names.index(name) if name in names else None for names in plain]) for name in order]
    lacking = tuple(name for name, where in rows if None in where)
    return rows, [Fact(FactKind.NOT_IN_ALL, {"names": lacking})] if lacking else []


def _differences(runs: Sequence[Run], labels: Sequence[str]) -> Iterable[Fact]:
    for what in dict.fromkeys(name for run in runs for name in run.settings):
        values = [tuple(run.settings.get(what, ("not known",))) for run in runs]
        if len(set(values)) > 1:
            told = {"what": what, "labels": tuple(labels), "values": tuple(map(first_few, values))}
            yield Fact(FactKind.RUNS_DIFFER, told, caution=True)


def _same_images(runs: Sequence[Run], given: bool | None) -> bool | None:
    """``None`` where it cannot be known."""
    images = [run.images for run in runs]
    if given and not images[0]:
        raise UsageError("same_images=True is for Jacobian profiles; of these runs no image is kept apart")
    alike = all(images[0]) and all(one == images[0] for one in images)
    if not images[0] or given is False:
        return False
    if given and len({len(one) for one in images}) > 1:
        raise UsageError("same_images=True, but the runs have different numbers of images")
    if given:
        return True
    return None if alike and runs[0].numbered else alike


def _layer(
    name: str, where: Sequence[int | None], runs: Sequence[Run], rng: np.random.Generator | None, resamples: int
) -> ComparedLayer:
    nan = float("nan")

    def each(field: str) -> tuple[float, ...]:
        return tuple(nan if i is None else float(getattr(run, field)[i]) for run, i in zip(runs, where, strict=True))

    names = tuple("" if i is None else run.layers[i] for run, i in zip(runs, where, strict=True))
    intervals = [(nan, nan, nan)]
    for run, i in zip(runs[1:], where[1:], strict=True):
        if rng is None or i is None or where[0] is None:
            intervals.append((nan, nan, nan))
        else:
            intervals.append(_paired(runs[0].per_image[where[0]], run.per_image[i], rng, resamples))
    mean, low, high = zip(*intervals, strict=True)
    return ComparedLayer(name, names, each("values"), each("lower"), each("upper"), mean, low, high)


def _paired(first: Any, other: Any, rng: np.random.Generator, resamples: int) -> tuple[float, float, float]:
    """Mean difference over the images that both measured, and its percentile bootstrap interval."""
    difference = np.asarray(other, float) - np.asarray(first, float)
    difference = difference[~np.isnan(difference)]
    if len(difference) < 2:
        return (float("nan"),) * 3
    drawn = rng.integers(len(difference), size=(resamples, len(difference)))
    tail = (1 - _INTERVAL) / 2
    low, high = np.quantile(difference[drawn].mean(axis=1), [tail, 1 - tail])
    return float(difference.mean()), float(low), float(high)
