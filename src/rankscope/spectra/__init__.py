"""Singular values and everything read off them: tolerances, ranks with bounds, soft ranks, error certificates."""

from rankscope.spectra.certificate import norm_bound, norm_bound_of_lengths
from rankscope.spectra.gram import accumulate_gram, gram_square_error, spectrum_of_gram
from rankscope.spectra.ranks import Ranks, count_ranks
from rankscope.spectra.scale import exponent_near, scaled_norm, scaled_norms, times_two_to
from rankscope.spectra.spectrum import RankEstimate, Spectrum
from rankscope.spectra.tolerance import EPS32, Tolerance, ToleranceLike, as_tolerance

__all__ = [
    "EPS32",
    "RankEstimate",
    "Ranks",
    "Spectrum",
    "Tolerance",
    "ToleranceLike",
    "accumulate_gram",
    "as_tolerance",
    "count_ranks",
    "exponent_near",
    "gram_square_error",
    "norm_bound",
    "norm_bound_of_lengths",
    "scaled_norm",
    "scaled_norms",
    "spectrum_of_gram",
    "times_two_to",
]
