"""Which classes have no representation of their own: exact Lasso on the shared Gram matrix of the logits (Fig. 4)."""

from rankscope.deficit.dependency import ClassDependency, Exactness, PathPoint, Status
from rankscope.deficit.independence import independence_deficit
from rankscope.deficit.regularisation_path import RegularisationPath
from rankscope.deficit.table import DependencyTable

__all__ = [
    "ClassDependency",
    "DependencyTable",
    "Exactness",
    "PathPoint",
    "RegularisationPath",
    "Status",
    "independence_deficit",
]
