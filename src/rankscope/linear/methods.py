"""Ways to push tangents through a model, fastest first. All give the same columns; which one ran is in the result.

Forward mode costs one pass per column and never needs the layer's size; reverse mode costs one pass per row and is the
last resort for operators that have no forward-mode formula.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from rankscope._base.errors import MeasurementError, first_line, is_out_of_memory, raise_ours
from rankscope._base.facts import Fact, FactKind
from rankscope.linear.checks import ADJOINT_LIMIT, adjoint_error
from rankscope.linear.other_libraries import Differentiated
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Rows, Runner
from rankscope.slicing import Sample, failing_module

__all__ = ["METHODS", "Method", "choose_method", "failed", "reason_of"]

Push = Callable[[Runner, Sample, Tensor, Rows], tuple[Tensor, ...]]
MAX_REVERSE_ROWS = 200_000


@dataclass(frozen=True)
class Method:
    """A named way to compute J·v for a chunk of tangents: (chunk, *shape) → one (chunk, rows) tensor a cut point.

    ``rows`` chooses the rows of each cut point; ``None``: all of them.
    """

    name: str
    push: Push
    plain_kernels: bool = False
    twice: bool = False
    """Whether it differentiates the model's own backward formulas, which may not allow it without saying so."""
    whole: bool = False
    """Whether the cost does not depend on the number of tangents, so that all should come at once."""

    def kernels(self) -> AbstractContextManager[Any]:
        """Inside, the model runs on the kernels that this method needs."""
        return _plain_kernels() if self.plain_kernels else nullcontext()

    def __call__(self, runner: Runner, sample: Sample, tangents: Tensor, rows: Rows = None) -> tuple[Tensor, ...]:
        with self.kernels():
            return self.push(runner, sample, tangents, rows)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Without oneDNN and cuDNN: their recurrent cells have no forward-mode formula."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
            yield


def _tangent(runner: Runner, sample: Sample, rows: Rows, direction: Tensor) -> tuple[Tensor, ...]:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        with Differentiated():
            return runner.outputs(sample, x, rows)

    out: tuple[Tensor, ...] = jvp(run, (sample.x,), (direction.expand_as(sample.x),))[1]
    for key, tangent in zip(runner.keys, out, strict=True):
        if tangent is None:
            raise MeasurementError(f"forward mode gave no tangent at {key[0]!r}; it must not be read as zero")
    return out


