"""What files of earlier versions say in words, as the facts that are kept today."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rankscope._base.facts import Fact, FactKind

__all__ = ["certificate", "failed", "way"]

_KEPT = "read from finished images"
_CERTIFICATES = {
    "6 float64 probes; each bound fails with probability 1e-6": Fact(FactKind.PROBES, {"probes": 6, "failure": 1e-6}),
    "estimate: the float32 error, measured with 6 probes, scaled to float64": Fact(
        FactKind.SCALED_PROBES, {"probes": 6}
    ),
    "estimate: 6 probes, but the model casts to lower precision inside": Fact(FactKind.NARROW_PROBES, {"probes": 6}),
    "none: the model does not run in float64": Fact(FactKind.NOT_IN_FLOAT64),
    _KEPT: Fact(FactKind.KEPT_IMAGES),
    "not asked for": Fact(FactKind.NOT_CERTIFIED),
}


def way(data: Mapping[str, Any] | str) -> Fact:
    """How tangents were pushed.

    >>> way("linearised network, within 5e-07 of vmap(jvp)").values
    {'name': 'vmap(jvp)', 'difference': 5e-07}
    """
    if not isinstance(data, str):
        return Fact.from_dict(data)
    if data == _KEPT:
        return Fact(FactKind.KEPT_IMAGES)
    found = re.fullmatch(r"linearised network, within (\S+) of (.*)", data)
    if found:
        return Fact(FactKind.LINEARISED, {"name": found[2], "difference": float(found[1])})
    return Fact(FactKind.PUSHED, {"name": data})


def failed(data: Iterable[Mapping[str, Any] | str]) -> tuple[Fact, ...]:
    """Why faster ways were not used."""
    return tuple(Fact(FactKind.EARLIER_NOTE, {"text": d}) if isinstance(d, str) else Fact.from_dict(d) for d in data)


def certificate(data: Mapping[str, Any] | str) -> Fact:
    """What bounds the error."""
    if not isinstance(data, str):
        return Fact.from_dict(data)
    return _CERTIFICATES.get(data, Fact(FactKind.EARLIER_NOTE, {"text": data}))
