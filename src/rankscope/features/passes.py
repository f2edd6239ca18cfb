"""Passes of batches through a classifier: rows of every cut point, what goes into the head, and logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankscope._base.errors import ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope.features.head_inputs import head_inputs
from rankscope.features.hooks import inference, record_outputs
from rankscope.features.path_layers import PathLayers
from rankscope.features.precision import unit_roundoff
from rankscope.features.reduction import Channels, Reduce, coarse_square, reduce_output
from rankscope.features.sample_axis import check_rows
from rankscope.features.shared_pass import SharedPass
from rankscope.slicing.batches import run_forward
from rankscope.slicing.calls import Call
from rankscope.slicing.memory import forward_facts
from rankscope.slicing.sample import Sample

__all__ = ["Passes"]


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
        self.coarse: dict[str, tuple[float, Tensor | None]] = {}
        self.counts: dict[str, int] = {}
        self._stack = ExitStack()
        self._shape: tuple[int, ...] | None = None  # of a batch; None while a single sample is looked at

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks and guards of the model inside."""
        with (
            inference(self.model) as self.device,
            record_outputs(
                self.model, self.paths.layers.names, inputs_of=self.head, reduced=self._rows_of
            ) as self.outputs,
            self.paths,
            ExitStack() as self._stack,
        ):
            self.sharing = SharedPass(self.model, self.device, self._sampled)
            yield

    def remembers(self, call: Call) -> list[Fact]:
        """Whether the model remembers its calls, as the first sample of a batch shows."""
        self._shape = None
        found = forward_facts(self.model, call.rows(0, 1, "the first sample"), self.device, self.outputs)
        public = {"<input>": f"the input of {self.head}", "<output>": self.head}
        return [
            replace(one, values={**one.values, "where": public.get(one["where"], one["where"])})
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
        self.counts.clear()
        self._shape = None
        one, several = call.rows(0, 1, "a sample"), call.rows(0, len(call), "a batch")
        if not self.sharing.alone(one, several):
            logits, further = self._pass_and_layers(call)
            if not further:
                return logits
            if not self.sharing.alone(one, several):  # of the further layers too
                return self._together(several)
        kept: dict[str, list[Tensor]] = {}
        levels: dict[str, list[tuple[float, Tensor | None]]] = {}
        made = []
        for i in range(len(call)):
            made.append(self._pass_and_layers(call.part(i, i + 1))[0])
            for key, output in self.outputs.items():
                kept.setdefault(key, []).append(output)
            for key in self.outputs.keys() & self.coarse.keys():
                levels.setdefault(key, []).append(self.coarse[key])
        self.outputs.clear()
        self.outputs.update({key: torch.cat(parts) for key, parts in kept.items()})
        self.counts.update({key: len(parts) for key, parts in kept.items()})
        self.coarse.update({key: _summed(parts) for key, parts in levels.items()})
        return torch.cat(made)

    def _pass_and_layers(self, call: Call) -> tuple[Tensor, bool]:
        """The logits of one pass, made again where it leads to further layers; and whether it does."""
        self.paths.begin()
        samples = call.rows(0, len(call), "a batch")
        logits = self._together(samples)
        self._shape = None
        further = self.paths.take_in(call.rows(0, 1, "a sample"))
        if further is None:
            return logits, False
        self._stack.enter_context(record_outputs(self.model, further, reduced=self._rows_of, into=self.outputs))
        self.sharing.look_again()
        return self._together(samples), bool(further)

    def _sampled(self, samples: Sample) -> dict[str, Tensor]:
        logits = self._together(samples)
        return {**self.outputs, "<logits>": logits.clone()}  # which may be a tensor of the model's own

    def _together(self, samples: Sample) -> Tensor:
        self.outputs.clear()
        self._shape = tuple(samples.x.shape)
        logits = _logits(run_forward(self.model, samples, self.device))
        if "<input>" in self.outputs:  # else told with the names of those that were not called
            self.outputs["<input>"] = head_inputs(self.outputs["<input>"], self.outputs["<output>"], logits, self.head)
        return logits

    def _rows_of(self, name: str, output: Tensor) -> Tensor:
        if self._shape is not None:
            check_rows(name, output, self._shape[0])
        square = coarse_square(output, self.reduce, channels=self.channels, input_shape=self._shape)
        self.coarse[name] = unit_roundoff(output.dtype), square
        return reduce_output(output, self.reduce, channels=self.channels, input_shape=self._shape)


def _summed(levels: list[tuple[float, Tensor | None]]) -> tuple[float, Tensor | None]:
    """The rounding of the coarsest output, and ‖X‖²_F of all of them."""
    squares = [square for _, square in levels if square is not None]
    return max(level for level, _ in levels), torch.stack(squares).sum(0) if squares else None


def _logits(made: Any) -> Tensor:
    made = getattr(made, "logits", made)
    if not isinstance(made, Tensor) or made.ndim != 2:
        what = f"a tensor of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ModelError(f"the model returns {what}; a collection needs logits (samples × classes)")
    # one output is that of a binary classifier: class 0 has the logit 0, as in ``linear_parts``
    return torch.cat([torch.zeros_like(made), made], 1) if made.shape[1] == 1 else made
