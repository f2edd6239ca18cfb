"""Every experiment by name: what it shows, what it needs, and the function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankscope._base.errors import parameter
from rankscope.reproduce.chains import chain
from rankscope.reproduce.components import components
from rankscope.reproduce.data import ClassFolders
from rankscope.reproduce.deficit import DEFICIT_NETWORKS, deficit
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.partial_rank import enough_images, panel_networks, partial_rank
from rankscope.reproduce.settings import Settings
from rankscope.reproduce.tables import accuracy_curves, classification_dimensions, networks_table

__all__ = ["EXPERIMENTS", "Experiment", "check_counts"]


@dataclass(frozen=True)
class Experiment:
    """One figure or table; ``data`` tells whether it needs the validation folder and trained networks.

    ``networks`` are those of the paper that it shows; None for all six.
    """

    name: str
    shows: str
    data: bool
    run: Callable[[str, Settings], Reproduction]
    networks: tuple[str, ...] | None = None

    @property
    def unused(self) -> dict[str, str]:
        """Options that it does not use, with the reason."""
        if not self.data:
            why = "it needs neither images nor networks"
            return dict.fromkeys(("imagenet", "weights", "networks", "only", "images", "patch", "limit"), why)
        if self.run is partial_rank:
            return {"limit": f"{parameter('images')} sets how many it measures"}
        return {
            "images": f"{parameter('limit')} sets how many of the folder it takes",
            "patch": "it measures whole images",
        }


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            "fig1a", "partial rank by layer of ResNet-18 and ResNet-50", True, partial_rank, panel_networks("fig1a")
        ),
        Experiment(
            "fig1b", "partial rank by layer of GluMixer-24 and ResMLP-S24", True, partial_rank, panel_networks("fig1b")
        ),
        Experiment("fig1c", "partial rank by layer of ViT-T and Swin-T", True, partial_rank, panel_networks("fig1c")),
        Experiment("fig1d", "linear chain, weights N(0, 0.02)", False, chain),
        Experiment("fig1e", "linear chain, Kaiming normal weights", False, chain),
        Experiment("fig1f", "linear chain, Xavier normal weights", False, chain),
        Experiment("fig2", "accuracy over the principal components kept", True, accuracy_curves),
        Experiment("fig3", "dimension and rank before and after single components", False, components),
        Experiment("fig4", "classes whose logit other classes determine", True, deficit, DEFICIT_NETWORKS),
        Experiment("table1", "the networks: layers, parameters, accuracy", True, networks_table),
        Experiment("table2", "classification dimensions", True, classification_dimensions),
    )
}


def check_counts(settings: Settings, folders: ClassFolders, names: Sequence[str]) -> None:
    """Refuse before anything is loaded what the folder is too small for.

    Raises
    ------
    UsageError
        When ``images`` asks for more than there are, or ``limit`` leaves a class without an image.
    """
    runs = [EXPERIMENTS[name].run for name in names]
    if partial_rank in runs:
        enough_images(settings, folders.root, len(folders.files))
    if any(EXPERIMENTS[name].data and EXPERIMENTS[name].run is not partial_rank for name in names):
        folders.draw(settings.limit, settings.seed)
