"""Numbers of checkpoints that were measured before, kept by what they depend on: the network whole, data, settings."""

from __future__ import annotations

from pathlib import Path

from rankscope._base.encoding import exact, read
from rankscope._base.errors import OutputError, RankscopeError
from rankscope._base.files import digest_of_bytes, make_folder
from rankscope._base.json_files import read_json, write_json
from rankscope.monitor.watch_measures import Measured

__all__ = ["MeasuredStore"]

_KIND = "watched_checkpoint"


class MeasuredStore:
    """One file per network in ``folder``; what is damaged or of another question counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0

    def get(self, key: str) -> Measured | None:
        """What was kept under this key."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            found = read_json(path, version=1, kind=_KIND)
            made: Measured = read(Measured, found["measured"])
            if found["key"] != key:
                raise ValueError("the key of another network")
        except (OutputError, KeyError, TypeError, ValueError, AttributeError, RankscopeError):
            self.damaged += 1
            return None
        return made

    def put(self, key: str, measured: Measured) -> None:
        """Keep it, whole or not at all."""
        make_folder(self.folder)
        write_json(self._path(key), {"schema_version": 1, "kind": _KIND, "key": key, "measured": exact(measured)})

    def clear(self) -> None:
        """Forget everything."""
        for path in self.folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{digest_of_bytes(key)}.json"
