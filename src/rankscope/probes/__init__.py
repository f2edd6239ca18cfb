"""What single components and remedies do to rank."""

from rankscope.probes.components import Attention, Component, Expectation, standard_components
from rankscope.probes.probe import SCALES, probe, probe_all
from rankscope.probes.remedies import REMEDIES, REMEDY_SCALES, probe_remedies
from rankscope.probes.remedy_result import RemedyCurve, RemedyResult
from rankscope.probes.result import ProbeResult, ProbeResults

__all__ = [
    "REMEDIES",
    "REMEDY_SCALES",
    "SCALES",
    "Attention",
    "Component",
    "Expectation",
    "ProbeResult",
    "ProbeResults",
    "RemedyCurve",
    "RemedyResult",
    "probe",
    "probe_all",
    "probe_remedies",
    "standard_components",
]
