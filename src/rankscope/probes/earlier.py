"""What files of earlier versions say of a component in words, as the facts that are kept today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankscope._base.facts import Fact, FactKind, as_facts

__all__ = ["probe"]

_TWO = "float32 against float64 on 10 Gaussian tangents; each bound fails with probability 1e-10"
_CERTIFICATES = {
    _TWO: Fact(FactKind.TWO_PRECISIONS, {"probes": 10, "failure": 1e-10}),
    "none: the component does not run in both precisions": Fact(FactKind.NOT_IN_BOTH),
}


def probe(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a probe: ``mode``, ``method`` and ``certificate`` were sentences."""
    certificate = data.get("certificate", "")
    found = _CERTIFICATES.get(certificate, Fact(FactKind.EARLIER_NOTE, {"text": certificate}))
    facts = as_facts([data["mode"]] if data["mode"] else [], FactKind.EARLIER_NOTE)
    return {
        **{name: value for name, value in data.items() if name != "mode"},
        "method": Fact(FactKind.PUSHED, {"name": data.get("method", "")}).to_dict(),
        "certificate": found.to_dict(),
        "facts": [fact.to_dict() for fact in facts],
    }
