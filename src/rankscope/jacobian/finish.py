"""From Gram matrices to spectra. Beside a GPU this runs while the next image is swept.

The eigenvalues of one 768 × 768 matrix take a GPU 7 ms of small dependent kernels, which also hold up the sweep; a
processor core takes 0.05 s, so with eight cores or more the host does it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from rankscope._base.dtypes import dtype_name
from rankscope._base.threads import single_core_threads
from rankscope.jacobian.sweep import SweepResult
from rankscope.linear.graphs import stream_beside
from rankscope.spectra import Spectrum, norm_bound_of_lengths, spectrum_of_gram
from rankscope.spectra.density import AnySpectrum

__all__ = ["Finished", "Finisher"]

_Made = TypeVar("_Made")

_CORES = 8  # from this many the host's cores together outrun the GPU's eigensolver
_ABREAST = 2  # batches decomposed at once: with one, cores idle while its last matrices are solved
_LARGE = 2048  # rows from which they do not: 8,192 take an H200 0.7 s, and a core minutes
_STACK = 2**30  # bytes of matrices that are decomposed together


@dataclass(frozen=True)
class Finished:
    """One image: a spectrum a cut point, and units moved across a kink.

    There is no spectrum where the Jacobian is not finite, and at the places in ``uncalled``: the image calls nothing
    there.
    """

    spectra: list[AnySpectrum | None]
    kinks: int
    uncalled: tuple[int, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Why there is no spectrum, by place, where that is not because the Jacobian is not finite."""
    marks: Mapping[int, float] = field(default_factory=dict)
    """What a single product gave, by place (``KeptCut.mark``)."""
    elsewhere: bool = False
    """Whether the image is put together in another process, from what this one and others have measured of it."""

    def among(self, places: Sequence[int], count: int) -> Finished:
        """The same image with these spectra at ``places`` of ``count`` cut points; it does not call the others."""
        if self.elsewhere:
            return self
        spectra: list[AnySpectrum | None] = [None] * count
        for place, spectrum in zip(places, self.spectra, strict=True):
            spectra[place] = spectrum
        missing = set(range(count)) - {p for k, p in enumerate(places) if k not in self.uncalled}
        reasons = {places[k]: why for k, why in self.reasons.items()}
        marks = {places[k]: mark for k, mark in self.marks.items()}
        return Finished(spectra, self.kinks, tuple(sorted(missing)), reasons, marks)


