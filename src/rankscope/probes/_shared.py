"""The samples of a component, and a component whose further inputs are the same for all samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, UsageError, parameter
from rankscope._base.facts import Fact
from rankscope.slicing import Sample, call_model, read_samples
from rankscope.slicing.precision import meant
from rankscope.slicing.shared_values import same_value
from rankscope.views.phrases import joined

__all__ = ["Given", "given_samples", "with_shared"]


@dataclass(frozen=True)
class Given:
    """Samples (N, …) for a component, the name of its input, and what it is called with beside each of them."""

    x: Tensor
    name: str
    keyword: str | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()


def given_samples(component: nn.Module, inputs: Any, limit: int | None, meaning: Mapping[str, Any]) -> Given:
    """The samples as one tensor.

    Raises
    ------
    UsageError
        For an input beside it that is not the same for all samples.
    DataError
        For samples of several shapes, and where there is none.
    """
    samples = read_samples(component, inputs, limit=limit, **meaning)
    found: list[Sample] = []
    for sample in samples:
        first = found[0] if found else sample
        call = samples.call
        assert call is not None  # there is a sample
        own = [k for k, v in sample.extra.items() if k in call.per_sample or not same_value(v, first.extra.get(k))]
        if own:
            raise UsageError(
                f"a component has one input, and each sample of {parameter('inputs')} has its own "
                f"{joined(sorted(own))} beside {call.name}; wrap the component in a module that fixes the others"
            )
        if sample.x.shape != first.x.shape:
            raise DataError(
                f"sample {len(found)} has shape {tuple(sample.x.shape[1:])} and the first {tuple(first.x.shape[1:])}; "
                "a component is probed with samples of one shape"
            )
        found.append(sample)
    assert samples.call is not None
    one = found[0]
    return Given(
        torch.cat([sample.x.detach() for sample in found]), samples.call.name, one.keyword, one.extra, samples.facts()
    )


def with_shared(component: nn.Module, given: Given, dtype: torch.dtype) -> nn.Module:
    """The component as a function of its one input, or itself where it is called with nothing else.

    Raises
    ------
    UsageError
        Where ``dtype`` rounds a shared value: the error bounds would be those of another component.
    """
    if not given.shared:
        return component
    for name, value in given.shared.items():
        for leaf in tree_flatten(value)[0]:
            if isinstance(leaf, Tensor) and _rounds(leaf, dtype):
                raise UsageError(
                    f"{name!r} holds {dtype_name(leaf.dtype)} values that {dtype_name(dtype)} rounds; choose "
                    f"{parameter('dtype', 'float64')}"
                )
    return _Fixed(component, given)


def _rounds(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether the component's conversion changes a buffer."""
    return not torch.equal(values.to(meant(values, dtype)).to(values.dtype), values)


class _Fixed(nn.Module):
    """A component with all its inputs but one held fixed. They are buffers, and move as its weights do."""

    def __init__(self, component: nn.Module, given: Given) -> None:
        super().__init__()
        self.component, self._name, self._keyword = component, given.name, given.keyword
        leaves, self._form = tree_flatten(dict(given.shared))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.register_buffer(f"shared_{i}", leaf.detach().clone(), persistent=False)
        self.training = component.training  # the component's own mode is not touched

    def forward(self, x: Tensor) -> Any:
        leaves = [getattr(self, f"shared_{i}", leaf) for i, leaf in enumerate(self._leaves)]
        return call_model(self.component, Sample(x, self._name, self._keyword, tree_unflatten(leaves, self._form)), x)
