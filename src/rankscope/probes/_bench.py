"""Random layer, features and Jacobians that all components of one probe share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, DeviceError, MeasurementError, parameter
from rankscope._base.facts import Fact
from rankscope._base.progress import Reporter
from rankscope.probes._component import Prepared, check_finite
from rankscope.probes._derivative import ComponentDerivative, relative_error
from rankscope.probes._settings import Settings
from rankscope.probes.components import Expectation
from rankscope.spectra import Spectrum, exponent_near, gram_square_error, spectrum_of_gram, times_two_to

__all__ = ["PROBES", "Bench", "Measured", "covariance_spectrum", "matrix_spectrum"]

_SVD_LIMIT = 1024  # up to this side a float64 SVD costs a second and resolves σ to 1e-13·σ₁; a Gram matrix to 1e-6
_NORMAL = 900  # 2^±900 times eigenvalues of scaled values are normal numbers
_ROWS = 8192  # converted to float64 at once
PROBES = 10  # Gaussian tangents of the certificate: it fails with probability 1e-10
_CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**31}
_WORKSPACE = 8.0  # a forward-mode rule's intermediates, in outputs (LayerNorm keeps about six)


@dataclass(frozen=True)
class Measured:
    """Spectra after one component, and how they were obtained."""

    features: Spectrum
    jacobians: tuple[Spectrum, ...]
    expected: tuple[tuple[int | None, int | None], ...]
    way: Fact
    facts: tuple[Fact, ...]
    alone: bool
    """Whether there was no second precision to compare with."""
    coupled: bool
    random: bool
    output_shape: tuple[int, ...]


def covariance_spectrum(values: Tensor, *, relative_error: float = 0.0, dtype: str = "float64") -> Spectrum:
    """Eigenvalues of the covariance of (samples, d) values, as the ``Spectrum`` of that d × d matrix.

    From the samples × samples Gram matrix where that is smaller; the other eigenvalues are zero. ``relative_error`` is
    ‖E‖_F/‖values‖_F of the values' own error E, which moves an eigenvalue by at most
    (2·‖centred values‖₂·‖E‖ + ‖E‖²)/(samples − 1). Beyond about 2^±900 all eigenvalues are multiplied by one power of
    two that keeps them normal numbers.
    """
    samples, d = values.shape
    exponent = int(exponent_near(values))
    centred = values.to(torch.float64, copy=True)
    centred *= 2.0**-exponent
    length = float(torch.linalg.vector_norm(centred))
    # the first sample goes first: a mean is rounded, and what it leaves of a constant would count as a dimension
    centred -= centred[:1].clone()
    centred -= centred.mean(0)
    gram = centred @ centred.T if d > samples else centred.T @ centred
    trace = float(gram.diagonal().sum())
    found = _eigenvalues(gram).clamp_min(0).flip(0).cpu()
    eigenvalues = torch.zeros(d, dtype=torch.float64)
    eigenvalues[: len(found)] = found[:d]
    if d >= samples:
        eigenvalues[samples - 1 :] = 0.0  # centring leaves samples − 1 dimensions
    top = float(eigenvalues[0])
    error = gram_square_error(max(samples, d), len(found), trace, math.sqrt(top))
    moved = relative_error * length
    error += 2 * math.sqrt(top) * moved + moved * moved
    error = error if math.isfinite(error) else math.nan
    scale = 1.0 / (samples - 1)
    own = min(max(2 * exponent, -_NORMAL), _NORMAL)
    found = np.ldexp((eigenvalues * scale).numpy(), own)
    return Spectrum(found, (d, d), dtype, error_bound=float(np.ldexp(error * scale, own)))


def matrix_spectrum(transposed: Tensor, *, error_bound: float = 0.0) -> Spectrum:
    """Spectrum of A from Aᵀ (n, m): float64 SVD while the smaller side is at most 1,024, else the float64 Gram."""
    n, m = transposed.shape
    dtype = dtype_name(transposed.dtype)
    if min(n, m) <= _SVD_LIMIT:
        return Spectrum.of(transposed.T, error_bound=error_bound)
    exponent = int(exponent_near(transposed))
    gram = torch.zeros(min(n, m), min(n, m), dtype=torch.float64, device=transposed.device)
    for part in (transposed if m <= n else transposed.T).split(_ROWS):
        scaled = times_two_to(part, -exponent)
        gram.addmm_(scaled.T, scaled)
    return spectrum_of_gram(
        gram,
        (m, n),
        dtype=dtype,
        error_bound=error_bound,
        summed=max(m, n),
        eigenvalues=_eigenvalues(gram),
        exponent=exponent,
    )


def _eigenvalues(symmetric: Tensor) -> Tensor:
    """Ascending; on the CPU where a GPU's solver fails (its workspace does not fit, or it does not converge)."""
    try:
        return torch.linalg.eigvalsh(symmetric)
    except RuntimeError:
        if symmetric.device.type == "cpu":
            raise
        return torch.linalg.eigvalsh(symmetric.cpu())


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """cuDNN's training-mode BatchNorm has no forward-mode formula; torch's own has."""
    before = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = False
        yield
    finally:
        torch.backends.cudnn.enabled = before


