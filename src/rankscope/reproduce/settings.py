"""What an experiment is run with, checked once at the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from rankscope._base.checks import DeviceLike, Scale, choice_of, count_of, device_of, seed_of
from rankscope._base.errors import DataError, ModelError, parameter
from rankscope._base.progress import Reporter
from rankscope.loading import check_spec
from rankscope.reproduce.patches import patch_of

__all__ = ["AS_PRINTED", "AsPrinted", "Settings"]

AsPrinted = Literal["paper", "reference"]
AS_PRINTED = ("paper", "reference")
_SCALES = ("full", "small")


@dataclass
class Place:
    """Where a run is, for the message of an error."""

    network: str | None = None


@dataclass(frozen=True)
class Settings:
    """Checked options of one run.

    Attributes
    ----------
    as_printed : "paper" or "reference"
        What the text says, or what the authors' code does. Both are measured; this one is drawn and compared.
    imagenet, weights : Path, optional
        Folder with one subfolder per class; folder with one weights file per network.
    networks : tuple of str
        Models added to the paper's, as ``load_model`` names them.
    only : tuple of str, optional
        The paper's networks that take part, by name; None for those of the experiment, empty for none.
    images : int, optional
        Of Fig. 1 (a–c), drawn from the seed; default 16, at small scale 2.
    patch : str
        Where the patch of Fig. 1 (a–c) lies: a name of ``PATCHES``, or row and column of its first pixel, "ROW,COL".
    limit : int, optional
        At most so many of the validation folder for everything else, spread over its classes; default all.
    parts : Path
        Folder that keeps each measurement as it finishes.
    """

    as_printed: AsPrinted
    imagenet: Path | None
    weights: Path | None
    networks: tuple[str, ...]
    only: tuple[str, ...] | None
    images: int | None
    patch: str
    limit: int | None
    device: torch.device
    seed: int
    scale: Scale
    num_workers: int
    parts: Path
    report: Reporter = field(default_factory=Reporter, compare=False)
    place: Place = field(default_factory=Place, compare=False)

    @property
    def full(self) -> bool:
        return self.scale == "full"

    @classmethod
    def of(
        cls,
        *,
        as_printed: str,
        imagenet: str | Path | None,
        weights: str | Path | None,
        networks: Sequence[str],
        only: Sequence[str] | None,
        images: int | None,
        patch: str | None,
        limit: int | None,
        device: DeviceLike,
        seed: int,
        scale: Scale,
        num_workers: int,
        parts: Path,
        report: Reporter,
    ) -> Settings:
        """Check every option.

        Raises
        ------
        UsageError
            For a value that cannot be used.
        DataError, ModelError
            When a folder does not exist.
        """
        choice_of(as_printed, "as_printed", AS_PRINTED)
        choice_of(scale, "scale", _SCALES)
        for name, size in (("images", images), ("limit", limit)):
            if size is not None:
                count_of(size, name)
        seed_of(seed)
        count_of(num_workers, "num_workers", least=0, most=1024)
        for spec in networks:
            check_spec(spec)
        data = None if imagenet is None else Path(imagenet).expanduser()
        if data is not None and not data.is_dir():
            raise DataError(
                f"{parameter('imagenet')} {str(data)!r} is no folder; give the one that holds one subfolder per class"
            )
        held = None if weights is None else Path(weights).expanduser()
        if held is not None and not held.is_dir():
            raise ModelError(
                f"{parameter('weights')} {str(held)!r} is no folder; give the one that holds a file for each network"
            )
        chosen: Any = as_printed
        return cls(
            as_printed=chosen,
            imagenet=data,
            weights=held,
            networks=tuple(dict.fromkeys(networks)),
            only=None if only is None else tuple(only),
            images=images,
            patch="centre" if patch is None else patch_of(patch),
            limit=limit,
            device=device_of(device),
            seed=seed,
            scale=scale,
            num_workers=num_workers,
            parts=parts,
            report=report,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "as_printed": self.as_printed,
            "imagenet": None if self.imagenet is None else str(self.imagenet),
            "weights": None if self.weights is None else str(self.weights),
            "networks": list(self.networks),
            "only": None if self.only is None else list(self.only),
            "images": self.images,
            "patch_position": self.patch,
            "limit": self.limit,
            "device": str(self.device),
            "seed": self.seed,
            "scale": self.scale,
        }
