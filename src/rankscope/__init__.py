"""How much independent information survives in a neural network, layer by layer, and how sure that number is.

>>> import rankscope as rs
>>> rs.Spectrum.of([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).rank("paper").value
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public by their own name, such as rs.theory, and as slow to load as what they import.
_PACKAGES = ("datasets", "loading", "metrics", "monitor", "theory")
# Public name → the module it lives in. Loaded on first use, so that `import rankscope` costs little more than torch.
_HOME = {
    "AgainstRandom": "rankscope.jacobian",
    "ChainExponents": "rankscope.jacobian",
    "ClassDependency": "rankscope.deficit",
    "ClassFeatures": "rankscope.features",
    "ClassificationDimension": "rankscope.features",
    "CollapseAlarm": "rankscope.monitor",
    "Collection": "rankscope.features",
    "Comparison": "rankscope.report.comparison",
    "CutPointError": "rankscope._base.errors",
    "DataError": "rankscope._base.errors",
    "DensityRank": "rankscope.spectra.density",
    "DependencyTable": "rankscope.deficit",
    "DeviceError": "rankscope._base.errors",
    "Fact": "rankscope._base.facts",
    "FactKind": "rankscope._base.facts",
    "FeatureProfile": "rankscope.features",
    "IntrinsicDimension": "rankscope.features",
    "JacobianMap": "rankscope.linear.jacobian_map",
    "JacobianProbe": "rankscope.monitor",
    "JacobianProfile": "rankscope.jacobian",
    "Lanczos": "rankscope.spectra.matrix_free",
    "Layer": "rankscope.jacobian",
    "LayerFeatures": "rankscope.features",
    "LayerTable": "rankscope.slicing",
    "MeasurementError": "rankscope._base.errors",
    "ModelError": "rankscope._base.errors",
    "OutputError": "rankscope._base.errors",
    "PartlyDoneError": "rankscope._base.errors",
    "ProcessError": "rankscope._base.errors",
    "Patch": "rankscope.slicing",
    "Positions": "rankscope.slicing",
    "ProbeResult": "rankscope.probes",
    "ProbeResults": "rankscope.probes",
    "RankEstimate": "rankscope.spectra",
    "RankMonitor": "rankscope.monitor",
    "RankscopeError": "rankscope._base.errors",
    "RegularisationPath": "rankscope.deficit",
    "RemedyResult": "rankscope.probes",
    "Similarity": "rankscope.features",
    "Sketch": "rankscope.slicing",
    "SpectralDensity": "rankscope.spectra.density",
    "Spectrum": "rankscope.spectra",
    "Tolerance": "rankscope.spectra",
    "TruncatedHead": "rankscope.features",
    "UsageError": "rankscope._base.errors",
    "WatchedRun": "rankscope.monitor",
    "chain_exponents": "rankscope.jacobian",
    "classification_dimension": "rankscope.features",
    "collect": "rankscope.features",
    "compare": "rankscope.report.comparison",
    "feature_rank": "rankscope.features",
    "independence_deficit": "rankscope.deficit",
    "intrinsic_dimension": "rankscope.features",
    "jacobian_rank": "rankscope.jacobian",
    "layers": "rankscope.slicing",
    "linear_cka": "rankscope.features",
    "linear_map": "rankscope.linear.jacobian_map",
    "local_feature_rank": "rankscope.features",
    "probe": "rankscope.probes",
    "probe_all": "rankscope.probes",
    "probe_remedies": "rankscope.probes",
    "standard_components": "rankscope.probes",
    "watch": "rankscope.monitor",
}

__all__ = [
    "AgainstRandom",
    "ChainExponents",
    "ClassDependency",
    "ClassFeatures",
    "ClassificationDimension",
    "CollapseAlarm",
    "Collection",
    "Comparison",
    "CutPointError",
    "DataError",
    "DensityRank",
    "DependencyTable",
    "DeviceError",
    "Fact",
    "FactKind",
    "FeatureProfile",
    "IntrinsicDimension",
    "JacobianMap",
    "JacobianProbe",
    "JacobianProfile",
    "Lanczos",
    "Layer",
    "LayerFeatures",
    "LayerTable",
    "MeasurementError",
    "ModelError",
    "OutputError",
    "PartlyDoneError",
    "Patch",
    "Positions",
    "ProbeResult",
    "ProbeResults",
    "ProcessError",
    "RankEstimate",
    "RankMonitor",
    "RankscopeError",
    "RegularisationPath",
    "RemedyResult",
    "Similarity",
    "Sketch",
    "SpectralDensity",
    "Spectrum",
    "Tolerance",
    "TruncatedHead",
    "UsageError",
    "WatchedRun",
    "chain_exponents",
    "classification_dimension",
    "collect",
    "compare",
    "feature_rank",
    "independence_deficit",
    "intrinsic_dimension",
    "jacobian_rank",
    "layers",
    "linear_cka",
    "linear_map",
    "local_feature_rank",
    "probe",
    "probe_all",
    "probe_remedies",
    "standard_components",
    "watch",
]

if TYPE_CHECKING:
    from rankscope import datasets as datasets
    from rankscope import loading as loading
    from rankscope import metrics as metrics
    from rankscope import monitor as monitor
    from rankscope import theory as theory
    from rankscope._base.errors import (
        CutPointError,
        DataError,
        DeviceError,
        MeasurementError,
        ModelError,
        OutputError,
        PartlyDoneError,
        ProcessError,
        RankscopeError,
        UsageError,
    )
    from rankscope._base.facts import Fact, FactKind
    from rankscope.deficit import ClassDependency, DependencyTable, RegularisationPath, independence_deficit
    from rankscope.features import (
        ClassFeatures,
        ClassificationDimension,
        Collection,
        FeatureProfile,
        IntrinsicDimension,
        LayerFeatures,
        Similarity,
        TruncatedHead,
        classification_dimension,
        collect,
        feature_rank,
        intrinsic_dimension,
        linear_cka,
        local_feature_rank,
    )
    from rankscope.jacobian import (
        AgainstRandom,
        ChainExponents,
        JacobianProfile,
        Layer,
        chain_exponents,
        jacobian_rank,
    )
    from rankscope.linear.jacobian_map import JacobianMap, linear_map
    from rankscope.monitor import CollapseAlarm, JacobianProbe, RankMonitor, WatchedRun, watch
    from rankscope.probes import (
        ProbeResult,
        ProbeResults,
        RemedyResult,
        probe,
        probe_all,
        probe_remedies,
        standard_components,
    )
    from rankscope.report.comparison import Comparison, compare
    from rankscope.slicing import LayerTable, Patch, Positions, Sketch, layers
    from rankscope.spectra import RankEstimate, Spectrum, Tolerance
    from rankscope.spectra.density import DensityRank, SpectralDensity
    from rankscope.spectra.matrix_free import Lanczos


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"rankscope.{name}")
    raise AttributeError(f"module 'rankscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})
