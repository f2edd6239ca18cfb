"""Records to one self-contained HTML page: plain sentences, figures, tables, provenance."""

from rankscope.report.comparison import ComparedLayer, Comparison, compare
from rankscope.report.figures import Figure, figure_of
from rankscope.report.page import Page, Section, Table
from rankscope.report.profile_section import profile_page, profile_section, profiles_figure
from rankscope.report.sentences import Finding, findings

__all__ = [
    "ComparedLayer",
    "Comparison",
    "Figure",
    "Finding",
    "Page",
    "Section",
    "Table",
    "compare",
    "figure_of",
    "findings",
    "profile_page",
    "profile_section",
    "profiles_figure",
]