class Finisher:
    """Decomposes what a sweep left; ``device`` decides whether in the background."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype_name(dtype)
        cuda = device.type == "cuda"
        self._pool = ThreadPoolExecutor(_ABREAST) if cuda else None
        self._stream = stream_beside(device) if cuda else None
        # with threads of its own: what finishes a batch waits for what was begun of it
        self._early = ThreadPoolExecutor(_ABREAST) if cuda else None
        self._early_stream = stream_beside(device) if cuda else None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._leave = ExitStack()
        self._solvers = None
        if self._pool is not None and cores >= _CORES:
            self._solvers = self._leave.enter_context(single_core_threads(min(cores, 16)))

    def close(self) -> None:
        """Wait for what is under way."""
        try:
            for pool in (self._early, self._pool):
                if pool is not None:
                    pool.shutdown(wait=True)
        finally:
            self._leave.close()

    def begin(self, result: SweepResult) -> None:
        """Start on the eigenvalues, which need no certificate: its passes leave the host's other cores idle."""
        if self._early is not None:
            grams = [gram for images in result.grams for gram in images]
            result.eigenvalues = _behind(self._early, self._early_stream, lambda: self._eigenvalues(grams))

    def submit(
        self, result: SweepResult, lengths: Tensor | None, flips: Tensor | None, images: int, columns: int
    ) -> Callable[[], list[Finished]]:
        """Call what is returned to get one ``Finished`` an image."""
        result.products.clear()
        if self._pool is None:
            done = self._finish(result, lengths, flips, images, columns)
            return lambda: done
        future = _behind(self._pool, self._stream, lambda: self._finish(result, lengths, flips, images, columns))
        return future.result

    def _eigenvalues(self, grams: list[Tensor]) -> list[Tensor | None]:
        if self._solvers is None:
            return _eigenvalues(grams)
        small = [p for p, gram in enumerate(grams) if len(gram) < _LARGE]
        large = [p for p, gram in enumerate(grams) if len(gram) >= _LARGE]
        host = self._solvers.map(_host_eigenvalues, _on_the_host([grams[p] for p in small]))
        found = dict(zip(large, _eigenvalues([grams[p] for p in large]), strict=True))
        found.update(zip(small, host, strict=True))
        return [found[p] for p in range(len(grams))]

    def _finish(
        self,
        result: SweepResult,
        lengths: Tensor | None,
        flips: Tensor | None,
        images: int,
        columns: int,
    ) -> list[Finished]:
        measured = None if lengths is None else lengths.cpu()
        kinks = [0] * images if flips is None else [int(n) for n in flips.cpu()]
        places = [(k, i) for k in range(len(result.grams)) for i in range(images)]
        table: dict[tuple[int, int], Spectrum] = {}
        grams = [result.grams[k][i] for k, i in places]
        begun = result.eigenvalues
        found = self._eigenvalues(grams) if begun is None else begun.result()
        for (k, i), gram, values in zip(places, grams, found, strict=True):
            if values is None:
                continue
            bound = math.nan if measured is None else norm_bound_of_lengths(measured[k, :, i])
            table[k, i] = spectrum_of_gram(
                gram,
                (result.rows[k], columns),
                dtype=self.dtype,
                error_bound=bound if math.isfinite(bound) else math.nan,
                summed=columns if result.transposed[k][i] else result.kept[k][i],
                eigenvalues=values,
                exponent=result.exponents[k][i],
            )
        return [Finished([table.get((k, i)) for k in range(len(result.grams))], kinks[i]) for i in range(images)]


def _behind(pool: Executor, stream: torch.cuda.Stream | None, work: Callable[[], _Made]) -> Future[_Made]:
    """``work`` in the background, on a stream of its own behind what the device has been given so far."""
    if stream is None:
        return pool.submit(work)
    ready = torch.cuda.Event()
    ready.record()

    def run() -> _Made:
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            return work()

    return pool.submit(run)


def _eigenvalues(grams: list[Tensor]) -> list[Tensor | None]:
    """Ascending eigenvalues of symmetric matrices, those of one size together; ``None`` for one that is not finite."""
    found: list[Tensor | None] = [None] * len(grams)
    sizes: dict[int, list[int]] = {}
    for place, gram in enumerate(grams):
        sizes.setdefault(gram.shape[0], []).append(place)
    for size, places in sizes.items():
        if size == 0:
            for p in places:
                found[p] = torch.zeros(0, dtype=torch.float64)
            continue
        each = max(_STACK // (8 * size * size), 1)
        for start in range(0, len(places), each):
            some = places[start : start + each]
            stack = torch.stack([grams[p] for p in some])
            finite = torch.isfinite(stack.diagonal(dim1=1, dim2=2)).all(1)
            good = [p for p, ok in zip(some, finite.tolist(), strict=True) if ok]
            if good:
                values = torch.linalg.eigvalsh(stack if len(good) == len(some) else stack[finite]).cpu()
                for p, v in zip(good, values, strict=True):
                    found[p] = v
    return found


def _on_the_host(grams: list[Tensor]) -> list[Tensor]:
    """Through pinned memory: a copy to any other keeps the GPU's copy engine waiting for the host."""
    copies = [torch.empty(g.shape, dtype=g.dtype, pin_memory=True).copy_(g, non_blocking=True) for g in grams]
    torch.cuda.current_stream().synchronize()
    return copies


def _host_eigenvalues(gram: Tensor) -> Tensor | None:
    """The same for one matrix on one processor core.

    By torch: where 16 threads solve at once, numpy's library takes 1.6 times as long, and scipy lets no other thread
    run.
    """
    if not bool(torch.isfinite(gram.diagonal()).all()):
        return None
    return torch.linalg.eigvalsh(gram)
