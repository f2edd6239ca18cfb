"""What a sweep's certificate is worth: nothing from where both modes disagree; products out of range get a word."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rankscope._base.dtypes import dtype_name
from rankscope._base.facts import Fact, FactKind
from rankscope.jacobian.both_modes import doubts
from rankscope.jacobian.reference import Certified
from rankscope.jacobian.sweep import SweepResult
from rankscope.linear.derivative import Derivative
from rankscope.linear.sharing import Pulled
from rankscope.slicing import Sample

__all__ = ["say_range", "without_doubt"]

_LEAVING = (FactKind.UNDERFLOW, FactKind.OVERFLOW, FactKind.NO_ESTIMATE)
_SAID = {FactKind.REVERSE_DISAGREES, FactKind.SOME_DISAGREE, FactKind.RANDOM_MODEL}


def say_range(derivative: Derivative, found: Certified) -> None:
    """Where the model's own products leave the range of the precision, or its digits: said once for each."""
    # behind random numbers two products differ for another reason
    dtype = dtype_name(derivative.settings.dtype)
    places_by_kind = torch.stack([found.small, found.large, found.blurred]).cpu()[:, : derivative.in_doubt]
    for kind, places in zip(_LEAVING, places_by_kind, strict=True):
        if bool(places.any()) and kind not in {fact.kind for fact in derivative.facts}:
            where = derivative.calls[int(places.nonzero()[0])].name
            about = {"where": where} if kind is FactKind.NO_ESTIMATE else {"where": where, "dtype": dtype}
            derivative.facts.append(Fact(kind, about))


def without_doubt(
    derivative: Derivative,
    sample: Sample,
    result: SweepResult,
    found: Certified,
    pulled: Pulled | None,
    *,
    alike: bool,
) -> Tensor:
    """The lengths of the probes' errors, NaN from where forward and reverse mode disagree on an image.

    ``alike`` says that they agree by rule, so that nothing was pulled.
    """
    assert derivative.method is not None
    lengths = found.lengths.clone()
    if derivative.in_doubt is not None:
        lengths[derivative.in_doubt :] = torch.nan
    if alike:
        return lengths
    if pulled is None or pulled.custom:
        for image in range(len(sample.x)):
            for place in derivative.misled(replace(sample, x=sample.x[image : image + 1])):
                lengths[place, :, image] = torch.nan
    if pulled is None or derivative.adjoint is None:
        return lengths
    with derivative.runner.hooked():
        wrong = doubts(derivative.runner, derivative.method, sample, pulled, result, found)
    for doubt in wrong:
        lengths[doubt.place :, :, doubt.image] = torch.nan
        if {f.kind for f in derivative.facts}.isdisjoint(_SAID):
            where = {"error": doubt.error, "where": derivative.calls[doubt.place].name, "casts": derivative.casts}
            derivative.facts.append(Fact(FactKind.SOME_DISAGREE, where, caution=True))
    return lengths
