"""Jacobian rank of every sub-network: one forward-mode sweep per image, float64 Gram matrices, certified spectra."""

from rankscope.jacobian.against_random import AgainstRandom
from rankscope.jacobian.block_chain import chain_exponents
from rankscope.jacobian.exponents_record import ChainExponents
from rankscope.jacobian.measure import jacobian_rank
from rankscope.jacobian.profile import SCHEMA_VERSION, JacobianProfile, Layer

__all__ = [
    "SCHEMA_VERSION",
    "AgainstRandom",
    "ChainExponents",
    "JacobianProfile",
    "Layer",
    "chain_exponents",
    "jacobian_rank",
]
