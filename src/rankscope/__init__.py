"""How much independent information survives in a neural network, layer by layer, and how sure that number is.

>>> import rankscope as rs
>>> rs.Spectrum.of([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).rank("paper").value
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name → the module it lives in. Loaded on first use, so that `import rankscope` costs little more than torch.
_HOME = {
    "RankEstimate": "rankscope.spectra",
    "RankscopeError": "rankscope._base.errors",
    "Spectrum": "rankscope.spectra",
    "Tolerance": "rankscope.spectra",
}

__all__ = ["RankEstimate", "RankscopeError", "Spectrum", "Tolerance"]

if TYPE_CHECKING:
    from rankscope._base.errors import RankscopeError
    from rankscope.spectra import RankEstimate, Spectrum, Tolerance


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rankscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
