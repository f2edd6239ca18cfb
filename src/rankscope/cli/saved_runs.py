"""What ``compare`` reads from a path: a saved profile, what ``features`` or ``watch`` wrote, or a monitor's history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rankscope._base.errors import OutputError, UsageError
from rankscope._base.json_files import read_json
from rankscope._base.text import counted
from rankscope.features import FeatureProfile
from rankscope.jacobian import JacobianProfile
from rankscope.monitor.history import OF_TRAINERS, History, is_history
from rankscope.monitor.watched import WatchedRun, WatchedStep, WatchedValue
from rankscope.report.runs import SavedFeatures

__all__ = ["saved_run"]

_RESULTS = ("profile.json", "features.json", "watch.json", OF_TRAINERS)
_BROKEN = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def saved_run(path: Path) -> Any:
    """A run that ``rs.compare`` takes, from a file or from the one result in a folder.

    Raises
    ------
    OutputError
        For a path that does not exist, a folder without such a result, and a file that cannot be read.
    UsageError
        For a folder that holds several results.
    """
    if not path.exists():
        raise OutputError(f"{str(path)!r} does not exist; give a folder or file that a run has written")
    if path.is_dir():
        path = _result_in(path)
    return History(path, write=False).table() if path.suffix == ".jsonl" else _of_json(path)


def _result_in(folder: Path) -> Path:
    found = [folder / name for name in _RESULTS if (folder / name).exists()]
    found += [one for one in sorted(folder.glob("*.jsonl")) if one.name != OF_TRAINERS and is_history(one)]
    if not found:
        raise OutputError(
            f"{str(folder)!r} holds no run to compare; known are {', '.join(_RESULTS)} and other histories (.jsonl)"
        )
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise UsageError(
            f"{str(folder)!r} holds {counted(len(found), 'result')} ({names}); give the file to compare, such as "
            f"{str(found[0])!r}"
        )
    return found[0]


def _of_json(path: Path) -> Any:
    """By the kind that the file names: ``save`` wrote it, or the command whose result it is."""
    if path.name == "profile.json":
        return JacobianProfile.load(path)
    found = read_json(path)
    about = found if isinstance(found, dict) else {}
    kind, saved = about.get("kind"), "record" in about
    if kind == "jacobian_profile":
        return JacobianProfile.load(path)
    if kind == WatchedRun.kind_name():
        return WatchedRun.load(path) if saved else _made(path, about, _watched)
    if kind in ("feature_rank", "local_feature_rank") and not saved:
        return _made(path, about, _features)
    return FeatureProfile.load(path)


def _made(path: Path, about: dict[str, Any], make: Any) -> Any:
    if about.get("schema_version") != 1:
        version = about.get("schema_version")
        raise OutputError(f"{str(path)!r} has schema_version {version!r}; this version reads 1; measure again")
    try:
        return make(about)
    except _BROKEN as error:
        raise OutputError(f"the result in {str(path)!r} is damaged ({error!r}); measure again") from error


def _features(about: dict[str, Any]) -> SavedFeatures:
    model = about.get("model") or about["provenance"].get("model") or ""
    known = {**about["provenance"], "data": about.get("data")}
    return SavedFeatures(str(model), tuple(dict(row) for row in about["layers"]), str(about["kind"]), known)


def _watched(about: dict[str, Any]) -> WatchedRun:
    steps = tuple(
        WatchedStep(int(step["step"]), str(step["file"]), tuple(_value(value) for value in step["values"]))
        for step in about["steps"]
    )
    return WatchedRun(str(about["folder"]), str(about["unit"]), steps, provenance=dict(about.get("provenance", {})))


def _value(value: dict[str, Any]) -> WatchedValue:
    number, lower, upper = (
        float("nan") if value[name] is None else float(value[name]) for name in ("value", "lower", "upper")
    )
    return WatchedValue(str(value["layer"]), str(value["metric"]), number, lower, upper, int(value["samples"]))
