"""Looks through the folder of a training run, as often as it is asked to, and measures what is new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from rankscope._base.errors import DataError, OutputError, RankscopeError, UsageError, parameter
from rankscope._base.facts import Fact, FactKind, unsaid
from rankscope._base.identity import Identity, identity_of
from rankscope._base.progress import Reporter
from rankscope.monitor.checkpoint_files import Signature, checkpoints_in, signature_of
from rankscope.monitor.checkpoint_steps import Step, step_in_file, steps_in_names
from rankscope.monitor.watch_measures import Measure, Measured
from rankscope.monitor.watch_store import MeasuredStore
from rankscope.monitor.watched import WatchedRun, WatchedStep

__all__ = ["Load", "Watcher"]

Load = Callable[[Path], tuple[nn.Module, Sequence[Fact]]]
_CHANGED = "it changed while it was read, so it is not whole yet"
# Rounding of another number of threads moves a soft rank by about 1e-6 of it; other weights, data or code by more
_AGREE = 1e-3


@dataclass(frozen=True)
class _Seen:
    """A checkpoint as it was when it was read: what it says of its step, and what was measured."""

    path: Path
    inside: Step | None
    key: str
    measured: Measured


class _WithoutStep:
    """A checkpoint that neither its file nor its name places: nothing was measured."""


_Found: TypeAlias = _Seen | RankscopeError | _WithoutStep
_BARE = Step(0, "number")
_BY = {  # what a step counts, in words
    "step": "steps",
    "iteration": "iterations",
    "epoch": "epochs",
    "number": "a bare number in its name",
}


class Watcher:
    """The checkpoints of one folder, each read once as long as it stays as it is.

    Parameters
    ----------
    load : callable
        From a checkpoint to the network with its weights, and facts on it. What it raises as a failure of one
        checkpoint is named, and the others are measured.
    measure : callable
        The numbers of a network.
    about : callable
        Identity of all that the numbers depend on beside the network. It is asked once the first network was loaded.
    kept : folder, optional
        Where the numbers of each network are kept.
    """

    def __init__(
        self,
        folder: Path,
        load: Load,
        measure: Measure,
        about: Callable[[], Identity],
        *,
        files: Sequence[str] = ("*",),
        kept: Path | None = None,
        report: Reporter | None = None,
    ) -> None:
        self.folder, self.files = folder, files
        self._load, self._measure, self._about = load, measure, about
        self._store = None if kept is None else MeasuredStore(kept)
        self._report = report or Reporter()
        self._seen: dict[Path, tuple[Signature, _Found]] = {}
        self._gone: list[_Seen] = []
        self._facts: list[Fact] = []
        self._loading: tuple[Fact, ...] = ()
        self._identity: Identity | None = None
        self._made: dict[str, Measured] = {}  # by this run
        self._read_back: set[str] = set()  # keys whose numbers an earlier run made
        self._compared = False

    def look(self) -> bool:
        """Measure checkpoints that are new or have changed; whether anything is other than at the last look."""
        paths = checkpoints_in(self.folder, self.files)
        changed = False
        for path in [p for p in self._seen if p not in paths]:
            self._leave(path)
            changed = True
        named = steps_in_names([path.name for path in paths])
        fresh = [path for path in paths if self._is_fresh(path, path.name in named)]
        for number, path in enumerate(fresh):
            self._report(number, len(fresh), path.name)
            signature = signature_of(path)
            if path in self._seen:
                self._leave(path)
            found = self._read(path, path.name in named)
            if signature_of(path) != signature:
                signature, found = (), DataError(_CHANGED)  # of no checkpoint, so that it is read at the next look
            self._seen[path] = signature, found
            changed = True
        return changed

    def _is_fresh(self, path: Path, named: bool) -> bool:
        if path not in self._seen or self._seen[path][0] != signature_of(path):
            return True
        return named and isinstance(self._seen[path][1], _WithoutStep)  # by names that came later

    def _leave(self, path: Path) -> None:
        """A checkpoint was removed or written anew; what was measured of it stays."""
        found = self._seen.pop(path)[1]
        if isinstance(found, _Seen):
            self._gone.append(found)

    def _read(self, path: Path, named: bool) -> _Found:
        try:
            inside = step_in_file(path)
            if inside is None and not named:
                return _WithoutStep()
            model, facts = self._load(path)
        except (UsageError, OutputError):  # a question that no checkpoint answers, or nowhere to keep the answer
            raise
        except RankscopeError as error:
            return error
        except OSError as error:  # it may be removed, or not ours to read
            return DataError(f"it cannot be read ({error.strerror or error})")
        if self._identity is None:
            self._identity = self._about()  # no checkpoint is at fault where that fails
        try:
            key, measured = self._numbers(model, self._identity)
        except (UsageError, OutputError):
            raise
        except RankscopeError as error:
            return error
        self._loading = tuple(facts)
        for fact in measured.facts:  # features and ranks may say the same
            self._facts += unsaid([fact], self._facts)
        return _Seen(path, inside, key, measured)

    def _numbers(self, model: nn.Module, about: Identity) -> tuple[str, Measured]:
        own = identity_of(model)
        key = f"{own.key} {about.key}"
        if key not in self._made:
            self._made[key] = self._new_numbers(model, key, own, about)
        return key, self._made[key]

    def _new_numbers(self, model: nn.Module, key: str, own: Identity, about: Identity) -> Measured:
        """Of a network that this run has not met: from an earlier run, or measured and kept."""
        for owner, identity in (("model", own), ("data set", about)):
            if identity.unreadable and self._store is not None:
                values = {"types": identity.unreadable, "owner": owner}
                self._facts += unsaid([Fact(FactKind.KEPT_INCOMPARABLE, values)], self._facts)
        known = None if self._store is None else self._store.get(key)
        if known is not None and self._compared:
            self._read_back.add(key)
            return known
        measured = self._measure(model)
        if known is not None and self._store is not None:  # the first that is read back is measured again
            self._compared = True
            if _same(known, measured):
                self._read_back.add(key)
                return known
            self._store.clear()
            for made, numbers in self._made.items():  # those of this run hold
                self._store.put(made, numbers)
            self._facts.append(Fact(FactKind.KEPT_DIFFERS, {"where": _first_other(known, measured), "unit": "result"}))
        if self._store is not None:
            self._store.put(key, measured)
        return measured

    # ---- what was seen -------------------------------------------------------------------------------------------

    def record(self, provenance: dict[str, Any] | None = None) -> WatchedRun:
        """The checkpoints in order of step.

        Raises
        ------
        DataError
            None could be measured: the first reason is given.
        UsageError
            Their steps count several things.
        """
        facts: list[Fact] = []
        names = steps_in_names([*(p.name for p in self._seen), *(one.path.name for one in self._gone)])
        here = [s for _, s in self._seen.values() if isinstance(s, _Seen)]
        by_epoch = _epochs_tell(here, names)
        present = _placed(here, names, by_epoch, facts)
        gone = _placed(self._gone, names, by_epoch, [])
        placed = {one.path for one, _ in present}  # a step may be lost to names that came later
        failed = {path for path, (_, s) in self._seen.items() if isinstance(s, RankscopeError)}
        without = tuple(sorted(path.name for path in self._seen if path not in placed | failed))
        if without:
            facts.append(Fact(FactKind.CHECKPOINTS_WITHOUT_STEP, {"names": without}, caution=True))
        for path, (_, error) in sorted(self._seen.items()):
            if isinstance(error, RankscopeError):
                about = {"file": path.name, "reason": str(error).rstrip(".")}
                facts.append(Fact(FactKind.CHECKPOINT_LEFT_OUT, about, caution=True))
        units = {step.unit: one for one, step in reversed([*present, *gone])}
        if len(units) > 1:
            said = " and ".join(f"{one.path.name!r} has a step by {_BY[unit]}" for unit, one in units.items())
            raise UsageError(f"{said}, which do not compare; choose with {parameter('files')}, such as '*.ckpt'")
        chosen = self._one_a_step(present, gone, facts)
        if not chosen:
            self._raise_first()
        if self._store is not None and self._store.damaged:
            facts.append(Fact(FactKind.KEPT_DAMAGED, {"count": self._store.damaged, "unit": "checkpoint"}))
        kept = sum(one.key in self._read_back for _, one in chosen)
        if kept:
            facts.append(Fact(FactKind.READ_BACK, {"kept": kept, "total": len(chosen), "unit": "checkpoint"}))
        found = (*facts, *self._facts, *self._loading)
        steps = tuple(WatchedStep(value, one.path.name, one.measured.values) for value, one in chosen)
        return WatchedRun(str(self.folder), next(iter(units)), steps, found, dict(provenance or {}))

    def _one_a_step(
        self, present: list[tuple[_Seen, Step]], gone: list[tuple[_Seen, Step]], facts: list[Fact]
    ) -> list[tuple[int, _Seen]]:
        """One checkpoint per step, in order."""
        by_step: dict[int, list[_Seen]] = {}
        for one, step in present:
            by_step.setdefault(step.value, []).append(one)
        # where training went back, its earlier checkpoints from there on are of another run
        back = [s.value for g, s in gone if any(one.key != g.key for one in by_step.get(s.value, ()))]
        left = {s.value: g for g, s in gone if s.value not in by_step and s.value < min(back, default=s.value + 1)}
        steps = []
        for value, found in by_step.items():
            alike = sorted(found, key=lambda one: one.path.name)
            names = tuple(one.path.name for one in alike)
            if len({one.key for one in alike}) > 1:
                values = {"step": value, "names": names}
                facts.append(Fact(FactKind.CHECKPOINTS_OF_ONE_STEP, values, caution=True))
                continue
            if len(alike) > 1:
                facts.append(Fact(FactKind.CHECKPOINTS_ALIKE, {"step": value, "names": names}))
            steps.append((value, alike[0]))
        if left:
            facts.append(Fact(FactKind.CHECKPOINTS_GONE, {"names": tuple(g.path.name for g in left.values())}))
            steps += left.items()
        return sorted(steps, key=lambda step: step[0])

    def _raise_first(self) -> None:
        failed = [error for _, error in self._seen.values() if isinstance(error, RankscopeError)]
        if failed:
            raise failed[0]
        if self._seen:
            raise DataError(
                f"it is unclear which step the {len(self._seen)} checkpoints in {str(self.folder)!r} belong to; save "
                "them with one number in each name, or with global_step inside"
            )
        chosen = ", ".join(map(repr, self.files))
        among = "" if tuple(self.files) == ("*",) else f" that {parameter('files')} {chosen} names"
        raise DataError(
            f"{str(self.folder)!r} holds no checkpoint{among}; checkpoints are .ckpt, .pt, .pth and .safetensors files "
            "and folders with weights"
        )


def _epochs_tell(seen: Sequence[_Seen], names: Mapping[str, Step]) -> bool:
    """Whether the epochs in the files are as fine as the bare numbers in their names: each has one, and no two networks
    have the same.
    """
    plain = [one for one in seen if names.get(one.path.name, _BARE).unit == "number"]
    plain = [one for one in plain if one.inside is None or one.inside.unit == "epoch"]
    epochs = {(one.inside.value, one.key) for one in plain if one.inside is not None}
    whole = all(one.inside is not None for one in plain)
    return whole and len({epoch for epoch, _ in epochs}) == len(epochs)


def _placed(
    seen: Sequence[_Seen], names: Mapping[str, Step], by_epoch: bool, facts: list[Fact]
) -> list[tuple[_Seen, Step]]:
    """Each with its step; a name that says another than its file is told."""
    placed = []
    for one in seen:
        named, inside = names.get(one.path.name), one.inside
        # a bare number in the name counts before an epoch in the file, where the epoch is coarser
        first = (
            named is None or (inside is not None and inside.unit != "epoch") or (by_epoch and named.unit == "number")
        )
        step = inside if inside is not None and first else named
        if step is None:  # the names that placed it are gone
            continue
        placed.append((one, step))
        if inside is not None and named is not None and inside.unit == named.unit and inside.value != named.value:
            values = {"file": one.path.name, "inside": inside.value, "name": named.value}
            values |= {"unit": step.unit, "used": step.value}
            facts.append(Fact(FactKind.CHECKPOINT_STEPS_DIFFER, values, caution=True))
    return placed


def _same(one: Measured, other: Measured) -> bool:
    return not _first_other(one, other)


def _first_other(one: Measured, other: Measured) -> str:
    """The first layer whose numbers differ by more than rounding; empty where none does."""
    if [(v.layer, v.metric) for v in one.values] != [(v.layer, v.metric) for v in other.values]:
        return "the layers"
    for a, b in zip(one.values, other.values, strict=True):
        within = a.lower <= b.value <= a.upper or b.lower <= a.value <= b.upper
        if not within and not np.isclose(a.value, b.value, rtol=_AGREE, atol=0, equal_nan=True):
            return a.layer
    return ""
