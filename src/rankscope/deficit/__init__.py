"""Which classes have no representation of their own: exact Lasso on the shared Gram matrix of the logits (Fig. 4)."""

from rankscope.deficit.independence import independence_deficit
from rankscope.deficit.path import RegularisationPath
from rankscope.deficit.table import ClassDependency, DependencyTable, PathPoint

__all__ = ["ClassDependency", "DependencyTable", "PathPoint", "RegularisationPath", "independence_deficit"]
