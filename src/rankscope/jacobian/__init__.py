"""Jacobian rank of every sub-network: one forward-mode sweep an image, float64 Gram matrices, certified spectra."""

from rankscope.jacobian.measure import jacobian_rank
from rankscope.jacobian.profile import SCHEMA_VERSION, JacobianProfile, Layer

__all__ = ["SCHEMA_VERSION", "JacobianProfile", "Layer", "jacobian_rank"]
