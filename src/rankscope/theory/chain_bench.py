"""Random chains of any depth: what the layers, and what stands around them, do to rank (paper, Fig. 1 d, e, f)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from rankscope._base.errors import DataError, UsageError, nearest
from rankscope._base.provenance import device_name, versions
from rankscope.spectra import EPS32, Spectrum, Tolerance, ToleranceLike, as_tolerance, spectrum_of_gram
from rankscope.theory._blocks import (
    ACTIVATIONS,
    NORMALISATIONS,
    Activation,
    Block,
    Init,
    Normalisation,
    init_std,
    sample_weights,
)
from rankscope.theory._matrices import as_matrix, positive_integer, takes_generator
from rankscope.theory.prediction import relative_tolerance
from rankscope.theory.profile import ChainProfile, ChainRun, ChainStep

__all__ = ["deep_chain"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
# A float64 Gram matrix resolves σ/σ_1 down to about 1e-7 (measured: right to 1 % at 1.6e-7), an SVD to 1e-13.
_GRAM_RTOL, _SVD_RTOL = 1e-6, 1e-12


def deep_chain(
    *,
    width: int = 1000,
    depth: int = 50,
    inputs: int | None = None,
    init: Init = "normal(0.02)",
    seeds: int | Sequence[int] = (0,),
    tolerance: ToleranceLike = "paper",
    activation: Activation | None = None,
    residual: bool | float = False,
    normalisation: Normalisation | None = None,
    float32_stop: bool = False,
    samples: int = 5000,
    dtype: str = "float64",
) -> ChainProfile:
    """Jacobian rank and PCA dimension of the features of random chains, at every depth.

    Every layer computes act(norm(W·h)), or h + α·act(norm(W·h)) with a residual; inputs are standard Gaussian. The
    Jacobian is taken at one further Gaussian input; BatchNorm normalises by the statistics of the samples, held
    fixed in the Jacobian (as in evaluation mode). The product is rescaled after every layer, which no rank
    notices, so that only the paper's own rule stops a chain. Its rounding is of order √depth·1e-16·σ_1.

    Parameters
    ----------
    width, depth : int
        Units per layer and number of layers. The paper: 1,000 and 50 (§6.1).
    inputs : int, optional
        Dimensions of the Gaussian input, at most the width: it fills the first units, the others get zero, and the
        Jacobian has as many columns. Default: the width.
    init : str or callable
        ``"normal(0.02)"`` (any ``normal(std)``), ``"kaiming_normal"``, ``"xavier_normal"`` (the paper's three), or a
        function of a ``numpy.random.Generator`` that returns width × width weights.
    seeds : int or sequence of int
        One chain is run for each.
    tolerance : Tolerance, str or float
        Of the Jacobian rank; an rtol of at least 1e-12. The feature dimension is always #{λ_i ≥ eps32·N·λ_1} (§6.1).
    activation : str, optional
        ``"relu"``, ``"gelu"`` or ``"tanh"``.
    residual : bool or float
        α; True means 1.
    normalisation : str, optional
        ``"layernorm"`` or ``"batchnorm"``, before the activation, without learned scales.
    float32_stop : bool
        End a chain at the first depth where every |J_ij| is below eps32, as the paper does (§6.1); that depth is
        left out.
    samples : int
        Inputs behind the covariance, at least 2; at most samples − 1 dimensions can show. 5,000: the paper's batch.
    dtype : str
        ``"float64"`` or ``"float32"`` for layers and features; spectra are always computed in float64.

    Raises
    ------
    UsageError
        When an option is out of its range or unknown; the message names the nearest known value.
    DataError
        When ``init`` returns another shape or non-finite values, when weights lie beyond what the dtype computes with,
        or features that may not be rescaled over- or underflow; the message names the layer.

    Examples
    --------
    >>> profile = deep_chain(width=40, depth=12, samples=100)
    >>> profile.jacobian_ranks.shape, bool(profile.jacobian_ranks[0, -1] < 40)
    ((1, 12), True)
    """
    started = time.perf_counter()
    width, depth = positive_integer("width", width), positive_integer("depth", depth)
    samples = positive_integer("samples", samples)
    columns = width if inputs is None else positive_integer("inputs", inputs)
    if columns > width:
        raise UsageError(f"inputs is {columns} with a width of {width}; a chain takes at most as many inputs as units")
    if samples < 2:
        raise UsageError("samples is 1; a covariance needs at least 2")
    if isinstance(init, str):
        init_std(init, width)
    elif not callable(init):
        raise UsageError(f"init is a {type(init).__name__}; give a name such as 'kaiming_normal' or a function of rng")
    else:
        takes_generator("init", init)
    for name, value, known in (
        ("activation", activation, ACTIVATIONS),
        ("normalisation", normalisation, NORMALISATIONS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"unknown {name} {value!r}; {nearest(str(value), known)}")
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; {nearest(str(dtype), _DTYPES)}")
    tol = as_tolerance(tolerance)
    rtol = relative_tolerance(tol, (width, columns))
    if rtol < _SVD_RTOL:
        raise UsageError(
            f"rtol is {rtol:g}, but a chain multiplied out in float64 resolves σ/σ_1 down to {_SVD_RTOL:g}; "
            "use chain_singular_values for smaller ones"
        )
    block = Block(activation, normalisation, _branch_scale(residual))
    runs = tuple(
        _run(seed, (width, columns), depth, init, block, tol, float32_stop, samples, _DTYPES[dtype])
        for seed in _seeds(seeds)
    )
    return ChainProfile(
        runs=runs,
        width=width,
        depth=depth,
        samples=samples,
        init=init if isinstance(init, str) else f"<{getattr(init, '__name__', type(init).__name__).strip('<>')}>",
        dtype=dtype,
        activation=activation,
        residual=block.residual,
        normalisation=normalisation,
        tolerance=tol,
        float32_stop=float32_stop,
        seconds=time.perf_counter() - started,
        provenance={**versions(), "device": device_name("cpu")},
        inputs=columns,
    )


def _branch_scale(residual: Any) -> float | None:
    if isinstance(residual, bool):
        return 1.0 if residual else None
    if not isinstance(residual, Real) or not math.isfinite(residual) or residual == 0:
        raise UsageError(f"residual is {residual!r}; give True, False, or the branch's scale as a finite number not 0")
    return float(residual)


def _seeds(seeds: Any) -> tuple[int, ...]:
    listed = tuple(seeds) if isinstance(seeds, Iterable) else (seeds,)
    if not listed or any(isinstance(s, bool) or not isinstance(s, Integral) or s < 0 for s in listed):
        raise UsageError(f"seeds is {seeds!r}; give one or more whole numbers of at least 0")
    return tuple(int(s) for s in listed)


def _run(
    seed: int,
    shape: tuple[int, int],
    depth: int,
    init: Init,
    block: Block,
    tolerance: Tolerance,
    float32_stop: bool,
    samples: int,
    dtype: torch.dtype,
) -> ChainRun:
    steps: list[ChainStep] = []
    chain = _linear if block.linear else _nonlinear
    rtol = tolerance.relative(shape)
    watched = None if isinstance(init, str) else _Watched(init)  # Gaussian weights are almost surely regular
    with torch.no_grad():
        states = chain(np.random.default_rng(seed), shape, depth, watched or init, block, samples, dtype)
        for layer, (jacobian, log_scale, features) in enumerate(states, 1):
            largest = float(jacobian.abs().max())
            if float32_stop and (largest == 0 or math.log(largest) + log_scale < math.log(EPS32)):
                return ChainRun(seed, tuple(steps), layer, tuple(watched.singular) if watched else ())
            spectrum = _jacobian_spectrum(jacobian, rtol)
            top = math.log(spectrum.sigma_max) + log_scale if spectrum.sigma_max else -math.inf
            steps.append(ChainStep(layer, spectrum, _covariance_spectrum(features, shape[0], jacobian.dtype), top))
    return ChainRun(seed, tuple(steps), singular=tuple(watched.singular) if watched else ())


class _Watched:
    """A caller's init that remembers which of its layers are singular to working precision, and their rank."""

    def __init__(self, init: Callable[[np.random.Generator], Any]) -> None:
        self.init = init
        self.layers = 0
        self.singular: list[tuple[int, int]] = []

    def __call__(self, rng: np.random.Generator) -> Any:
        self.layers += 1
        weights = as_matrix(self.init(rng), f"what init returned for layer {self.layers} (counted from 1)")
        if weights.shape[0] == weights.shape[1]:
            limit = len(weights) * float(np.finfo(np.float64).eps)
            # LU costs a twentieth of a singular value decomposition; only what it suspects is decomposed
            pivots = torch.linalg.lu_factor_ex(torch.from_numpy(weights))[0].diagonal().abs()
            if float(pivots.min()) <= 1e3 * limit * float(pivots.max()):
                sigma = np.linalg.svd(weights, compute_uv=False)
                rank = int((sigma > limit * sigma[0]).sum())
                if rank < len(weights):
                    self.singular.append((self.layers, rank))
        return weights


def _linear(
    rng: np.random.Generator,
    shape: tuple[int, int],
    depth: int,
    init: Init,
    block: Block,
    samples: int,
    dtype: torch.dtype,
) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
    """(J, log of the scale taken out of it, factor F) per layer, where FFᵀ is the features' scatter matrix.

    Centred inputs X = Q·R with Q orthonormal stay Q·(R·Jᵀ) under linear layers, so the width × min(samples, inputs)
    matrix F = J·Rᵀ replaces the samples: exactly the same covariance for a fraction of the work.
    """
    width, columns = shape
    inputs = torch.from_numpy(rng.standard_normal((samples, columns)))
    triangle = torch.linalg.qr(inputs - inputs.mean(0), mode="r").R.T.to(dtype)
    factor = torch.zeros(width, triangle.shape[1], dtype=dtype)
    factor[:columns] = triangle
    jacobian, log_scale = torch.eye(width, columns, dtype=dtype), 0.0
    for layer in range(1, depth + 1):
        weights = sample_weights(init, width, rng, layer, dtype)
        jacobian, size = _rescaled(block.push(jacobian, weights), layer)
        factor, _ = _rescaled(block.push(factor, weights), layer)
        log_scale += size
        yield jacobian, log_scale, factor


def _nonlinear(
    rng: np.random.Generator,
    shape: tuple[int, int],
    depth: int,
    init: Init,
    block: Block,
    samples: int,
    dtype: torch.dtype,
) -> Iterator[tuple[torch.Tensor, float, torch.Tensor]]:
    """The same with every sample pushed through; F is the transposed matrix of centred features."""
    width, columns = shape
    batch, point = torch.zeros(samples, width, dtype=dtype), torch.zeros(width, dtype=dtype)
    batch[:, :columns] = torch.from_numpy(rng.standard_normal((samples, columns)))
    point[:columns] = torch.from_numpy(rng.standard_normal(columns))
    jacobian, log_scale = torch.eye(width, columns, dtype=dtype), 0.0
    for layer in range(1, depth + 1):
        weights = sample_weights(init, width, rng, layer, dtype)
        try:
            jacobian, point, batch = block.step(jacobian, point, batch, weights)
        except DataError as error:
            verb = "lower" if "overflow" in str(error) else "raise"
            name = _name(dtype)
            raise DataError(
                f"{error} {name} at layer {layer} (counted from 1); {verb} the init's scale, or take fewer layers"
            ) from None
        jacobian, size = _rescaled(jacobian, layer)
        log_scale += size
        if block.homogeneous:
            size = float(batch.abs().max())
            if size > 0:
                batch, point = batch / size, point / size
        if not torch.isfinite(batch).all():
            raise DataError(
                f"the features overflow {_name(dtype)} at layer {layer} (counted from 1); lower the init's scale, "
                "or take fewer layers"
            )
        yield jacobian, log_scale, (batch - batch.mean(0)).T


def _rescaled(matrix: torch.Tensor, layer: int) -> tuple[torch.Tensor, float]:
    """The matrix at Frobenius norm 1 and the logarithm of the norm; a zero matrix stays as it is.

    By the largest entry first: squares of entries below 1e-162 would underflow, and those above 1e154 overflow.
    """
    largest = float(matrix.abs().max())
    if not math.isfinite(largest):
        raise DataError(f"the Jacobian overflows at layer {layer} (counted from 1); lower the init's scale")
    if largest == 0:
        return matrix, 0.0
    matrix = matrix / largest
    size = float(torch.linalg.vector_norm(matrix))
    return matrix / size, math.log(size) + math.log(largest)


def _jacobian_spectrum(jacobian: torch.Tensor, rtol: float) -> Spectrum:
    """Through the Gram matrix where that resolves the threshold, by SVD below. The product is taken as computed."""
    if rtol < _GRAM_RTOL:
        return Spectrum.of(jacobian)
    values = jacobian.to(torch.float64)
    gram = values.T @ values
    rows, columns = values.shape
    return spectrum_of_gram(
        gram, (rows, columns), dtype=_name(jacobian.dtype), error_bound=0.0, eigenvalues=_eigenvalues(gram)
    )


def _covariance_spectrum(factor: torch.Tensor, width: int, dtype: torch.dtype) -> Spectrum:
    """Eigenvalues of the covariance FFᵀ, up to a scale that no rank notices, as the Spectrum of that matrix."""
    values = factor.to(torch.float64)
    largest = float(values.abs().max())
    values = values / largest if largest > 0 else values  # else its squares may under- or overflow
    covariance = values @ values.T
    trace = float(torch.trace(covariance))
    covariance = covariance / trace if trace > 0 else covariance
    eigenvalues = _eigenvalues(covariance).clamp_min_(0).numpy()
    # forming and solving move each eigenvalue by at most about this much, beside a trace of 1
    error = 2.0**-52 * (math.sqrt(factor.shape[1]) * 8 + width)
    return Spectrum(eigenvalues, (width, width), _name(dtype), error_bound=error if trace > 0 else 0.0)


def _eigenvalues(symmetric: torch.Tensor) -> torch.Tensor:
    """Ascending, on one thread: at these sizes the solver waits for memory, and two threads that share a machine took
    6.8 s for width 1000 where one takes 0.15 s."""
    with _threads().limit(limits=1, user_api="blas"):
        return torch.from_numpy(np.linalg.eigvalsh(symmetric.numpy()))


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
