"""What depth must do to rank: exponents, predictions and bounds for chains of layers, and a bench of random chains."""

from rankscope.theory.bounds import CompositionBound, composition_bound, stability_radius
from rankscope.theory.chain_bench import deep_chain
from rankscope.theory.chains import ChainSpectrum, chain_singular_values
from rankscope.theory.gaussian import GaussianExponents, critical_std, gaussian_exponents, growth_rate
from rankscope.theory.lyapunov import LyapunovExponents, lyapunov_exponents
from rankscope.theory.marchenko_pastur import marchenko_pastur_rank
from rankscope.theory.prediction import RankPrediction, depth_to_rank, predicted_rank
from rankscope.theory.profile import ChainProfile, ChainRun, ChainStep
from rankscope.theory.rectangular import rectangular_chain_rank
from rankscope.theory.residual import ResidualExponents, relu_width, residual_exponents
from rankscope.theory.residual_law import residual_chain_rank

__all__ = [
    "ChainProfile",
    "ChainRun",
    "ChainSpectrum",
    "ChainStep",
    "CompositionBound",
    "GaussianExponents",
    "LyapunovExponents",
    "RankPrediction",
    "ResidualExponents",
    "chain_singular_values",
    "composition_bound",
    "critical_std",
    "deep_chain",
    "depth_to_rank",
    "gaussian_exponents",
    "growth_rate",
    "lyapunov_exponents",
    "marchenko_pastur_rank",
    "predicted_rank",
    "rectangular_chain_rank",
    "relu_width",
    "residual_chain_rank",
    "residual_exponents",
    "stability_radius",
]
