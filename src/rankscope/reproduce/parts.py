"""Measurements kept as they finish, so that a run that is started again only does what is missing.

A part is a folder with ``settings.json``, written before the work starts, and ``result.json``, written when it is done;
what a measurement needs to go on in its middle (shards, spectra of single images) lies beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope._base.errors import OutputError, parameter
from rankscope._base.files import make_folder, write_whole
from rankscope._base.json_files import read_json, write_json

__all__ = ["Parts"]

_VALUE = "value"


@dataclass(frozen=True)
class Parts:
    """The parts below one folder."""

    root: Path

    def keep(self, key: str, settings: Mapping[str, Any], compute: Callable[[Path], Any]) -> Any:
        """The result of part ``key``: read if it is there, else computed in its folder and written.

        ``compute`` returns plain values for JSON. What is returned has always been through JSON, so that a run that
        was interrupted goes on with the very values it would have had.

        Raises
        ------
        OutputError
            When the folder holds the part of other settings (the first that differs is named), or damaged files.
        """
        folder = self.root / key
        wanted = json.loads(json.dumps(settings, allow_nan=False))
        made = folder / "settings.json"
        if made.exists():
            self._same(folder, _read(made), wanted)
        else:
            make_folder(folder)
            write_whole(made, json.dumps(wanted, indent=1) + "\n")
        result = folder / "result.json"
        if not result.exists():
            write_json(result, {_VALUE: compute(folder)})
        found = _read(result)
        # an earlier version wrote the value alone
        return found[_VALUE] if isinstance(found, dict) and found.keys() == {_VALUE} else found

    def _same(self, folder: Path, found: Any, wanted: dict[str, Any]) -> None:
        kept = found if isinstance(found, dict) else {}
        for name in (*wanted, *kept):
            if kept.get(name) != wanted.get(name):
                raise OutputError(
                    f"{folder} was measured with {name} {_short(kept.get(name))}, now {_short(wanted.get(name))}; give "
                    f"another {parameter('out')}, or delete that folder"
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except OutputError as error:
        raise OutputError(f"{error}; delete its folder and run again") from error
