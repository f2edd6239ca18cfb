"""Passes of batches through a classifier: rows of every cut point, what goes into the head, and logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from rankscope._base.errors import ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.head_inputs import call_of_logits, head_inputs
from rankscope.features.hooks import inference, record_outputs
from rankscope.features.path_layers import PathLayers
from rankscope.features.path_passes import PathPasses
from rankscope.features.precision import unit_roundoff
from rankscope.features.reduction import Channels, Reduce, coarse_square, reduce_output
from rankscope.features.sample_axis import check_rows
from rankscope.features.shared_pass import SharedPass
from rankscope.slicing.batches import run_forward
from rankscope.slicing.calls import Call
from rankscope.slicing.memory import forward_facts
from rankscope.slicing.sample import Sample

__all__ = ["Passes"]

T = TypeVar("T")

Coarse: TypeAlias = tuple[float, Tensor | None]
"""Unit roundoff of the coarsest dtype, and ‖X‖²_F where that is not the norm of the rows."""


class _Passed(NamedTuple):
    """What one pass left: rows by cut point, how coarse the dtype is that they were computed in, and logits."""

    outputs: dict[str, Tensor]
    coarse: dict[str, Coarse]
    logits: Tensor


class Passes:
    """Use it inside ``recording``. What a batch leaves in the attributes is overwritten by the next.

    ``outputs`` are rows by cut point, with ``"<input>"`` and ``"<output>"`` of the head; ``coarse`` says by cut point
    how coarse the dtype is that they were computed in, ``counts`` how many samples called it where they were passed
    one by one.
    """

    def __init__(self, model: nn.Module, head: str, reduce: Reduce, channels: Channels, paths: PathLayers) -> None:
        self.model, self.head, self.paths = model, head, paths
        self.reduce, self.channels = reduce, channels
        self.device = torch.device("cpu")
        self.outputs: dict[str, Tensor] = {}
        self.coarse: dict[str, Coarse] = {}
        self.counts: dict[str, int] = {}
        self._recorded: dict[str, Tensor] = {}  # filled by every pass
        self._levels: dict[str, Coarse] = {}
        self._stack = ExitStack()
        self._shape: tuple[int, ...] | None = None  # of what is passed; None while a single sample is looked at

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks and guards of the model inside."""
        with (
            inference(self.model) as self.device,
            record_outputs(
                self.model, self.paths.layers.names, inputs_of=self.head, reduced=self._rows_of
            ) as self._recorded,
            self.paths,
            ExitStack() as self._stack,
        ):
            self.sharing = SharedPass(self.model, self.device, self._sampled)
            self._steps = PathPasses(self.paths, self.sharing, self._pass, self._keep)
            yield

    def remembers(self, call: Call) -> list[Fact]:
        """Whether the model remembers its calls, as the first sample of a batch shows."""
        found = forward_facts(self.model, call.rows(0, 1, "the first sample"), self.device, self._recorded)
        public = {"<input>": f"the input of {self.head}", "<output>": self.head}
        return [
            replace(one, values={**one.values, "where": public.get(one["where"].partition("#")[0], one["where"])})
            if one.kind is FactKind.RANDOM_MODEL
            else one
            for one in found
        ]

    def facts(self, *, of: int) -> tuple[Fact, ...]:
        """What has been found of the model's layers, and of passes with so many samples in all."""
        return (*self.paths.facts, *(self.sharing.facts if of > 1 else ()))

    def inputs_and_logits(self, call: Call) -> tuple[Tensor, Tensor]:
        """What goes into the head, as rows, and the logits."""
        logits = self.logits(call)
        return self.outputs["<input>"].flatten(1), logits

    def logits(self, call: Call) -> Tensor:
        """The logits of a batch, whose samples go through the model together where that changes nothing."""
        made = list(self._steps.of(call))
        if made[0][1] is call:
            (self.outputs, self.coarse, logits), self.counts = made[0][0], {}
            return logits
        parts = [passed for passed, _ in made]
        outputs = _by_name([passed.outputs for passed in parts])
        self.outputs = {name: torch.cat(rows) for name, rows in outputs.items()}
        self.counts = {name: len(rows) for name, rows in outputs.items()}
        self.coarse = {name: _summed(levels) for name, levels in _by_name([p.coarse for p in parts]).items()}
        return torch.cat([passed.logits for passed in parts])

    def _keep(self, further: list[str]) -> None:
        self._stack.enter_context(record_outputs(self.model, further, reduced=self._rows_of, into=self._recorded))

    def _sampled(self, samples: Sample) -> dict[str, Tensor]:
        made = self._pass(samples)
        return {**made.outputs, "<logits>": made.logits}

    def _pass(self, samples: Sample) -> _Passed:
        self._recorded.clear()
        self._levels.clear()
        self._shape = tuple(samples.x.shape)
        try:
            logits = _logits(run_forward(self.model, samples, self.device))
        finally:
            self._shape = None
        made = dict(self._recorded)
        if "<input>" in made:  # else told with the names of those that were not called
            made = call_of_logits(made, logits, self.head)
            made["<input>"] = head_inputs(made["<input>"], made["<output>"], logits, self.head)
        return _Passed(made, dict(self._levels), logits.clone())  # which may be a tensor of the model's own

    def _rows_of(self, name: str, output: Tensor) -> Tensor:
        if self._shape is not None:
            check_rows(name, output, self._shape[0])
        square = coarse_square(output, self.reduce, channels=self.channels, input_shape=self._shape)
        self._levels[name] = unit_roundoff(output.dtype), square
        return reduce_output(output, self.reduce, channels=self.channels, input_shape=self._shape)


def _by_name(parts: Iterable[Mapping[str, T]]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    return found


def _summed(levels: list[Coarse]) -> Coarse:
    """The rounding of the coarsest output, and ‖X‖²_F of all of them."""
    squares = [square for _, square in levels if square is not None]
    return max(level for level, _ in levels), torch.stack(squares).sum(0) if squares else None


def _logits(made: Any) -> Tensor:
    made = getattr(made, "logits", made)
    if not isinstance(made, Tensor) or made.ndim != 2:
        what = f"a tensor of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ModelError(
            f"the model returns {what}; a collection needs logits (samples × classes): give a classifier, or measure "
            "its layers with feature_rank (rankscope features)"
        )
    # one output is that of a binary classifier: class 0 has the logit 0, as in ``linear_parts``
    return torch.cat([torch.zeros_like(made), made], 1) if made.shape[1] == 1 else made