class Bench:
    """Gaussian input x, a random layer h = W·x of as many units, reshaped to ``input_shape``; spectra of h and W.

    ``given`` samples are h themselves, and W the identity. Where ``settings.dtype`` rounds them, the error bounds hold
    for the samples as they were given.
    """

    def __init__(self, settings: Settings, given: Tensor | None = None) -> None:
        self.settings = settings
        self.exact: Tensor | None = None
        n = settings.size
        self._require(self._bytes(n), "before any component")
        generator = torch.Generator().manual_seed(settings.seed)

        def drawn(rows: int) -> Tensor:  # on the CPU in float32, so that a seed means the same everywhere
            return torch.randn(rows, n, generator=generator).to(settings.device, settings.dtype)

        if given is not None:
            self.weight = torch.eye(n, device=settings.device, dtype=settings.dtype)
            self.features = given.to(settings.device, settings.dtype)
            if not bool(torch.isfinite(self.features).all()):  # they were finite as given
                raise DataError(
                    f"{parameter('inputs')} reach {float(given.abs().max()):.3g}, which is infinite in {self._dtype}; "
                    f"choose {parameter('dtype', 'float64')} or scale the inputs"
                )
            exact = given.to(settings.device, torch.float64)
            if not torch.equal(exact, self.features.to(torch.float64)):
                self.exact = exact
        else:
            weight = drawn(n) / math.sqrt(n)  # keeps unit variance
            if settings.front == "orthogonal":
                weight = torch.linalg.qr(weight.to(torch.float64))[0].to(settings.dtype)
            noise = drawn(settings.samples)
            self.weight = weight
            self.features = (noise @ weight.T).view(settings.samples, *settings.input_shape)
        self.probes = drawn(PROBES)

    @cached_property
    def features_before(self) -> Spectrum:
        return covariance_spectrum(
            self.features.reshape(len(self.features), -1), relative_error=self._front_error, dtype=self._dtype
        )

    @property
    def _front_error(self) -> float:
        """Of a product of two matrices in floating point: u·n at most, √n·u in practice; of a conversion its own."""
        if self.settings.front == "none":
            return 0.0 if self.exact is None else relative_error(self.features, self.exact)
        return torch.finfo(self.settings.dtype).eps * math.sqrt(self.settings.size)

    @cached_property
    def jacobian_before(self) -> Spectrum:
        return matrix_spectrum(self.weight.T)

    def after(
        self,
        module: nn.Module,
        name: str,
        expectation: Expectation | None = None,
        *,
        training: bool | None = None,
        report: Reporter | None = None,
    ) -> Measured:
        """Everything that is measured of one component, in the mode asked for or, with ``None``, in its own.

        ``report`` counts columns of Jacobians, and the features as one more.
        """
        settings = self.settings
        given = settings.front == "none"
        part = Prepared(module, name, self.features, seed=settings.seed, training=training, given=given)
        with _without_cudnn() if part.coupled else nullcontext():
            return self._measure(part, expectation, report if report is not None else Reporter())

    def _measure(self, part: Prepared, expectation: Expectation | None, report: Reporter) -> Measured:
        settings, name = self.settings, part.name
        steps = settings.points * settings.size + 1
        m = math.prod(part.output_shape)
        self._require(self._bytes(m), f"of {name}")
        derivative = ComponentDerivative(part, settings.device, settings.dtype)
        spectra, expected, moved = [], [], False
        probes = (self.probes @ self.weight.T).view(-1, *settings.input_shape)
        for point in range(settings.points):
            part.seed = settings.seed + point  # another mask at every point
            x, others = self._point(self.features, point, part.coupled)
            given = None if self.exact is None else self._point(self.exact, point, part.coupled)
            jacobian = derivative.at(x, others)
            columns = torch.empty(settings.size, m, device=x.device, dtype=settings.dtype)
            row, per_sample = 0, max(m, settings.size) * (settings.context if part.coupled else 1)
            for tangents in self._tangents(per_sample, together=jacobian.traced is None and jacobian.method.whole):
                columns[row : row + len(tangents)] = jacobian.push(tangents)[0]
                row += len(tangents)
                report(point * settings.size + row, steps, "Jacobian")
            check_finite(columns, f"the Jacobian of {name}")
            moved = moved or bool(columns.any())
            spectra.append(matrix_spectrum(columns, error_bound=derivative.error_bound(jacobian, probes, given)))
            del columns
            if expectation is not None:
                y = jacobian.outputs()[0].view(1, *part.output_shape)
                expected.append((expectation.exact_rank(x, y), expectation.numerical_rank(x, y)))
        if not moved:
            raise MeasurementError(
                f"the Jacobian of {name} is zero at {settings.points} of {settings.points} points: its output does "
                "not depend on its input; check that it is not constant and detaches nothing"
            )
        part.seed = settings.seed
        # the features that go in carry the random layer's rounding; exact samples show that of a conversion
        exact = None if self.exact is None or given is None else (self.exact[: settings.context], given[1])
        error = derivative.output_error(self.features[: settings.context], others, exact)
        error += self._front_error if exact is None else 0.0
        features = covariance_spectrum(part.all_outputs(self.features), relative_error=error, dtype=self._dtype)
        report(steps, steps, "features")
        seen = derivative.way, derivative.facts, derivative.alone
        return Measured(features, tuple(spectra), tuple(expected), *seen, part.coupled, part.random, part.output_shape)

    def _point(self, samples: Tensor, point: int, coupled: bool) -> tuple[Tensor, Tensor | None]:
        """One sample, and those that share its batch where samples are coupled."""
        others = torch.cat([samples[:point], samples[point + 1 :]])[: self.settings.context - 1] if coupled else None
        # its own storage: a tangent of a view is allocated as large as what it views, here all the samples
        return samples[point : point + 1].clone(), others

    @property
    def _dtype(self) -> str:
        return dtype_name(self.settings.dtype)

    def _tangents(self, per_sample: int, *, together: bool) -> Iterator[Tensor]:
        """The random layer's columns, a chunk at a time or all ``together``, as directions of the component's input."""
        size = self.weight.element_size() * per_sample * _WORKSPACE
        chunk = int(max(1, min(1024, _CHUNK_BYTES[self.settings.device.type] // size)))
        chunk = self.settings.size if together else chunk
        for start in range(0, self.settings.size, chunk):
            # as rows in memory: with tangents that lie across the matrix 2,048 columns took 175 s, not 5
            rows = self.weight[:, start : start + chunk].T.contiguous()
            yield rows.view(-1, *self.settings.input_shape)

    def _bytes(self, outputs: int) -> int:
        """Bytes at the peak: random layer, features, outputs, columns of J, a Gram matrix and its eigensolver."""
        s, n = self.settings, self.settings.size
        item = torch.finfo(s.dtype).bits // 8
        held = item * (n * n + s.samples * n) + (8 * s.samples * n if s.front == "none" else 0)  # as given, in float64
        covariance = 16 * s.samples * outputs + 24 * min(s.samples, outputs) ** 2
        jacobian = item * n * outputs + 24 * min(n, outputs) ** 2
        return held + max(covariance, jacobian) + _CHUNK_BYTES[s.device.type]

    def _require(self, needed: int, what: str) -> None:
        if needed > self.settings.budget:
            raise DeviceError(
                f"the full Jacobian {what} and its spectrum need about {needed / 2**30:.1f} GB on "
                f"{self.settings.device}, and the memory budget is {self.settings.budget / 2**30:.1f} GB; choose a "
                f"smaller {parameter('input_shape')} or {parameter('samples')} ({parameter('scale', 'small')})"
            )
