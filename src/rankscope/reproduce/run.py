"""``reproduce``: from a name and options to a record and its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankscope._base.checks import DeviceLike, Scale
from rankscope._base.errors import PartlyDoneError, RankscopeError, UsageError, nearest, parameter, type_and_line
from rankscope._base.lock import FolderLock
from rankscope._base.progress import Progress, progress_for
from rankscope.reproduce.data import ClassFolders, read_class_folders
from rankscope.reproduce.networks import choose, participants
from rankscope.reproduce.outcome import Reproduction
from rankscope.reproduce.registry import EXPERIMENTS, check_counts
from rankscope.reproduce.settings import Settings

__all__ = ["reproduce", "reproduce_all"]


def reproduce(
    name: str,
    *,
    out: str | Path | None = None,
    as_printed: str = "paper",
    imagenet: str | Path | None = None,
    weights: str | Path | None = None,
    networks: Sequence[str] = (),
    only: Sequence[str] | None = None,
    images: int | None = None,
    patch: str | None = None,
    limit: int | None = None,
    device: DeviceLike = "auto",
    seed: int = 0,
    scale: Scale = "full",
    num_workers: int = 0,
    progress: bool | Progress | None = None,
) -> Reproduction:
    """Measure one figure or table of the paper again and write it.

    Each finished measurement is kept under ``out/parts``: the same call goes on after an interruption and leaves the
    same files. Both are measured; ``as_printed`` decides which is drawn and compared.

    Parameters
    ----------
    name : str
        One of ``EXPERIMENTS``.
    out : path, optional
        Folder for the files; default ``runs/reproduce/NAME``.
    as_printed : "paper" or "reference"
        What the text says, or what the authors' code does.
    imagenet : path, optional
        Validation folder with one subfolder per class; experiments with ``data`` need it.
    weights : path, optional
        Folder with a weights file for every network, named as the model (``resnet18.pth``); default: pretrained.
    networks : sequence of str
        Further models, as ``load_model`` names them; measured at their blocks.
    only : sequence of str, optional
        Of the paper's networks these alone; an empty sequence for none.
    images : int, optional
        Of Fig. 1 (a–c), drawn from the seed; default 16, of which ``reference`` takes the mean over 10.
    patch : str, optional
        Where the patch of Fig. 1 (a–c) lies: "centre" (default), "top-left", "top-right", "bottom-left" or
        "bottom-right", or row and column of its first pixel, such as "96,96". The appendix has other patches too.
    limit : int, optional
        At most so many images of the folder for everything else, spread over its classes; default all.
    device, seed, num_workers
        Where to compute; of every random draw; processes that read images.
    scale : "full" or "small"
        Small is for tests: it keeps the path and gives up the paper's sizes.
    progress : bool or callable, optional
        As in ``jacobian_rank``.

    Raises
    ------
    UsageError
        For unknown names, and options that cannot be used or that ``name`` has no use for; without ``imagenet`` where
        it is needed.
    DataError, ModelError
        For a folder of another layout, missing classes, weights that are missing or do not fit.
    OutputError
        When ``out`` cannot be written, or holds parts of other settings.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = reproduce("fig1e", out=folder, scale="small")
    >>> found.comparison[0].quantity, found.comparison[0].ours
    ('Jacobian rank at layer 1', 60.0)
    """
    if name not in EXPERIMENTS:
        raise UsageError(f"there is no {name!r} to reproduce; {nearest(name, [*EXPERIMENTS, 'all'])}")
    folder = Path(out) if out is not None else Path("runs/reproduce") / name
    options: dict[str, Any] = {
        "as_printed": as_printed,
        "imagenet": imagenet,
        "weights": weights,
        "networks": networks,
        "only": only,
        "images": images,
        "patch": patch,
        "limit": limit,
        "device": device,
        "seed": seed,
        "scale": scale,
        "num_workers": num_workers,
    }
    for given, why in EXPERIMENTS[name].unused.items():
        if options[given] is not None and (given != "networks" or networks):
            raise UsageError(f"{name} has no use for {parameter(given)}: {why}; leave it out")
    return _run([name], folder, folder, options, progress)[name]


def reproduce_all(
    *, out: str | Path | None = None, progress: bool | Progress | None = None, **options: Any
) -> dict[str, Reproduction]:
    """Every figure and table, each in its own folder of ``out``; what they share is measured once.

    Options are those of ``reproduce``. Figures of whose networks ``only`` names none are left out.

    Raises
    ------
    RankscopeError
        What ``reproduce`` raises, before any work where the options alone tell.
    PartlyDoneError
        After the last experiment, where any failed: it holds the records of the others.
    """
    folder = Path(out) if out is not None else Path("runs/reproduce/all")
    defaults: dict[str, Any] = {
        "as_printed": "paper",
        "imagenet": None,
        "weights": None,
        "networks": (),
        "only": None,
        "images": None,
        "patch": None,
        "limit": None,
        "device": "auto",
        "seed": 0,
        "scale": "full",
        "num_workers": 0,
    }
    for given in options:
        if given not in defaults:
            raise UsageError(f"reproduce_all has no option {given!r}; {nearest(given, defaults)}")
    return _run(list(EXPERIMENTS), folder, None, {**defaults, **options}, progress)


def _run(
    names: list[str], root: Path, single: Path | None, options: dict[str, Any], progress: bool | Progress | None
) -> dict[str, Reproduction]:
    report = progress_for(progress, "reproduce")
    try:
        settings = Settings.of(**options, parts=root / "parts", report=report)
        if any(EXPERIMENTS[name].data for name in names):
            check_counts(settings, _class_folders(settings, names[0] if single else "all"), names)
        todo = _with_networks(names, settings, single is None)
        with FolderLock(root, lend=True):
            found: dict[str, Reproduction] = {}
            failed: dict[str, str] = {}
            cause: Exception | None = None
            for number, name in enumerate(todo, 1):
                report.say(f"{name} ({number} of {len(todo)}): {EXPERIMENTS[name].shows}")
                try:
                    done = EXPERIMENTS[name].run(name, settings)
                    done.save(root / name if single is None else single)
                    found[name] = done
                except Exception as error:
                    told = _told(error, name, settings)
                    if single is not None:
                        raise
                    failed[name], cause = told, cause or error
                    report.say(f"failed: {RankscopeError(told)}")
                finally:
                    settings.place.network = None
        if single is None:
            report.say(f"finished: {', '.join(found) or 'none'}")
            for name in names:
                if name not in todo:
                    report.say(f"skipped: {name}, since none of its networks was asked for")
        if failed:
            raise PartlyDoneError(found, failed) from cause
        return found
    finally:
        report.close()


def _with_networks(names: list[str], settings: Settings, several: bool) -> list[str]:
    """Those of the experiments that have networks; of several the others are left out, a single one is refused.

    Nothing has been measured yet: what is missing of the weights is told here too.
    """
    todo = []
    for name in names:
        experiment = EXPERIMENTS[name]
        if not experiment.data:
            todo.append(name)
        elif not several:
            try:
                choose(settings, experiment.networks)
            except RankscopeError as error:
                _told(error, name, settings)
                raise
            todo.append(name)
        elif participants(settings, experiment.networks):
            todo.append(name)
        else:
            shown = ", ".join(experiment.networks or ("the paper's six"))
            settings.report.say(f"{name} is skipped: none of its networks ({shown}) was asked for, and none was added")
    if several and participants(settings):
        choose(settings)  # every file that is missing at once
    return todo


def _class_folders(settings: Settings, name: str) -> ClassFolders:
    """The images; without them the error names the experiments that need none."""
    try:
        return read_class_folders(settings.imagenet)
    except UsageError as error:
        free = ", ".join(n for n, experiment in EXPERIMENTS.items() if not experiment.data)
        raise UsageError(f"{name}: {error.marked}; {free} need no data") from None


def _told(error: Exception, name: str, settings: Settings) -> str:
    """What went wrong, with the experiment and network in front; an error of ours carries it from now on."""
    where = name if settings.place.network is None else f"{name}, {settings.place.network}"
    if not isinstance(error, RankscopeError):
        return f"{where}: unexpected {type_and_line(error)}"
    error.args = (f"{where}: {error.marked}",)
    return error.marked
