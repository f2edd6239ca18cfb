"""The paper's figures and tables by name: measured again, written in its form, compared with what it prints."""

from rankscope.reproduce.comparison import PaperComparison
from rankscope.reproduce.networks import PAPER_NETWORKS, PaperNetwork
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.registry import EXPERIMENTS, Experiment
from rankscope.reproduce.run import reproduce, reproduce_all

__all__ = [
    "EXPERIMENTS",
    "PAPER_NETWORKS",
    "Experiment",
    "PaperComparison",
    "PaperNetwork",
    "Reproduction",
    "reproduce",
    "reproduce_all",
]
