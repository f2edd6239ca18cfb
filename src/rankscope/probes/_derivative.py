"""The Jacobian of one component at one sample, and what rounding does to it, through ``linear``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rankscope._base.errors import RankscopeError
from rankscope._base.facts import Fact, FactKind
from rankscope.linear.derivative import Derivative, Settings
from rankscope.linear.linear_map import LinearMap
from rankscope.probes._component import Prepared
from rankscope.slicing import ColumnsByShape, ModuleCall, Sample
from rankscope.slicing.capture import OUTPUT, CallKey
from rankscope.spectra import norm_bound_of_lengths, scaled_norm

__all__ = ["ComponentDerivative", "relative_error"]

_MASKS_AGREE = 1e-3  # two draws of one mask differ by rounding, those of two masks by about the whole length


class _Called(nn.Module):
    """The prepared component as a model: the outputs of x, in one batch with ``others`` where samples are coupled."""

    def __init__(self, part: Prepared) -> None:
        super().__init__()
        self.inside, self._part = part.module, part

    def forward(self, x: Tensor, others: Tensor | None = None) -> Tensor:
        torch.manual_seed(self._part.seed)  # every pass draws one and the same mask
        together = x if others is None else torch.cat([x, others])
        output: Tensor = self.inside[0](together + 0)
        return output[: len(x)]


def relative_error(values: Tensor, exact: Tensor) -> float:
    """‖values − exact‖/‖values‖, not ‖exact‖: it is multiplied by the length of more such values. Infinite where the
    values vanish and the exact ones do not."""
    error, length = (float(scaled_norm(v.flatten(), 0)) for v in (values.double() - exact, values))
    return error / length if length else math.inf if error else 0.0


class ComponentDerivative:
    """Derivatives of one component, with what ``linear`` finds out about them. Use it inside ``measuring``."""

    def __init__(self, part: Prepared, device: torch.device, dtype: torch.dtype) -> None:
        whole = ModuleCall(
            name=OUTPUT,
            key=CallKey(OUTPUT, -1),
            kind=part.name,
            shape=(1, *part.output_shape),
            true_cut=True,
            depends=True,
            leaf=False,
            node=0,
        )
        self.part = part
        settings = Settings("auto", 0, True, device, dtype, ColumnsByShape("all"))
        self.inner = Derivative(_Called(part), [whole], settings)

    def at(self, x: Tensor, others: Tensor | None) -> LinearMap:
        """The Jacobian at x (1, …), with ``others`` held fixed in its batch.

        Raises
        ------
        MeasurementError
            Where no way of differentiating works.
        """
        sample = self._sample(x, others)
        with self.inner.runner.hooked():
            if self.inner.method is None:
                self.inner.prepare(sample)
            elif self.inner.traced:
                self.inner.compare(sample)
        return self.inner.at(sample)

    def _sample(self, x: Tensor, others: Tensor | None) -> Sample:
        return Sample(x, "input", extra={} if others is None else {"others": others})

    @property
    def way(self) -> Fact:
        """How tangents were pushed."""
        return self.inner.way

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What the checks found; of a random component they say only that two draws differ."""
        told = tuple(f for f in self.inner.facts if f.caution or f.kind is FactKind.CASTS_DOWN)
        return () if self.part.random else told

    @property
    def alone(self) -> bool:
        """Whether there is no second precision to compare with."""
        return self.inner.exact is None

    def error_bound(
        self, jacobian: LinearMap, tangents: Tensor, exact: tuple[Tensor, Tensor | None] | None = None
    ) -> float:
        """Bound on ‖E‖₂ of the rounding error of products, from Gaussian tangents; NaN where it is not known.

        ``exact`` are the sample and the others of its batch in float64, where the working precision rounds them too.
        """
        other = self.inner.other(jacobian.sample if exact is None else self._sample(*exact))
        doubtful = self.inner.in_doubt is not None and not self.part.random
        if other is None or doubtful or self.inner.misled(jacobian.sample):
            return math.nan
        try:
            own, reference, swept = (
                m.push(tangents.to(m.dtype))[0].double() for m in (self.inner.plain(jacobian.sample), other, jacobian)
            )
        except (RankscopeError, RuntimeError):
            return math.nan
        if self._other_masks(own - reference, reference):
            return math.nan
        # a traced network's products differ from the model's own by rounding that the two precisions do not show
        lengths = scaled_norm(own - reference, 1) * self.inner.scale + scaled_norm(swept - own, 1)
        return norm_bound_of_lengths(lengths)

    def output_error(
        self, some: Tensor, others: Tensor | None, exact: tuple[Tensor, Tensor | None] | None = None
    ) -> float:
        """Relative error of the outputs of a few samples; NaN where it is not known. ``exact`` as above."""
        sample = self._sample(some, others)
        other = self.inner.other(sample if exact is None else self._sample(*exact))
        if other is None:
            return math.nan
        try:
            own, reference = (m.outputs()[0].double() for m in (self.inner.plain(sample), other))
        except (RankscopeError, RuntimeError):
            return math.nan
        if self._other_masks(own - reference, reference):
            return math.nan
        return relative_error(own, reference) * self.inner.scale

    def _other_masks(self, difference: Tensor, reference: Tensor) -> bool:
        """Whether the two precisions drew different masks: then their difference says nothing of rounding."""
        return self.part.random and not float(difference.norm()) <= _MASKS_AGREE * float(reference.norm())
