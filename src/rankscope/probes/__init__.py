"""What single components and remedies do to rank, and the exponents of a real network's blocks."""

from rankscope.probes.components import Attention, Component, Expectation, standard_components
from rankscope.probes.probe import SCALES, probe, probe_all
from rankscope.probes.result import ProbeResult, ProbeResults

__all__ = [
    "SCALES",
    "Attention",
    "Component",
    "Expectation",
    "ProbeResult",
    "ProbeResults",
    "probe",
    "probe_all",
    "standard_components",
]
