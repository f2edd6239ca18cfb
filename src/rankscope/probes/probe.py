"""Put components behind a random layer and measure what they do to dimension and rank (paper, §6.1 and Fig. 3)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rankscope._base.checks import DeviceLike, DtypeLike, MemoryBudget, Scale, choice_of, device_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import UsageError, nearest, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.progress import Progress, progress_for
from rankscope._base.provenance import device_name, versions
from rankscope.probes._bench import PROBES, Bench, Measured
from rankscope.probes._settings import Front, Settings
from rankscope.probes._shared import Given, given_samples, with_shared
from rankscope.probes.components import Component, components_for
from rankscope.probes.result import ProbeResult, ProbeResults
from rankscope.slicing import measuring, mode_facts, no_script
from rankscope.spectra import ToleranceLike

__all__ = ["SCALES", "probe", "probe_all"]

SCALES: dict[str, tuple[tuple[int, int, int], int]] = {
    "full": ((128, 8, 8), 5000),  # paper, §6.1
    "small": ((32, 4, 4), 312),  # 512 dimensions, the same samples per dimension
}
_CERTIFICATE = Fact(FactKind.TWO_PRECISIONS, {"probes": PROBES, "failure": 10.0**-PROBES})


def probe(
    component: nn.Module | str,
    *,
    inputs: Any = None,
    limit: int | None = None,
    differentiate: str | None = None,
    shared: str | Sequence[str] = (),
    per_sample: str | Sequence[str] = (),
    training: bool = False,
    input_shape: Sequence[int] | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: DeviceLike = "auto",
    tolerance: ToleranceLike = "paper",
    jacobian_points: int = 1,
    front: Front = "gaussian",
    context: int = 32,
    dtype: DtypeLike = "float64",
    memory_budget: MemoryBudget = None,
    progress: bool | Progress | None = None,
) -> ProbeResult:
    """Feature (PCA) dimension and full Jacobian rank before and after one component.

    Standard normal noise of ``input_shape`` passes through a random linear layer of as many units (8,192 for the
    paper's 128×8×8), is reshaped to ``input_shape``, and passes through the component. The Jacobian is that of
    component∘layer with respect to all inputs.

    With ``inputs`` the component receives these samples, and the Jacobian is that of the component alone.

    A component of your own is measured in evaluation mode, and the result reports if it was in training mode;
    ``training=True`` measures it in training mode. Standard components have the mode in their name
    (``batchnorm_train``). If training mode couples the samples of a batch (BatchNorm), the Jacobian is that of one
    sample's output with respect to that sample's input, in a batch of ``context`` samples of which the others are held
    fixed; the feature dimension normalises over the whole batch. Random masks (dropout) are drawn once for each
    Jacobian and independently for each sample of the features.

    Parameters
    ----------
    component : torch.nn.Module or str
        Any module that maps a batch to a batch, or the name of one of the standard set (``standard_components``). The
        module itself is not changed: a copy is moved and measured.
    inputs : Tensor, array, mapping, tuple, Dataset, DataLoader or data set of Hugging Face, optional
        Samples of one shape for the component, read as ``jacobian_rank`` reads those of a network; the first
        ``jacobian_points`` of them are where the Jacobian is taken. Default: noise behind the random layer.
    limit : int, optional
        At most this many of the ``inputs``.
    differentiate : str, optional
        The name of the component's input in a mapping.
    shared, per_sample : names, optional
        As in ``jacobian_rank``. What all samples share is held fixed; a further input that each sample has its own of
        is refused.
    training : bool
        Whether to measure a component of your own in training mode.
    input_shape : sequence of int, optional
        Sizes of one sample, without the batch dimension. Default: that of ``inputs``, else 128×8×8 (paper, §6.1).
    samples : int, optional
        For the feature dimension, which they limit to samples − 1. Default: all ``inputs``, else 5,000 (paper,
        §6.1).
    seed : int
        Of the layer, the noise, and random masks; a named component draws its weights from it too.
    device : str or torch.device, optional
        Default: the first GPU, else the CPU. ``None``: where the component is.
    tolerance : ToleranceLike
        What counts as zero, for both quantities; the paper's is eps32·N·σ₁ with N values in the spectrum.
    jacobian_points : int
        At how many samples the Jacobian is taken; the rank reported is the largest.
    front : {"gaussian", "orthogonal"}
        The layer before the component: entries N(0, 1/n), which itself loses a few numerical dimensions, or a random
        orthogonal one, which leaves the component's singular values as they are.
    context : int
        Samples in the batch around a Jacobian's point where the component couples them.
    dtype : {"float64", "float32"}
        What is computed in. float64, because only there do zero and small singular values differ by sight.
    memory_budget : int or str, optional
        Bytes that the matrices may take, or a text such as ``"4GB"``; default: 80% of what is free.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    ModelError
        When the component cannot take ``input_shape``, or returns anything but one tensor with a row per sample.
    MeasurementError
        When outputs or derivatives are not finite, the Jacobian is zero, or no way of differentiating works.
    DeviceError
        When the device is absent, or the full Jacobian does not fit (the message says how much it needs).
    UsageError
        For options that cannot be used, and for an unknown component's name.

    Examples
    --------
    >>> result = probe(
    ...     "layernorm", input_shape=(4, 2, 2), samples=64, front="orthogonal", tolerance=1e-3, device="cpu"
    ... )
    >>> result.exact_rank_at_least, result.rank_after.value
    (15, 14)
    """
    own = None if isinstance(component, str) else _given(component)
    if training and own is None:
        raise UsageError(
            f"{parameter('training')} is for a component of your own; a standard component has the mode in its name"
        )
    meaning = {"differentiate": differentiate, "shared": shared, "per_sample": per_sample}
    target = nn.Identity() if own is None else own.module
    given = None if inputs is None else given_samples(target, inputs, limit, meaning)
    if inputs is None:
        for name, value in {"limit": limit, **meaning}.items():
            if value is not None and value != ():
                raise UsageError(f"{parameter(name)} belongs to {parameter('inputs')}; give {parameter('inputs')}")
    settings = Settings.of(
        input_shape=input_shape,
        samples=samples,
        seed=seed,
        device=device_of(device, None if own is None else own.module),
        dtype=dtype,
        tolerance=tolerance,
        jacobian_points=jacobian_points,
        context=context,
        front=front,
        training=training,
        memory_budget=memory_budget,
        given=None if given is None else given.x,
    )
    if own is not None and given is not None:
        own = _Unknown(own.name, with_shared(own.module, given, settings.dtype))
    chosen: Sequence[Component | _Unknown] = [own] if own is not None else _named([str(component)], settings)
    return _run(chosen, settings, progress, given).results[0]


def probe_all(
    components: Iterable[str] | Mapping[str, nn.Module] | None = None,
    *,
    inputs: Any = None,
    limit: int | None = None,
    scale: Scale = "full",
    input_shape: Sequence[int] | None = None,
    samples: int | None = None,
    progress: bool | Progress | None = None,
    **options: Any,
) -> ProbeResults:
    """Probe many components behind one and the same random layer (Fig. 3), or at the same samples of your own.

    Parameters
    ----------
    components : names or mapping, optional
        Names of the standard set, or modules by name; default: the whole standard set.
    inputs : Tensor, array, tuple, Dataset, DataLoader or data set of Hugging Face, optional
        Samples for every component in place of noise behind the layer, as of ``probe``; their shape and number
        replace those of the scale.
    limit : int, optional
        At most this many of the ``inputs``.
    scale : {"full", "small"}
        The paper's size (128×8×8, 5,000 samples), or 32×4×4 with 312 for a CPU.
    input_shape, samples : optional
        Instead of the scale's.
    progress : bool or callable, optional
        As in ``jacobian_rank``.
    **options
        As of ``probe``: ``seed``, ``device``, ``tolerance``, ``jacobian_points``, ``front``, ``context``,
        ``training``, ``dtype``, ``memory_budget``.

    Examples
    --------
    >>> some = probe_all(["relu", "avgpool"], input_shape=(4, 4, 4), samples=32, device="cpu", progress=False)
    >>> some["avgpool"].rank_after.value
    16
    """
    choice_of(scale, "scale", SCALES)
    known = {
        "seed": 0,
        "device": "auto",
        "tolerance": "paper",
        "jacobian_points": 1,
        "front": "gaussian",
        "context": 32,
        "training": False,
        "dtype": "float64",
        "memory_budget": None,
    }
    for name in options:
        if name not in known:
            raise UsageError(f"probe_all has no option {name!r}; {nearest(name, known)}")
    given = None if inputs is None else given_samples(nn.Identity(), inputs, limit, {})
    if inputs is None and limit is not None:
        raise UsageError(f"{parameter('limit')} belongs to {parameter('inputs')}; give {parameter('inputs')}")
    shape, count = SCALES[scale] if given is None else (None, None)
    merged: dict[str, Any] = {**known, **options}
    if isinstance(components, Mapping):
        home = next((part for part in components.values() if isinstance(part, nn.Module)), None)
        merged["device"] = device_of(merged["device"], home)
    settings = Settings.of(
        input_shape=shape if input_shape is None else input_shape,
        samples=count if samples is None else samples,
        given=None if given is None else given.x,
        **merged,
    )
    chosen: Sequence[Component | _Unknown]
    if isinstance(components, Mapping):
        chosen = [_given(module, name) for name, module in components.items()]
    else:
        chosen = _named([components] if isinstance(components, str) else components, settings)
    if not chosen:
        raise UsageError("components is empty; leave it out for the standard set")
    return _run(chosen, settings, progress, given)


def _named(names: Iterable[str] | None, settings: Settings) -> list[Component]:
    made = components_for(settings.input_shape, seed=settings.seed, only=names, given=settings.front == "none")
    return list(made.values())


def _given(module: Any, name: str | None = None) -> _Unknown:
    if not isinstance(module, nn.Module):
        raise UsageError(f"a component is a torch.nn.Module or a standard name; this is a {type(module).__name__}")
    no_script(module)
    return _Unknown(name or type(module).__name__, module)


class _Unknown:
    """A user's component: nothing is expected of it."""

    expected = None

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = self.label = name
        self.module = module


def _facts(
    part: Component | _Unknown, found: Measured, settings: Settings, reading: tuple[Fact, ...]
) -> tuple[Fact, ...]:
    own = mode_facts(part.module) if isinstance(part, _Unknown) and not settings.training else []
    coupled = Fact(FactKind.SAMPLES_COUPLED, {"context": settings.context})
    return (*own, *reading, *(coupled,) * found.coupled, *(Fact(FactKind.RANDOM_MASKS),) * found.random, *found.facts)


def _certificate(found: Measured) -> Fact:
    if not any(math.isnan(s.error_bound) for s in found.jacobians):
        return _CERTIFICATE
    return Fact(FactKind.NOT_IN_BOTH if found.alone else FactKind.IN_DOUBT)


def _run(
    chosen: Sequence[Component | _Unknown],
    settings: Settings,
    progress: bool | Progress | None,
    given: Given | None = None,
) -> ProbeResults:
    cuda = settings.device.type == "cuda"
    started = time.perf_counter()
    results = []
    several = len(chosen) > 1
    report = progress_for(progress, "Probing components" if several else f"Probing {chosen[0].name}")
    try:
        with measuring(nn.Identity(), settings.device):  # the guards; each component keeps its own mode
            bench = Bench(settings, None if given is None else given.x)
            before = bench.features_before, bench.jacobian_before
            peaks = [_peak_memory(settings.device)]
            for i, part in enumerate(chosen):
                if several:
                    report(i, len(chosen), part.name)
                begun = time.perf_counter()
                training = None if isinstance(part, Component) else settings.training
                told = None if several else report
                found = bench.after(part.module, part.name, part.expected, training=training, report=told)
                if cuda:
                    torch.cuda.synchronize(settings.device)
                peaks.append(_peak_memory(settings.device))
                facts = _facts(part, found, settings, () if given is None else given.facts)
                results.append(_result(part, found, facts, before, settings, time.perf_counter() - begun, peaks[-1]))
            if several:
                report(len(chosen), len(chosen), "done")
    finally:
        report.close()
    peak = max((p for p in peaks if p is not None), default=None)
    return ProbeResults(tuple(results), time.perf_counter() - started, peak)


def _peak_memory(device: torch.device) -> int | None:
    """Most bytes allocated on a GPU since the last call; ``None`` on the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _result(
    part: Component | _Unknown,
    found: Measured,
    facts: tuple[Fact, ...],
    before: Any,
    settings: Settings,
    seconds: float,
    peak: int | None,
) -> ProbeResult:
    return ProbeResult(
        name=part.name,
        label=part.label,
        features_before=before[0],
        features_after=found.features,
        jacobian_before=before[1],
        jacobian_after=found.jacobians,
        tolerance=settings.tolerance,
        input_shape=settings.input_shape,
        output_shape=found.output_shape,
        samples=settings.samples,
        seed=settings.seed,
        front=settings.front,
        dtype=dtype_name(settings.dtype),
        device=device_name(settings.device),
        method=found.way,
        facts=facts,
        expected_exact=tuple(e[0] for e in found.expected),
        expected_numerical=tuple(e[1] for e in found.expected),
        expectation=part.expected.note if isinstance(part, Component) else "",
        certificate=_certificate(found),
        versions=versions(),
        seconds=seconds,
        peak_memory=peak,
    )
