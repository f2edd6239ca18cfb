"""Random chains of any depth: what the layers, and what stands around them, do to rank (paper, Fig. 1 d, e, f)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from rankscope._base.checks import DtypeLike, choice_of, count_of, dtype_of, seed_of
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import UsageError, parameter
from rankscope._base.progress import Progress, Reporter, reporting
from rankscope._base.provenance import device_name, versions
from rankscope.spectra import EPS32, Tolerance, ToleranceLike, as_tolerance
from rankscope.theory._blocks import (
    ACTIVATIONS,
    NORMALISATIONS,
    Activation,
    Block,
    Init,
    Normalisation,
    init_std,
)
from rankscope.theory._chain_push import ChainPush
from rankscope.theory._chain_spectra import SVD_RTOL, covariance_spectrum, jacobian_spectrum
from rankscope.theory._matrices import as_matrix, takes_generator
from rankscope.theory.prediction import relative_tolerance
from rankscope.theory.profile import ChainProfile, ChainRun, ChainStep

__all__ = ["deep_chain"]


def deep_chain(
    *,
    width: int = 1000,
    depth: int = 50,
    input_width: int | None = None,
    init: Init = "normal(0.02)",
    seeds: int | Sequence[int] = (0,),
    tolerance: ToleranceLike = "paper",
    activation: Activation | None = None,
    residual: bool | float = False,
    normalisation: Normalisation | None = None,
    float32_stop: bool = False,
    samples: int = 5000,
    dtype: DtypeLike = "float64",
    progress: bool | Progress | None = None,
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
    input_width : int, optional
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
    dtype : "float64", "float32", or torch's own
        Of layers and features; spectra are always computed in float64.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

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
    width, depth = count_of(width, "width", most=2**16), count_of(depth, "depth", most=10**7)
    samples = count_of(samples, "samples", most=10**7)
    columns = width if input_width is None else count_of(input_width, "input_width", most=2**16)
    if columns > width:
        raise UsageError(f"input_width is {columns} with a width of {width}; it must be at most the width")
    if samples < 2:
        raise UsageError(f"{parameter('samples')} is 1; a covariance needs at least 2")
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
        if value is not None:
            choice_of(value, name, known)
    precision = dtype_of(dtype)
    tol = as_tolerance(tolerance)
    rtol = relative_tolerance(tol, (width, columns))
    if rtol < SVD_RTOL:
        raise UsageError(
            f"{parameter('tolerance')} {tol} is an rtol of {rtol:g}, but a chain multiplied out in float64 resolves "
            f"σ/σ_1 down to {SVD_RTOL:g}; give at least that, or use rankscope.theory.chain_singular_values"
        )
    block = Block(activation, normalisation, _branch_scale(residual))
    with reporting(progress, "random chain") as report:
        runs = tuple(
            _run(seed, (width, columns), depth, init, block, tol, float32_stop, samples, precision, report)
            for seed in _seeds(seeds)
        )
    return ChainProfile(
        runs=runs,
        width=width,
        depth=depth,
        samples=samples,
        init=init if isinstance(init, str) else getattr(init, "__name__", type(init).__name__).strip("<>"),
        dtype=dtype_name(precision),
        activation=activation,
        residual=block.residual,
        normalisation=normalisation,
        tolerance=tol,
        float32_stop=float32_stop,
        seconds=time.perf_counter() - started,
        provenance={**versions(), "device": device_name("cpu")},
        input_width=columns,
        std=init_std(init, width) if isinstance(init, str) else None,
    )


def _branch_scale(residual: Any) -> float | None:
    if isinstance(residual, bool):
        return 1.0 if residual else None
    if not isinstance(residual, Real) or not math.isfinite(residual) or residual == 0:
        raise UsageError(
            f"{parameter('residual')} is {residual!r}; give True, False, or the branch's scale as a finite number not 0"
        )
    return float(residual)


def _seeds(seeds: Any) -> tuple[int, ...]:
    listed = tuple(seeds) if isinstance(seeds, Iterable) else (seeds,)
    if not listed:
        raise UsageError(f"{parameter('seeds')} is {seeds!r}; give one or more whole numbers of at least 0")
    return tuple(seed_of(s, "seeds") for s in listed)


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
    report: Reporter,
) -> ChainRun:
    steps: list[ChainStep] = []
    rtol = tolerance.relative(shape)
    watched = None if isinstance(init, str) else _Watched(init)  # Gaussian weights are almost surely regular
    with torch.no_grad():
        chain = ChainPush(shape, depth, watched or init, block, samples, dtype)
        for layer, (jacobian, log_scale, features) in enumerate(chain.states(np.random.default_rng(seed)), 1):
            largest = float(jacobian.abs().max())
            if float32_stop and (largest == 0 or math.log(largest) + log_scale < math.log(EPS32)):
                return ChainRun(seed, tuple(steps), layer, tuple(watched.singular) if watched else ())
            spectrum = jacobian_spectrum(jacobian, rtol)
            top = math.log(spectrum.sigma_max) + log_scale if spectrum.sigma_max else -math.inf
            steps.append(ChainStep(layer, spectrum, covariance_spectrum(features, shape[0], jacobian.dtype), top))
            report(layer, depth, f"layers of the chain of seed {seed}")
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
