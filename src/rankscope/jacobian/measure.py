"""``jacobian_rank``: from a model and inputs to a ``JacobianProfile``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from rankscope._base.checks import (
    DeviceLike,
    DtypeLike,
    MemoryBudget,
    budget_of,
    choice_of,
    count_of,
    device_of,
)
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import MeasurementError, UsageError, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.identity import Identity, identity_of
from rankscope._base.identity_process import process_state
from rankscope._base.processes import Processes, several, team, together
from rankscope._base.progress import Progress, progress_for
from rankscope._base.provenance import device_name, versions
from rankscope._base.turns import in_turn
from rankscope.jacobian.checkpoint import Checkpoint
from rankscope.jacobian.directions import Directions, several_sizes
from rankscope.jacobian.full_measurer import full_settings
from rankscope.jacobian.given import Given
from rankscope.jacobian.kept_cut_points import KeptCutPoints
from rankscope.jacobian.lack_of_memory import naming_what_needs_less
from rankscope.jacobian.later_calls import LaterCalls
from rankscope.jacobian.measurers import Measurers
from rankscope.jacobian.profile import JacobianProfile, Layer
from rankscope.jacobian.reading import Reading
from rankscope.jacobian.sharing_cut_points import SharedCutPoints
from rankscope.jacobian.sharing_out import collected_by
from rankscope.linear.derivative import Settings
from rankscope.linear.prepared import finite_weights, in_range, prepared, working_dtype
from rankscope.linear.returned import returned_facts
from rankscope.linear.runner import NotCalledError
from rankscope.linear.tracing import at_home, traced_calls
from rankscope.slicing import (
    ColumnsByShape,
    ColumnsLike,
    CutPointsLike,
    Sample,
    measuring,
    mode_facts,
    read_samples,
)
from rankscope.slicing.batches import run_forward
from rankscope.slicing.precision import NARROW
from rankscope.slicing.wrapped import unwrapped
from rankscope.spectra import ToleranceLike, as_tolerance
from rankscope.spectra.matrix_free import Lanczos

__all__ = ["Background", "jacobian_rank"]

Background = Literal["image", "zero"]


@in_turn
@together
def jacobian_rank(
    model: nn.Module,
    inputs: Any,
    *,
    cut_points: CutPointsLike = "blocks",
    columns: ColumnsLike = "auto",
    background: Background = "image",
    method: Lanczos | str = "auto",
    tolerance: ToleranceLike = "paper",
    dtype: DtypeLike = None,
    chunk_size: int | Literal["auto"] = "auto",
    memory_budget: MemoryBudget = None,
    certify: bool = True,
    device: DeviceLike = None,
    progress: bool | Progress | None = None,
    limit: int | None = None,
    checkpoint: str | Path | None = None,
    names: Callable[[int], str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    processes: Processes = "all",
) -> JacobianProfile:
    """Jacobian rank of every sub-network from the input to a cut point, on every given input.

    One forward-mode sweep per image yields all cut points' columns; their singular values come from float64 Gram
    matrices of the rows that are not exactly zero. The model is left as it was, also after an exception.

    Parameters
    ----------
    model : torch.nn.Module
        On any device. It is measured in evaluation mode and returned to its own mode.
    inputs : Tensor, array, mapping, tuple, Dataset, DataLoader or data set of Hugging Face
        A tensor's first dimension counts samples. A mapping is passed as keyword arguments, a tuple as positional ones;
        there the first dimension of the differentiated tensor counts samples. Items of a data set are samples, and the
        batches of a loader are batches. Of (input, label) pairs the label is left out if ``forward`` takes one
        argument. ``input_ids`` go through the model's own embedding.
    cut_points : str or list of str
        ``"blocks"`` (stem, each repeated block, pooled features, logits), ``"paper"`` (the layers of its Fig. 1),
        ``"reference"`` (those of its code: of a ResNet from the max-pooling to the logits), ``"all"``, names, globs,
        ``"output"`` (what the network returns: the last of "blocks" and "all", under the name of the module that
        returned it where there is one). Several outputs are one cut point together, and each has a name of its own:
        ``"output.0"``, ``"output.logits"``; likewise ``"lstm.0"``.
    columns : Patch, Sketch, ``"all"`` or ``"auto"``
        Input directions. ``"auto"``: all up to 1,024 inputs, else the paper's central 16×16 patch, else a sketch.
    method : ``"auto"``, ``"exact"``, ``"lanczos"`` or Lanczos
        How the full Jacobian is measured, with ``columns="all"`` alone. ``"exact"`` computes every singular value,
        which takes a float64 matrix of N×N, N = min(rows, inputs). ``"lanczos"`` estimates the rank from random probes,
        with lower and upper bounds; ``Lanczos(probes=8, steps="auto", bracket=0.05, seed=0)`` sets how. ``"auto"`` is
        exact where the memory budget allows it, and prints its expected cost before it starts.
    background : ``"image"`` or ``"zero"``
        The values outside the patch: the image itself, or zeros as in the authors' code.
    tolerance : Tolerance, str or float
        See ``Tolerance``; spectra are kept, so ``profile.with_tolerance`` counts at another one.
    dtype : torch.dtype, optional
        float32 or float64; default: the model's own, half precision raised to float32.
    chunk_size : int or ``"auto"``
        Tangents pushed at once; ``"auto"`` fits ``memory_budget``.
    memory_budget : int or str, optional
        Bytes, or a text such as ``"4GB"``; default: 4 GiB, or half of the free memory. The model itself is extra.
    certify : bool
        Bound the error of every spectrum with six float64 probes (an image's bound is wrong with probability 1e-6).
    device : torch.device or str, optional
        Where to compute; default: where the model is; ``"auto"``: the first GPU, else the CPU. The model is not moved.
    progress : bool or callable, optional
        ``None`` (default): a bar where standard error is a terminal and in a notebook. ``True``: lines in a log too.
        ``False``: nothing. A function is called with (done, total, text).
    limit : int, optional
        Use at most this many samples.
    checkpoint : path, optional
        Folder that keeps each finished image's spectra: the same call continues after an interruption.
    names : callable, optional
        From a sample's number to its name in the result; default: ``image 0``, ``image 1``, …
    provenance : mapping, optional
        Plain values by name that are kept with the result. ``model``, ``weights``, ``notes`` (texts or facts) and
        ``skipped`` (name: reason) fill the profile's own fields; every other name is kept in its ``provenance``.
    differentiate : str, optional
        The name of the differentiated input, needed where several floating-point inputs could be meant.
    shared, per_sample : str or sequence of str, optional
        Inputs that every sample is called with as they are, and inputs whose rows belong to the samples: needed where
        the shapes leave it open, as for a 6×6 mask beside 6 samples.
    processes : ``"all"`` or ``"this"``
        Inside an initialised process group of ``torch.distributed``, ``"all"`` of its processes, which have to make the
        same call, share the samples (or the cut points of a full Jacobian) and return the same profile; the first
        writes ``checkpoint``. With ``"this"`` the process measures everything itself.

    Returns
    -------
    JacobianProfile

    Raises
    ------
    UsageError, CutPointError
        For options that cannot be used, unknown layers, a patch outside the image.
    DataError
        For empty, non-numeric, NaN or infinite inputs, and those below the range of ``dtype``.
    ModelError
        For a model with NaN weights, or whose forward pass fails.
    DeviceError
        For an absent device or a memory budget that is too small.
    MeasurementError
        When no cut point could be measured.
    ProcessError
        When another process of the group fails, ends, or does not make the call; finished samples are kept.

    Examples
    --------
    >>> import torch, rankscope as rs
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 5)).eval()
    >>> rs.jacobian_rank(net, torch.zeros(1, 6)).function_rank
    (4, 4)
    """
    started = time.perf_counter()
    tol = as_tolerance(tolerance)
    given = Given.read(provenance)
    choice_of(background, "background", ["image", "zero"])
    if chunk_size != "auto":
        chunk_size = count_of(chunk_size, "chunk_size")
    model, cut_points, wrapping = unwrapped(model, cut_points)
    where = device_of(device, model)
    work_dtype, facts = working_dtype(model, dtype)
    facts += [*wrapping, *mode_facts(model)]
    # before any forward pass, which may leave traces in the model
    company = several()
    identity = Identity("") if checkpoint is None and company is None else identity_of(model)
    finite_weights(model)

    samples = read_samples(
        model, inputs, limit=limit, differentiate=differentiate, shared=shared, per_sample=per_sample
    )
    first = next(samples)
    facts += samples.facts()
    chosen = traced_calls(model, samples, first, cut_points, work_dtype)
    found, calls, unmeasured = chosen.trace, chosen.calls, chosen.unmeasured
    labels = names or (lambda i: f"image {i}" if first.x.ndim == 4 else f"sample {i}")
    choice = ColumnsByShape(columns)
    full = full_settings(columns, method, tol)
    _fits(choice, first, labels(0), background)
    if not found.structured:
        facts.append(Fact(FactKind.NO_GRAPH))

    budget = team().least("memory budget", budget_of(memory_budget, where))
    settings = Settings(
        chunk_size=chunk_size,
        budget=budget,
        certify=certify,
        device=where,
        dtype=work_dtype,
        columns=choice,
        through=found.through,
    )
    total = samples.total
    question = {
        "calls": [c.name for c in calls],
        "columns": repr(choice.of(tuple(first.x.shape[1:])) if columns == "auto" else columns),
        "background": background,
        "dtype": str(work_dtype),
        "certify": certify,
        "process": process_state(),
        **({} if full is None else full.asked.question(first.x[0].numel())),
    }
    store = Checkpoint(checkpoint if team().writes else None, identity, question)
    if company is not None:
        said = (str(question), repr(tol), str(chunk_size), repr(differentiate), repr(shared), repr(per_sample))
        company.agree(model=company.comparable(identity.key, identity.unreadable, "model"), options="; ".join(said))
    report = progress_for(progress if team().writes else False, "Jacobian rank")
    image_names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    with naming_what_needs_less(where, full=full is not None), store, measuring(model, where):
        if full is not None:
            kept = KeptCutPoints(store)
            cuts = None if company is None else SharedCutPoints(company, kept)
            full = full.telling(report, lambda: (len(collected.spectra), total, image_names[-1]), kept, cuts)
        measurers = Measurers(model, calls, settings, full=full)
        later = LaterCalls(measurers, chosen, cut_points)
        collected = collected_by(company, measurers, store, lambda i: report(len(collected.spectra), total, labels(i)))
        try:
            for index, raw in enumerate(chain([first, *chosen.passed], samples)):
                shapes.append(_fits(choice, raw, labels(index), background))
                own = in_range(prepared(raw, choice, background), work_dtype)
                collected.arrives(index, own)
                sample = own.to(where, work_dtype)
                image_names.append(labels(index))
                home = at_home(model, own)
                if shapes[-1] not in shapes[:-1] and index and home.x.dtype not in NARROW:
                    run_forward(model, home, home.x.device)  # another shape than the model takes: said at once
                if team().writes:
                    later.look(index, own, sample)
                if not collected.restore(index, sample, image_names[-1]):
                    # of unknown length: the last, shorter batch is swept when the samples end
                    collected.add(index, sample, sys.maxsize if total is None else total - index - 1)
            collected.sweep()
            collected.finish()
            collected.meet()
            if team().writes:
                later.measure()
        finally:
            try:
                collected.finish()  # also after Ctrl-C: what was swept is kept
            finally:
                measurers.close()
                report.close()
    if not team().writes:
        return cast(JacobianProfile, team().result())
    measurers.gather()
    kept_cuts = [] if full is None or full.kept is None else full.kept.facts()
    spectra, kinks = collected.spectra, collected.kinks
    count = len(image_names)
    uncalled = [tuple(i for i in range(count) if k in collected.uncalled[i]) for k in range(len(calls))]
    unmeasured = {later.names.get(name, name): why for name, why in unmeasured.items()}
    calls = later.named(calls)
    facts += returned_facts(calls)

    measured = []
    for k, call in enumerate(calls):
        row = tuple(spectra[i][k] for i in range(len(image_names)))
        if len(uncalled[k]) == count:  # its own calls change its path, and no sample stands for it
            raise NotCalledError(call.name, frozenset([k]))
        if all(s is None for s in row):
            calling = " that calls it" if uncalled[k] else ""
            why = next((r[k] for r in collected.reasons.values() if k in r), None)
            unmeasured[call.name] = why or f"its Jacobian has NaN or infinite entries on every image{calling}"
            continue
        unmeasured |= {
            f"{call.name} on {image_names[i]}": reasons[k] for i, reasons in collected.reasons.items() if k in reasons
        }
        measured.append((call, max(s.shape[0] for s in row if s is not None), row, uncalled[k]))
    directions = Directions.of(choice, shapes)
    layers = [
        Layer(call.name, rows, directions.count, call.true_cut, row, mixes, without)
        for (call, rows, row, without), mixes in zip(measured, found.mixes([m[0] for m in measured]), strict=True)
    ]
    layers = later.placed(layers, count, directions.count)
    unmeasured |= {name: why for name, why in later.unmeasured.items() if name not in {x.name for x in layers}}
    if not layers:
        raise MeasurementError(
            "no cut point could be measured: " + "; ".join(f"{k}: {v}" for k, v in unmeasured.items())
        )
    returned = found.stands_for_output([m[0] for m in measured])
    output = later.output or ("" if returned is None else returned.name)
    missed = [(layer.name, len(layer.uncalled)) for layer in layers if layer.uncalled]
    if missed:
        names_of, counts = zip(*missed, strict=True)
        facts.append(Fact(FactKind.NOT_CALLED, {"names": names_of, "counts": counts, "total": count}))
    if len(set(shapes)) > 1 or not Reading(tuple(layers), tol).one_size:
        facts.append(several_sizes(directions, shapes))
    profile = JacobianProfile(
        model=given.model or found.model,
        weights=given.weights,
        layers=tuple(layers),
        images=tuple(image_names),
        tolerance=tol,
        columns=directions,
        background=background,
        device=device_name(where),
        dtype=dtype_name(work_dtype),
        versions=versions(),
        input_shape=shapes[0],
        input_shapes=tuple(shapes) if len(set(shapes)) > 1 else (),
        cut_points=cut_points if isinstance(cut_points, str) else ", ".join(cut_points),
        method=measurers.way,
        failed_methods=tuple(measurers.failed_methods),
        unmeasured=unmeasured,
        output=output,
        adjoint_error=measurers.adjoint,
        kinks=tuple(max(kinks[i], later.kinks.get(i, 0)) for i in range(len(image_names))) if certify else (),
        certificate=measurers.certificate,
        facts=(*given.facts, *facts, *store.with_kept(measurers.facts), *store.facts(len(image_names)), *kept_cuts),
        seconds=time.perf_counter() - started,
        chunk_size=measurers.chunk,
        peak_memory=torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None,
        skipped=given.skipped,
        provenance=given.kept,
    )
    return team().same(profile)


def _fits(choice: ColumnsByShape, sample: Sample, name: str, background: str) -> tuple[int, ...]:
    """The sample's shape, which the columns have to fit; where they do not, the error names the sample."""
    shape = tuple(sample.x.shape[1:])
    try:
        directions = choice.of(shape)
    except UsageError as error:
        raise UsageError(f"{name}: {error.args[0]}") from error
    if background == "zero" and directions.coordinates(shape) is None:
        raise UsageError(f"{parameter('background', 'zero')} needs a patch; random directions cover the whole image")
    return shape
