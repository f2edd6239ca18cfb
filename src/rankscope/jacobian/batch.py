"""Measure a batch of images: choose the method and chunk once, then sweep, decompose and certify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from rankscope.jacobian.budget import bytes_per_tangent, chunk_for
from rankscope.jacobian.checks import adjoint_error, count_kinks, error_bounds, kink_sides, lower_precision_inside
from rankscope.jacobian.graphs import Graphed
from rankscope.jacobian.linearise import Linearised
from rankscope.jacobian.methods import METHODS, Method, choose_method
from rankscope.jacobian.runner import Runner
from rankscope.jacobian.sweep import Push, Sweep, SweepResult
from rankscope.slicing import Columns, ModuleCall, Sample
from rankscope.spectra import Spectrum, spectrum_of_gram

__all__ = ["BatchMeasurer", "Settings", "join"]

_PROBES = 6  # the certificate's bound fails with probability 10^-6
_ADJOINT_LIMIT = 1e-3
_AGREE = 1e-4  # of a cut point's largest entry; a kink on the other side would show as far more
_MOST_IMAGES = 64
_SHARE = 4  # of the budget's J storage, images that share a sweep take at most a quarter


@dataclass(frozen=True)
class Settings:
    """What does not change from image to image."""

    chunk_size: int | Literal["auto"]
    budget: int
    certify: bool
    device: torch.device
    dtype: torch.dtype
    columns: Columns


def join(samples: Sequence[Sample]) -> Sample:
    """Samples of one shape as one ``Sample`` whose first dimension counts images."""
    if len(samples) == 1:
        return samples[0]
    return replace(samples[0], x=torch.cat([s.x for s in samples]))


class BatchMeasurer:
    """Use it inside ``measuring``. What the first sample shows (method, reference, sharing) holds for the others."""

    def __init__(self, model: nn.Module, calls: Sequence[ModuleCall], settings: Settings) -> None:
        self.settings, self.calls = settings, calls
        keys = [c.key for c in calls]
        self.runner = Runner(model, keys, settings.device, settings.dtype)
        other = torch.float64 if settings.dtype == torch.float32 else torch.float32
        self.exact = Runner(model, keys, settings.device, other) if settings.certify else None
        self.method: Method | None = None
        self.push: Push | None = None
        self.plain: Push | None = None
        self.linearised: Linearised | None = None
        self.difference = 0.0
        self.failed_methods: list[str] = []
        self.failures: dict[str, str] = {}
        self.notes: list[str] = []
        self.adjoint: float | None = None
        self.certificate = "not asked for"
        self.chunk = 0
        self._batch: int | None = None

    @property
    def method_name(self) -> str:
        """The way tangents were pushed, in words."""
        if self.method is None:
            return "read from finished images"
        if self.linearised is not None:
            return f"linearised network, within {max(self.difference, 1e-16):.0e} of {self.method.name}"
        return self.method.name

    def batch_size(self, sample: Sample, remaining: int) -> int:
        """How many images share a sweep."""
        if self._batch is None:
            with self.runner.hooked():
                self._prepare(sample)
                self._batch = self._shared(sample)
        return max(min(self._batch, remaining), 1)

    def _prepare(self, sample: Sample) -> None:
        """On the first sample: the method, the adjoint check, and whether a float64 reference exists."""
        generator = torch.Generator().manual_seed(0xF0)
        direction = torch.randn(sample.x.shape[1:], generator=generator).to(sample.x)
        self.runner.rows = [None] * len(self.calls)
        self.method, out, self.failed_methods = choose_method(self.runner, sample, direction[None])
        self.push = self.method
        if self.settings.device.type == "cuda" and self.method is METHODS[0] and Graphed.suits(sample):
            self.plain = Graphed(self.method)
        else:
            self.plain = self.method
        self.push = self.plain
        self._linearise(sample, direction, out)
        self.adjoint, where = adjoint_error(self.runner, sample, direction, out)
        if self.adjoint is None:
            self.notes.append(f"forward mode could not be checked against reverse mode: {where}")
        elif self.adjoint > _ADJOINT_LIMIT:
            self.notes.append(
                f"forward and reverse mode disagree by {self.adjoint:.1%} at {where!r}: an operator has a wrong "
                "derivative, or a tensor leaves the computation; do not trust layers from there on"
            )
        if self.exact is not None:
            self._check_exact(sample)

    def _linearise(self, sample: Sample, direction: Tensor, expected: tuple[Tensor, ...]) -> None:
        """Take the faster path where it gives what the plain one gave; say why where it does not."""
        assert self.method is not None
        fast = Linearised(self.runner, self.method)
        try:
            found = fast(self.runner, sample, direction[None])
        except Exception as error:  # tracing runs the model's own code, which may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.failed_methods.append(f"linearised network: {reason[:200]}")
            return
        self.difference = max((_relative(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)
        if not self.difference <= _AGREE * (1 if self.settings.dtype == torch.float32 else 1e-7):
            self.failed_methods.append(
                f"linearised network: differs from {self.method.name} by {self.difference:.1e} of the largest entry"
            )
            return
        self.linearised = fast
        self.push = fast

    def _check_exact(self, sample: Sample) -> None:
        assert self.exact is not None
        down = self.settings.dtype == torch.float64
        try:
            with self.exact.hooked():
                one = sample.to(self.settings.device, self.exact.dtype)
                narrow = lower_precision_inside(self.exact, one) if not down else False
        except (RuntimeError, TypeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.notes.append(f"no float64 reference, so no rank is certified: {reason}")
            self.certificate = "none: the model does not run in float64"
            self.exact = None
            return
        if down:
            self.certificate = "estimate: the float32 error, measured with 6 probes, scaled to float64"
        elif narrow:
            self.certificate = "estimate: 6 probes, but the model casts to lower precision inside"
            self.notes.append(
                "the model casts to lower precision inside, so its float64 probes bound the error only roughly"
            )
        else:
            self.certificate = "6 float64 probes; each bound fails with probability 1e-6"

    def _shared(self, sample: Sample) -> int:
        if any(isinstance(v, Tensor) for v in sample.extra.values()):
            return 1
        self.runner.rows = [None] * len(self.calls)
        single = self.runner.outputs(sample, sample.x)
        row = self.settings.columns.count(tuple(sample.x.shape[1:])) * sample.x.element_size()
        stored = sum(o.numel() for o in single) * row
        fits = self.settings.budget // _SHARE // max(stored, 1)
        if fits < 2 or any(c.shape[:1] != (1,) for c in self.calls):
            return 1
        pair = replace(sample, x=torch.cat([sample.x, torch.flip(sample.x, [-1]) * 0.5]))
        try:
            double = self.runner.outputs(pair, pair.x)
        except (RuntimeError, ValueError, TypeError):
            return 1
        for a, b in zip(single, double, strict=True):
            if b.numel() != 2 * a.numel():
                return 1
            scale = float(a.abs().max()) or 1.0
            if float((a - b[: len(a)]).abs().max()) > 1e-4 * scale:
                return 1  # images of one batch change each other
        return int(min(fits, _MOST_IMAGES))

    def measure(self, sample: Sample) -> list[tuple[list[Spectrum | None], int]]:
        """For every image of the batch: one spectrum a cut point (``None`` where not finite), and its kinks."""
        with self.runner.hooked():
            self.runner.rows = [None] * len(self.calls)
            if self.settings.chunk_size == "auto":
                each = bytes_per_tangent(self.runner, sample)
                shape = tuple(sample.x.shape[1:])
                self.chunk = chunk_for(
                    self.settings.columns.count(shape), each, self.settings.budget // 2, self.settings.device
                )
            else:
                self.chunk = self.settings.chunk_size
            sweep = self._sweep(self.runner, sample, self.push)
            probes = None
            if self.exact is not None:
                generator = torch.Generator().manual_seed(0xCE27)
                probes = torch.randn(_PROBES, sweep.count, generator=generator, dtype=torch.float64)
            result = sweep.run(sample, probes)
        bounds, kinks = self._certify(sample, result, probes)
        return self._spectra(result, bounds, kinks, len(sample.x), sweep.count)

    def _sweep(self, runner: Runner, sample: Sample, push: Push | None) -> Sweep:
        assert self.method is not None
        assert push is not None
        shape = tuple(sample.x.shape[1:])
        chunk = min(self.chunk, self.settings.columns.count(shape))
        budget = self.settings.budget
        return Sweep(runner, self.settings.columns, shape, self.method, push, chunk=chunk, budget=budget)

    def _certify(
        self, sample: Sample, result: SweepResult, probes: Tensor | None
    ) -> tuple[list[list[float]], list[int]]:
        images = len(sample.x)
        if self.exact is None or probes is None:
            return [[float("nan")] * images for _ in self.calls], [0] * images
        one = sample.to(self.settings.device, self.exact.dtype)
        with self.exact.hooked():
            bounds = error_bounds(self._sweep(self.exact, one, self.plain), one, result, probes)
            if self.exact.dtype == torch.float32:
                # the float32 sweep errs by eps32/eps64 = 2^29 more; 16 for what rounding need not scale exactly
                bounds = [[b * 2.0**-25 for b in row] for row in bounds]
            exact_sides = kink_sides(self.exact, one)
        with self.runner.hooked():
            sides = kink_sides(self.runner, sample)
        return bounds, count_kinks(sides, exact_sides, images)

    def _spectra(
        self, result: SweepResult, bounds: list[list[float]], kinks: list[int], images: int, columns: int
    ) -> list[tuple[list[Spectrum | None], int]]:
        flat = [(k, i) for k in range(len(self.calls)) for i in range(images) if result.finite[k][i]]
        eigenvalues = _eigenvalues([result.grams[k][i] for k, i in flat])
        table: dict[tuple[int, int], Spectrum] = {}
        name = str(self.settings.dtype).removeprefix("torch.")
        for (k, i), values in zip(flat, eigenvalues, strict=True):
            gram = result.grams[k][i]
            summed = columns if result.transposed[k][i] else result.kept[k][i]
            bound = bounds[k][i]
            table[k, i] = spectrum_of_gram(
                gram,
                (result.rows[k], columns),
                dtype=name,
                error_bound=bound if bound - bound == 0 else float("nan"),
                summed=summed,
                eigenvalues=values,
            )
        for k, call in enumerate(self.calls):
            if not all(result.finite[k]):
                self.failures.setdefault(call.name, "its Jacobian has NaN or infinite entries")
        return [([table.get((k, i)) for k in range(len(self.calls))], kinks[i]) for i in range(images)]


def _eigenvalues(grams: list[Tensor]) -> list[Tensor]:
    """Ascending eigenvalues of symmetric matrices, those of one size together."""
    found: list[Tensor] = [torch.zeros(0, dtype=torch.float64)] * len(grams)
    sizes: dict[int, list[int]] = {}
    for place, gram in enumerate(grams):
        sizes.setdefault(gram.shape[0], []).append(place)
    for size, places in sizes.items():
        if size == 0:
            continue
        values = torch.linalg.eigvalsh(torch.stack([grams[p] for p in places])).cpu()
        for p, v in zip(places, values, strict=True):
            found[p] = v
    return found


def _relative(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    top = float(b.abs().max()) if b.numel() else 0.0
    gap = float((a - b).abs().max()) if b.numel() else 0.0
    return gap / top if top > 0 else gap
