"""What one pass over a data set leaves on disk, read back as one record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rankscope._base.checks import path_of
from rankscope._base.errors import OutputError, first_line
from rankscope._base.facts import Fact
from rankscope._base.files import digest_of_tensors
from rankscope._base.records import Record
from rankscope._base.text import counted, one_line
from rankscope.features.moments import CentredMoments
from rankscope.features.path_layers import ChosenLayers
from rankscope.features.reduction import Reduce
from rankscope.features.shards import ShardStore
from rankscope.features.sources import Skipped, skipped_lines
from rankscope.views.bars_figure import plot_bars
from rankscope.views.sentences import note

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["Collection", "add_states", "joined", "renamed", "restored"]


@dataclass(frozen=True, eq=False, repr=False)
class Collection(Record):
    """The results of one pass over the data: features, logits, labels and moments.

    Attributes
    ----------
    features : torch.Tensor
        (N, d) float32, or float64 where the model computes in it: what went into the head.
    logits : torch.Tensor
        (N, c), likewise.
    labels, indices : torch.Tensor
        (N,) int64, a label -1 where there was none; ``indices`` say which samples of the data set the rows are;
        of a ``DataLoader`` with a sampler, counted in its order.
    moments : dict of str to CentredMoments
        By cut point; ``feature_rank(collection)`` reads them.
    head : tuple of tensors
        (weight, bias), ready for ``classification_dimension``.
    skipped : tuple of Skipped
        Samples that could not be read, with file and reason.
    folder : Path
        The folder of the shards.
    resumed : int
        Samples that were taken over from an earlier run.
    reduce : str
        How feature maps became the rows of ``moments``.
    facts : tuple of Fact
        How model and data were taken, what was read back from an earlier run, and what was measured again and why.
    """

    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    moments: dict[str, CentredMoments]
    head: tuple[torch.Tensor, torch.Tensor]
    skipped: tuple[Skipped, ...]
    folder: Path = field(compare=False)
    resumed: int = field(default=0, compare=False)
    reduce: Reduce = "pool"
    facts: tuple[Fact, ...] = field(default=(), compare=False)

    def __eq__(self, other: object) -> bool:
        """Whether the same was collected; where it lies, and in how many runs it was made, do not count."""
        if not isinstance(other, Collection):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self) -> int:
        return hash((len(self), self.reduce, tuple(self.moments)))

    def _content(self) -> tuple[Any, ...]:
        states = [state for m in self.moments.values() for state in (m.count, m.mean, m.scatter)]
        tensors = [self.features, self.logits, self.labels, self.indices, *self.head, *states]
        return digest_of_tensors(tensors), list(self.moments), self.skipped, self.reduce

    def __len__(self) -> int:
        return len(self.labels)

    def save(self, path: str | Path) -> Path:
        """Copy what was collected into another folder (made if absent); returns that folder.

        Raises
        ------
        OutputError
            When that folder holds a collection already, or a file cannot be read or written.
        """
        target = path_of(path, "path")
        if target.resolve() != self.folder.resolve():
            ShardStore(self.folder, ShardStore.read_manifest(self.folder)).copy_to(target)
        return target

    def table(self) -> pd.DataFrame:
        """One row per cut point: ``layer``, ``width``, ``rows``, and ``variance``, the total over all coordinates."""
        import pandas as pd

        rows = [
            (name, m.width, int(m.count), float(m.scatter.trace()) / max(int(m.count) - 1, 1))
            for name, m in self.moments.items()
        ]
        return pd.DataFrame(rows, columns=["layer", "width", "rows", "variance"])

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Samples of every class."""
        counts = torch.bincount(self.labels[self.labels >= 0], minlength=self.logits.shape[1]).tolist()
        title = counted(len(self), "sample")
        return plot_bars(list(map(str, range(len(counts)))), counts, quantity="samples", title=title, ax=ax)

    @classmethod
    def load(cls, path: str | Path) -> Collection:
        """What ``collect`` left in a folder, without model or data.

        Raises
        ------
        OutputError
            No collection there, one that was never finished, or damaged files.
        """
        folder = path_of(path, "path")
        store = ShardStore(folder, ShardStore.read_manifest(folder))
        store.check_none_missing()
        whole = store.whole()
        after, total = store.progress()
        if not whole or after < total:
            raise OutputError(
                f"the collection in {folder} is not finished ({after:,} of {total:,} samples); collect again "
                "with the same arguments to continue"
            )
        try:
            noted = store.read(whole - 1)[1].get("layers")  # unless the first sample has shown all
            asked = json.loads(store.fingerprint["setting"])["cut_points"]
            layers = ChosenLayers.from_dict(noted) if noted else ChosenLayers(())
            names = layers.in_records if noted else {name: name for name in asked}
            moments, head = restored(store, whole - 1, list(names))
            return joined(store, whole, renamed(moments, names), head, layers)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise OutputError(f"the collection in {folder} is damaged ({first_line(error)}); collect again") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the tensors."""
        return {
            "schema_version": 1,
            "kind": "collection",
            "folder": str(self.folder),
            "samples": len(self),
            "width": self.features.shape[1],
            "classes": self.logits.shape[1],
            "cut_points": list(self.moments),
            "reduce": self.reduce,
            "resumed": self.resumed,
            "skipped": [vars(one) for one in self.skipped],
            "facts": [fact.to_dict() for fact in self.facts],
        }

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        lines = [
            f"{counted(len(self), 'sample')}, features of width {self.features.shape[1]:,}, "
            f"{counted(self.logits.shape[1], 'class', 'classes')} in {self.folder}"
        ]
        lines += [f"moments of {one_line(name)} ({m.width:,} wide)" for name, m in self.moments.items()]
        lines += skipped_lines(self.skipped)
        lines += map(note, self.facts)
        return "\n".join(lines)


def restored(
    store: ShardStore, last: int, cut_points: list[str]
) -> tuple[dict[str, CentredMoments], tuple[torch.Tensor, torch.Tensor]]:
    """The moments of all samples up to shard ``last``, and (weight, bias) of the head."""
    states = store.read_moments(last)
    moments: dict[str, CentredMoments] = {}
    add_states(moments, states, cut_points)
    return moments, (states["<head>/weight"], states["<head>/bias"])


def renamed(moments: Mapping[str, CentredMoments], names: Mapping[str, str]) -> dict[str, CentredMoments]:
    """Under the names that layers have in a record, and in that order."""
    for name, known in moments.items():
        known.name = names[name]
    return {names[name]: moments[name] for name in names if name in moments}


def add_states(
    moments: dict[str, CentredMoments], states: Mapping[str, torch.Tensor], cut_points: Sequence[str]
) -> None:
    """Merge the moments of further samples, kept by ``layer/state``, into those of the samples before."""
    for name in cut_points:
        if f"{name}/mean" not in states:  # none of these samples calls it
            continue
        if name not in moments:
            moments[name] = CentredMoments(len(states[f"{name}/mean"]), name=name, sync_on_compute=False)
        known = moments[name]
        known.merge_state({key: states[f"{name}/{key}"] for key in ("count", "mean", "scatter")})
        # shards of earlier versions do not have these
        known.roundoff = max(known.roundoff, float(states.get(f"{name}/roundoff", 0.0)))
        known.magnitude += float(states.get(f"{name}/magnitude", 0.0))


def joined(
    store: ShardStore,
    shards: int,
    moments: dict[str, CentredMoments],
    head: tuple[torch.Tensor, torch.Tensor],
    layers: ChosenLayers,
    *,
    unwritten: tuple[Skipped, ...] = (),
    resumed: int = 0,
    facts: tuple[Fact, ...] = (),
) -> Collection:
    """The first ``shards`` shards as one collection; ``unwritten`` are skipped samples that no shard names."""
    read = [store.read(index) for index in range(shards)]
    tensors = {key: torch.cat([one[key] for one, _ in read]) for key in read[0][0]}
    skipped = (*(Skipped(**one) for _, notes in read for one in notes["skipped"]), *unwritten)
    kept = layers.told(Fact.from_dict(one) for _, notes in read for one in notes.get("facts", ()))
    facts = (*facts, *layers.late)
    facts = (*facts, *(fact for k, fact in enumerate(kept) if fact not in facts and fact not in kept[:k]))
    reduce = json.loads(store.fingerprint["setting"])["reduce"]
    return Collection(
        **tensors,
        moments=moments,
        head=head,
        skipped=skipped,
        folder=store.folder,
        resumed=resumed,
        reduce=reduce,
        facts=facts,
    )
