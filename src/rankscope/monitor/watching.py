"""``watch``: ranks and metrics of every layer at every checkpoint that a training run has saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rankscope._base.checks import MemoryBudget, budget_of, count_of, names_of, path_of
from rankscope._base.errors import (
    ModelError,
    RankscopeError,
    UsageError,
    is_out_of_memory,
    nearest,
    parameter,
    type_and_line,
)
from rankscope._base.facts import Fact
from rankscope._base.identity import Identity, identity_of
from rankscope._base.identity_process import process_state
from rankscope._base.lock import FolderLock
from rankscope._base.progress import Progress, progress_for
from rankscope._base.provenance import versions
from rankscope.features import feature_rank
from rankscope.features.feature_profile import DIMENSIONS
from rankscope.features.reduction import Channels, Reduce, check_reduce
from rankscope.jacobian import jacobian_rank
from rankscope.loading import load_weights
from rankscope.monitor.watch_measures import Measured, of_features, of_jacobian
from rankscope.monitor.watched import WatchedRun, WatchedValue
from rankscope.monitor.watcher import Load, Watcher
from rankscope.slicing import ColumnsLike, CutPointsLike
from rankscope.slicing.wrapped import unwrapped
from rankscope.spectra import ToleranceLike, as_tolerance

__all__ = ["METRICS", "check_metrics", "watch"]

METRICS = ("effective_rank", "pca_dimension", "rankme")
"""What is measured of features unless other metrics are named."""


def watch(
    folder: str | Path,
    model: nn.Module | Callable[[Path], nn.Module],
    data: Any = None,
    *,
    inputs: Any = None,
    metrics: Sequence[str] = METRICS,
    cut_points: CutPointsLike = "blocks",
    reduce: Reduce = "pool",
    channels: Channels = "auto",
    batch_size: int = 64,
    memory_budget: MemoryBudget = None,
    columns: ColumnsLike = "auto",
    tolerance: ToleranceLike = "paper",
    files: str | Sequence[str] = "*",
    weights_key: str | None = None,
    out: str | Path | None = None,
    progress: bool | Progress | None = None,
) -> WatchedRun:
    """Ranks and metrics of every layer at every checkpoint in a folder, in order of step.

    The step is the ``global_step`` that a Lightning checkpoint or ``trainer_state.json`` holds, or the ``step`` of
    another file. Otherwise it is the number in the name, after ``step``, ``iteration`` or ``epoch`` or alone. Otherwise
    it is the ``epoch`` in the file, which takes precedence over bare numbers if each file has a different one.
    Checkpoints of one step with different weights, those without a step, and those that cannot be read (or are still
    being written) or do not fit the model are left out and named in ``facts``.

    Parameters
    ----------
    folder : path
        With files ``.ckpt``, ``.pt``, ``.pth`` and ``.safetensors``, and folders ``checkpoint-N`` of Hugging Face.
        If it holds none itself, the one folder below it that does is used.
    model : nn.Module or callable
        The network, into a copy of which the weights of each checkpoint go; or a function from the path of a checkpoint
        to the network with its weights. A checkpoint at which it raises is left out and named.
    data : optional
        Inputs over which features are measured, as ``feature_rank`` takes them.
    inputs : optional
        Inputs at which the Jacobian rank is measured, as ``jacobian_rank`` takes them. One of the two is needed.
    metrics : sequence of str
        Columns of ``feature_rank``: what is measured over ``data``. It may be empty where ``inputs`` are given.
    cut_points, reduce, channels, batch_size, memory_budget
        As in ``feature_rank``.
    columns, tolerance
        As in ``jacobian_rank``.
    files : str or sequence of str
        Globs of the names of the checkpoints to measure.
    weights_key : str, optional
        The part of each file to load, such as ``"teacher"``, where several fit.
    out : path, optional
        Folder that keeps the numbers of each network: the same call measures what is new. What it keeps is reused only
        for the same weights, code, data and settings, and the first of it is measured again and compared.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    DataError
        No such folder, no checkpoint, or none that can be measured (the first reason is given).
    UsageError
        Neither data nor inputs, no metric or an unknown one, steps that count several things, a part that
        ``weights_key`` has to choose.
    OutputError
        ``out`` is in use or cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in (10, 2):
    ...         torch.save(net.state_dict(), f"{folder}/step_{step}.pt")
    ...     found = watch(folder, net, torch.randn(20, 4), cut_points=["0"], metrics=["pca_dimension"])
    >>> [step.step for step in found.steps], found.values("pca_dimension").tolist()
    ([2, 10], [[3.0, 3.0]])
    """
    where = path_of(folder, "folder")
    chosen = check_metrics(metrics)
    check_reduce(reduce, channels)
    batch_size, tolerance = count_of(batch_size, "batch_size"), as_tolerance(tolerance)
    if memory_budget is not None:
        budget_of(memory_budget, torch.device("cpu"))
    if data is None and inputs is None:
        raise UsageError("there is nothing to measure on; give data for features, inputs for Jacobian ranks, or both")
    if not chosen and inputs is None:
        known = ", ".join(map(repr, DIMENSIONS))
        raise UsageError(
            f"{parameter('metrics')} is empty, so there is nothing to measure; give one or more of {known}, or inputs "
            "for Jacobian ranks"
        )
    load, cut_points = _loader(model, cut_points, weights_key)
    options: dict[str, Any] = {"cut_points": cut_points, "memory_budget": memory_budget}

    def measure(network: nn.Module) -> Measured:
        values, facts = list[WatchedValue](), list[Fact]()
        if data is not None and chosen:
            features = feature_rank(
                network, data, reduce=reduce, channels=channels, batch_size=batch_size, **options, progress=False
            )
            values += of_features(features, chosen)
            facts += features.facts
        if inputs is not None:
            ranks = jacobian_rank(network, inputs, columns=columns, tolerance=tolerance, progress=False, **options)
            values += of_jacobian(ranks)
            facts += ranks.facts
        return Measured(tuple(values), tuple(facts))

    def about() -> Identity:
        setting = (chosen, cut_points, reduce, channels, str(memory_budget), columns, tolerance, process_state())
        return identity_of(data, inputs, setting, files=True)

    kept = None if out is None else path_of(out, "out") / "checkpoints"
    report = progress_for(progress, "watch")
    globs = [files] if isinstance(files, str) else list(names_of(files, "files"))
    try:
        with nullcontext() if kept is None else FolderLock(kept.parent, lend=True):
            watcher = Watcher(where, load, measure, about, files=globs, kept=kept, report=report)
            watcher.look()
            return watcher.record({"versions": versions()})
    finally:
        report.close()


def check_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    """The metrics, each a column of ``feature_rank``."""
    chosen = names_of(metrics, "metrics")
    for metric in chosen:
        if metric not in DIMENSIONS:
            raise UsageError(f"unknown metric {metric!r} in {parameter('metrics')}; {nearest(metric, DIMENSIONS)}")
    return chosen


def _loader(model: Any, cut_points: CutPointsLike, key: str | None) -> tuple[Load, CutPointsLike]:
    if callable(model) and not isinstance(model, nn.Module):
        if key is not None:
            raise UsageError("weights_key chooses a part of a file that is loaded here, and model is a function")

        def built(path: Path) -> tuple[nn.Module, Sequence[Fact]]:
            try:
                made = model(path)
            except (RankscopeError, OSError):
                raise
            except Exception as error:  # whatever a file does to the caller's code
                if is_out_of_memory(error):
                    raise
                raise ModelError(f"model failed ({type_and_line(error)})") from error
            if not isinstance(made, nn.Module):
                raise UsageError(f"model returned {type(made).__name__} for {path.name!r}; return a torch.nn.Module")
            return made, ()

        return built, cut_points
    found, cut_points, facts = unwrapped(model, cut_points)

    def filled(path: Path) -> tuple[nn.Module, Sequence[Fact]]:
        own = _copied(found)  # each time anew: what a file lacks, such as a counter of batches, is the model's
        return own, (*facts, *load_weights(own, path, key=key).facts)

    _copied(found)  # else every checkpoint would be told to be at fault

    return filled, cut_points


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # whatever a module's attributes raise
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}); give a function from the path of a checkpoint to the "
            "network"
        ) from error
