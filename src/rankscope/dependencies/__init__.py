"""Which classes have no representation of their own: exact Lasso on the shared Gram matrix of the logits (Fig. 4)."""

from rankscope.dependencies.deficit import independence_deficit
from rankscope.dependencies.path import RegularisationPath
from rankscope.dependencies.table import ClassDependency, DependencyTable, PathPoint

__all__ = ["ClassDependency", "DependencyTable", "PathPoint", "RegularisationPath", "independence_deficit"]
