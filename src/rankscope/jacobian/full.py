"""``full_rank``: the rank of the full Jacobian of every cut point, exactly or from Lanczos probes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from rankscope._base.checks import DeviceLike, DtypeLike, MemoryBudget, budget_of, choice_of, device_of
from rankscope._base.errors import MeasurementError
from rankscope._base.facts import Fact, FactKind, gist
from rankscope._base.progress import Progress, progress_for
from rankscope._base.provenance import device_name, versions
from rankscope.jacobian.full_record import FullLayer, FullRank
from rankscope.jacobian.measurers import layout
from rankscope.jacobian.products import products_of
from rankscope.linear.derivative import Derivative, Runners, Settings, in_both_precisions
from rankscope.linear.prepared import finite_weights, prepared, working_dtype
from rankscope.linear.returned import returned_facts
from rankscope.linear.runner import NotCalledError
from rankscope.linear.tracing import traced_calls
from rankscope.slicing import ColumnsByShape, CutPointsLike, ModuleCall, Sample, measuring, mode_facts, read_samples
from rankscope.spectra import Spectrum, Tolerance, ToleranceLike, as_tolerance
from rankscope.spectra.density import SpectralDensity
from rankscope.spectra.lanczos import NotFiniteError
from rankscope.spectra.matrix_free import Lanczos, spectrum_of_products

__all__ = ["full_rank"]


def full_rank(
    model: nn.Module,
    inputs: Any,
    *,
    cut_points: CutPointsLike = "blocks",
    method: Lanczos | str = "auto",
    tolerance: ToleranceLike = "paper",
    dtype: DtypeLike = None,
    memory_budget: MemoryBudget = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    device: DeviceLike = None,
    progress: bool | Progress | None = None,
    limit: int | None = None,
) -> FullRank:
    """Rank of the full Jacobian of every sub-network from the input to a cut point, on every given input.

    No column is chosen: the Jacobian is known through products J·v (forward mode) and Jᵀ·u (reverse mode). Where its
    smaller side N = min(rows, inputs) allows a dense N×N float64 matrix, all singular values are computed; beyond that
    random probes and Lanczos steps estimate the rank, with lower and upper bounds. Each input is measured alone. The
    products are compared with those of the model in float64, and their error widens the bounds.

    Parameters
    ----------
    model : torch.nn.Module
        On any device. It is measured in evaluation mode, whichever mode it is in, and left as it was.
    inputs, differentiate, shared, per_sample, limit, device, progress
        As in ``jacobian_rank``.
    cut_points : str or list of str
        As in ``jacobian_rank``.
    method : ``"auto"``, ``"exact"``, ``"lanczos"`` or Lanczos
        ``"auto"`` computes all singular values where the memory budget allows it, else takes ``Lanczos()``.
        ``Lanczos(probes=8, steps="auto", bracket=0.05, seed=0)`` sets the number of probes and steps. It gives way to
        the exact method where that takes no more products.
    tolerance : Tolerance, str or float
        See ``Tolerance``. ``steps="auto"`` reads its bracket at this one; the result can be read at any other.
    dtype : torch.dtype, optional
        float32 or float64; default: the model's own, half precision raised to float32.
    memory_budget : int or str, optional
        Bytes, or a text such as ``"4GB"``; default: 4 GiB or half of what is free. The model itself comes on top.

    Returns
    -------
    FullRank

    Raises
    ------
    UsageError, CutPointError
        For options that cannot be used, unknown layers, or a memory budget that is too small for the method.
    DataError
        For empty, non-numeric, NaN or infinite inputs.
    ModelError
        For a model with NaN weights, or whose forward pass fails.
    DeviceError
        For an absent device, or a memory budget that holds not one tangent.
    MeasurementError
        When no cut point could be measured.

    Examples
    --------
    >>> import torch, rankscope as rs
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 5)).eval()
    >>> rs.full_rank(net, torch.zeros(1, 6)).table()["value"].tolist()
    [4, 4]
    """
    started = time.perf_counter()
    tol = as_tolerance(tolerance)
    asked = method if isinstance(method, Lanczos) else choice_of(method, "method", ["auto", "exact", "lanczos"])
    where = device_of(device, model)
    work_dtype, facts = working_dtype(model, dtype)
    facts.extend(mode_facts(model))
    finite_weights(model)
    samples = read_samples(
        model, inputs, limit=limit, differentiate=differentiate, shared=shared, per_sample=per_sample
    )
    first = next(samples)
    facts += samples.facts()
    chosen = traced_calls(model, samples, first, cut_points, work_dtype)
    found, calls, unmeasured = chosen.trace, chosen.calls, chosen.unmeasured
    facts += returned_facts(calls)
    choice = ColumnsByShape("all")
    budget = budget_of(memory_budget, where)
    settings = Settings("auto", budget, True, where, work_dtype, choice, found.through)
    names: list[str] = []
    report = progress_for(progress, "full Jacobian rank")
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    with measuring(model, where):
        measured = _Full(model, calls, settings, asked, tol)
        try:
            for index, raw in enumerate(chain([first, *chosen.passed], samples)):
                names.append(f"image {index}" if first.x.ndim == 4 else f"sample {index}")
                sample = prepared(raw, choice, "image").to(where, work_dtype)
                measured.add(sample)
                report(index + 1, samples.total, names[-1])
        finally:
            report.close()
    layers, absent = measured.layers()
    unmeasured |= absent
    if not layers:
        raise MeasurementError(
            "no cut point could be measured: " + "; ".join(f"{k}: {v}" for k, v in unmeasured.items())
        )
    missed = [(layer.name, len(layer.uncalled)) for layer in layers if layer.uncalled]
    if missed:
        names_of, counts = zip(*missed, strict=True)
        facts.append(Fact(FactKind.NOT_CALLED, {"names": names_of, "counts": counts, "total": len(names)}))
    return FullRank(
        model=found.model,
        layers=layers,
        images=tuple(names),
        tolerance=tol,
        method=measured.way,
        certificate=measured.certificate,
        device=device_name(where),
        dtype=str(work_dtype).removeprefix("torch."),
        versions=versions(),
        cut_points=cut_points if isinstance(cut_points, str) else ", ".join(cut_points),
        kinks=tuple(measured.kinks),
        unmeasured=unmeasured,
        failed_methods=tuple(measured.failed_methods),
        facts=(*facts, *measured.facts),
        seconds=time.perf_counter() - started,
        peak_memory=torch.cuda.max_memory_allocated(where) if where.type == "cuda" else None,
    )


class _Full:
    """The spectra of every cut point, sample after sample. Use it inside ``measuring``."""

    def __init__(
        self,
        model: nn.Module,
        calls: Sequence[ModuleCall],
        settings: Settings,
        asked: Lanczos | str,
        tolerance: Tolerance,
    ) -> None:
        self.model, self.calls, self.settings, self.asked, self.tolerance = model, calls, settings, asked, tolerance
        self.runners: Runners = in_both_precisions(model, calls, settings)
        self.spectra: list[list[Spectrum | SpectralDensity | None]] = [[] for _ in calls]
        self.ways: list[list[Fact | None]] = [[] for _ in calls]
        self.uncalled: list[list[int]] = [[] for _ in calls]
        self.reasons: list[dict[int, str]] = [{} for _ in calls]  # by image
        self.kinks: list[int] = []
        self.facts: list[Fact] = []
        self.failed_methods: list[Fact] = []
        self.way = Fact(FactKind.KEPT_IMAGES)
        self.certificate = Fact(FactKind.KEPT_IMAGES)
        self._prepared: tuple[Any, list[int], Derivative] | None = None

    def add(self, sample: Sample) -> None:
        """Measure one sample at every cut point that it calls."""
        image = len(self.kinks)
        self.kinks.append(0)
        places, derivative = self._derivative(sample)
        for k in range(len(self.calls)):
            spectrum, way = None, None
            if k not in places:
                self.uncalled[k].append(image)
            else:
                try:
                    assert derivative is not None
                    spectrum, way = self._spectrum(derivative, places.index(k), sample)
                except NotCalledError:  # one precision takes another path than the other: no number can be trusted
                    raise
                except NotFiniteError:
                    self.reasons[k][image] = "its Jacobian has NaN or infinite entries"
                except MeasurementError as error:
                    self.reasons[k][image] = str(error)
            self.spectra[k].append(spectrum)
            self.ways[k].append(way)

    def _derivative(self, sample: Sample) -> tuple[list[int], Derivative | None]:
        """What the checks of a first sample on this path show; the last one is kept."""
        runner = self.runners[0]
        absent: frozenset[int] = frozenset()
        try:
            with runner.hooked():
                runner.outputs(sample, sample.x)
        except NotCalledError as error:
            absent = error.absent
        key = layout(sample), absent
        if self._prepared is not None and self._prepared[0] == key:
            return self._prepared[1:]
        places = [k for k in range(len(self.calls)) if k not in absent]
        if not places:
            return [], None
        chosen = [self.calls[k] for k in places]
        self._prepared = None
        runners = in_both_precisions(self.model, chosen, self.settings) if absent else self.runners
        derivative = Derivative(self.model, chosen, self.settings, runners)
        with derivative.runner.hooked():
            derivative.prepare(sample)
        self._prepared = key, places, derivative
        assert derivative.method is not None
        self.way = Fact(FactKind.PUSHED, {"name": derivative.method.name})
        self.certificate = derivative.certificate
        self._say(derivative.facts)
        known = {gist(fact) for fact in self.failed_methods}
        self.failed_methods += [f for f in derivative.failed_methods if gist(f) not in known]
        return places, derivative

    def _spectrum(self, derivative: Derivative, place: int, sample: Sample) -> tuple[Spectrum | SpectralDensity, Fact]:
        pair = products_of(derivative, place, sample, self.settings.budget // 2)
        self.kinks[-1] = max(self.kinks[-1], pair.flips)
        spectrum, way = spectrum_of_products(
            pair.work,
            self.asked,
            tolerance=self.tolerance,
            exact=pair.exact,
            dense=pair.dense,
            memory_budget=self.settings.budget,
        )
        if isinstance(spectrum, SpectralDensity) and derivative.certificate.kind is not FactKind.PROBES:
            others = tuple(f for f in spectrum.facts if f.kind is not FactKind.PRODUCTS_CHECKED)
            spectrum = replace(spectrum, facts=others)
        if not pair.certified:
            said = Fact(
                FactKind.PRODUCTS_UNCHECKED, {"dtype": str(pair.work.dtype).removeprefix("torch.")}, caution=True
            )
            self._say([said])
        return spectrum, way

    def _say(self, found: Sequence[Fact]) -> None:
        known = {gist(fact) for fact in self.facts}
        self.facts += [fact for fact in found if gist(fact) not in known]

    def layers(self) -> tuple[tuple[FullLayer, ...], dict[str, str]]:
        """The cut points with a spectrum, and why the others have none."""
        made, absent = [], {}
        count = len(self.kinks)
        for k, call in enumerate(self.calls):
            if all(s is None for s in self.spectra[k]):
                if len(self.uncalled[k]) == count:
                    raise NotCalledError(call.name, frozenset([k]))
                absent[call.name] = next(iter(self.reasons[k].values()))
                continue
            spectra = tuple(self.spectra[k])
            made.append(FullLayer(call.name, call.true_cut, spectra, tuple(self.ways[k]), tuple(self.uncalled[k])))
            absent |= {f"{call.name} on input {image}": why for image, why in self.reasons[k].items()}
        return tuple(made), absent
