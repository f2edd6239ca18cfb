"""How much memory products with the Jacobians of one sample are expected to take beside the model's own weights."""

from __future__ import annotations

from rankscope._base.errors import RankscopeError
from rankscope.jacobian.full_plan import Plan
from rankscope.jacobian.products import PAIRS
from rankscope.jacobian.shared_passes import SharedPasses
from rankscope.linear.budget import bytes_of_pass
from rankscope.linear.runner import Runner
from rankscope.spectra.exact import CHUNK
from rankscope.spectra.matrix_free import ERROR_PROBES

__all__ = ["product_bytes"]

_COPIES = 32  # bytes an entry of J·v, which is scaled in float64 on its way back


def product_bytes(plan: Plan, passes: SharedPasses) -> int:
    """Weights in another precision, one pass in each, the tangents at once, and columns that wait; 0 where unknown."""
    derivative = passes.derivative
    width = max(CHUNK if "exact" in plan.ways else 0, plan.settings.probes if "lanczos" in plan.ways else 0, 1)
    rows = sum(shape[0] for shape in plan.shapes)
    total, moving = 0, [0]
    product = 0 if "exact" in plan.ways else _COPIES * width * max(shape[0] for shape in plan.shapes)
    for runner, columns in ((derivative.runner, 2), (derivative.exact, 2 * PAIRS + ERROR_PROBES)):
        if runner is None:
            continue
        try:
            each, made = _of_one(runner, passes)
        except (RuntimeError, RankscopeError):  # what fails here fails in the measurement, and is said there
            continue
        weights = 0 if runner.weights.on_demand else runner.weights.bytes
        waiting = min(rows * columns * runner.dtype.itemsize, passes.room)
        total += weights + waiting + made
        moving.append(min(max(passes.budget // each, 1), width) * each)
    return total + max(moving) + product


def _of_one(runner: Runner, passes: SharedPasses) -> tuple[int, int]:
    """Bytes of one tangent on the way, and of one pass, whose coefficients or activations are held."""
    sample = passes.sample.to(runner.device, runner.dtype)
    with runner.hooked():
        return bytes_of_pass(runner, sample, linear=passes.derivative.traced)
