"""Feature space: activations streamed into moments, feature dimension of every layer, classification dimension."""

from rankscope.features.class_record import ClassFeatures
from rankscope.features.classification import classification_dimension
from rankscope.features.classification_result import ClassificationDimension
from rankscope.features.collecting import collect
from rankscope.features.collection import Collection
from rankscope.features.feature_profile import FeatureProfile, LayerFeatures
from rankscope.features.feature_rank import feature_rank, local_feature_rank
from rankscope.features.heads import find_head
from rankscope.features.intrinsic import IntrinsicDimension, LayerIntrinsic, intrinsic_dimension
from rankscope.features.moments import CentredMoments
from rankscope.features.similarity import Similarity, linear_cka
from rankscope.features.sketch import FrequentDirections
from rankscope.features.truncated_head import TruncatedHead

__all__ = [
    "CentredMoments",
    "ClassFeatures",
    "ClassificationDimension",
    "Collection",
    "FeatureProfile",
    "FrequentDirections",
    "IntrinsicDimension",
    "LayerFeatures",
    "LayerIntrinsic",
    "Similarity",
    "TruncatedHead",
    "classification_dimension",
    "collect",
    "feature_rank",
    "find_head",
    "intrinsic_dimension",
    "linear_cka",
    "local_feature_rank",
]