def _vmap_jvp(runner: Runner, sample: Sample, tangents: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    # "same": a model that draws random numbers has to draw the same for every tangent, or it is not one function
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        return vmap(partial(_tangent, runner, sample, rows), randomness="same")(tangents)


def _loop_jvp(runner: Runner, sample: Sample, tangents: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    parts = [_tangent(runner, sample, rows, v) for v in tangents]
    return tuple(torch.stack(p) for p in zip(*parts, strict=True))


def _double_backward(runner: Runner, sample: Sample, tangents: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    """J·v as the derivative of u ↦ Jᵀu, which is linear in u."""
    with reverse_mode(sample.x.device):
        x = sample.x.detach().clone().requires_grad_()
        with Differentiated():
            outputs = runner.outputs(sample, x * 1, rows)
        dual = [torch.zeros_like(o, requires_grad=True) for o in outputs]
        back = torch.autograd.grad(outputs, x, dual, create_graph=True)[0]
        parts = [
            torch.autograd.grad(back, dual, v.expand_as(x), retain_graph=True, materialize_grads=True) for v in tangents
        ]
    return tuple(torch.stack(p) for p in zip(*parts, strict=True))


def _reverse_rows(runner: Runner, sample: Sample, tangents: Tensor, rows: Rows) -> tuple[Tensor, ...]:
    """One reverse pass per row, times the tangents."""
    directions = torch.stack([v.expand_as(sample.x).reshape(-1) for v in tangents])
    with reverse_mode(sample.x.device):
        x = sample.x.detach().clone().requires_grad_()
        with Differentiated():
            outputs = runner.outputs(sample, x * 1, rows)
        total = sum(o.numel() for o in outputs)
        if total > MAX_REVERSE_ROWS:
            raise MeasurementError(
                f"only reverse mode works on this model and its cut points have {total:,} rows, one reverse pass each "
                f"(limit {MAX_REVERSE_ROWS:,}); choose fewer or narrower cut points"
            )
        columns = []
        for out in outputs:
            parts = [
                (torch.autograd.grad(value, x, retain_graph=True, materialize_grads=True)[0].reshape(-1) @ directions.T)
                for value in out
            ]
            columns.append(torch.stack(parts, 1) if parts else out.new_zeros(len(tangents), 0))
    return tuple(columns)


METHODS = (
    Method("vmap(jvp)", _vmap_jvp),
    Method("vmap(jvp), plain kernels", _vmap_jvp, plain_kernels=True),
    Method("jvp, one tangent at a time", _loop_jvp),
    Method("jvp, one tangent at a time, plain kernels", _loop_jvp, plain_kernels=True),
    Method("double backward", _double_backward, twice=True),
    Method("double backward, plain kernels", _double_backward, plain_kernels=True, twice=True),
    Method("reverse mode by rows", _reverse_rows, whole=True),
    Method("reverse mode by rows, plain kernels", _reverse_rows, plain_kernels=True, whole=True),
)


def _refused(method: Method, runner: Runner, sample: Sample, direction: Tensor, out: tuple[Tensor, ...]) -> str:
    """Second derivatives of a custom backward can be zero without an error; reverse mode itself tells."""
    if not method.twice:
        return ""
    with method.kernels():
        error, where = adjoint_error(runner, sample, direction, tuple(o[:1] for o in out))
    wrong = error is None or not error <= ADJOINT_LIMIT
    return f"disagrees with reverse mode at {where!r}: a backward formula is not differentiable" if wrong else ""


def reason_of(error: Exception) -> str:
    """Why a way to push tangents failed.

    A bare RuntimeError is what torch's inside raises where it meets what it was not made for, with a request to report
    it: another way serves, so nothing is to be reported, and the type alone is told.
    """
    return "torch raised a RuntimeError inside" if type(error) is RuntimeError else first_line(error)


def failed(name: str, error: Exception) -> Fact:
    """That a way to push tangents failed, and why."""
    return Fact(FactKind.WAY_FAILED, {"name": name, "reason": reason_of(error)})


def choose_method(runner: Runner, sample: Sample, tangents: Tensor) -> tuple[Method, tuple[Tensor, ...], list[Fact]]:
    """The first method that works on this sample, what it gave, and why each one before it did not."""
    failures: list[Fact] = []
    errors: list[Exception] = []
    for method in METHODS:
        try:
            out = method(runner, sample, tangents)
            reason = _refused(method, runner, sample, tangents[0], out)
        except Exception as error:  # a custom backward is code of the model
            raise_ours(error)
            if is_out_of_memory(error):
                raise
            errors.append(error)
            failures.append(failed(method.name, error))
        else:
            if not reason:
                return method, out, failures
            failures.append(Fact(FactKind.WAY_FAILED, {"name": method.name, "reason": reason}))
    told = next((error for error in reversed(errors) if isinstance(error, MeasurementError)), None)
    if told is not None:  # it names a remedy of its own
        raise told
    where = failing_module(runner.model, errors[0]) if errors else None
    reasons = dict.fromkeys(first_line(e) for e in (errors[:1] + errors[-1:]))
    replace = "" if where is None else f"replace {where} by plain operations, or "
    raise MeasurementError(
        f"{replace}choose cut points before what has no derivative: no way to differentiate this model worked. "
        + "; ".join(reasons or [f"{fact['name']}: {fact['reason']}" for fact in failures[:2]])
    )
