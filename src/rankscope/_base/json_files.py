"""JSON files that carry a checksum of what they say, so that a number changed in one is no other result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankscope._base.errors import OutputError
from rankscope._base.files import CHECKSUM, damaged, digest_of_bytes, unreadable, write_whole
from rankscope._base.provenance import versions

__all__ = ["json_text", "read_json", "write_json"]


def json_text(value: Mapping[str, Any], *, ensure_ascii: bool = True) -> str:
    """The value as JSON, and under ``checksum`` a digest of what it says, whatever its layout.

    >>> print(json_text({"rank": 3}))
    {
     "rank": 3,
     "checksum": "997c33620458b12078ec88d8f4067bd4"
    }
    """
    text = json.dumps(value, allow_nan=False)
    whole = {**value, CHECKSUM: _digest(json.loads(text))}
    return json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=ensure_ascii)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``json_text`` whole or not at all.

    Raises
    ------
    OutputError
        When it cannot be written; what was there before is untouched.
    """
    write_whole(path, json_text(value) + "\n")


def read_json(path: Path, *, version: int | None = None, kind: str | None = None) -> Any:
    """The value a JSON file holds, without its checksum. A file of an earlier version has none.

    Raises
    ------
    OutputError
        When the file is missing, no JSON, of another ``schema_version`` or ``kind`` than those asked for, or says
        something else than its checksum does.
    """
    try:
        found = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise OutputError(f"{str(path)!r} cannot be read (it is no JSON)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    about = found if isinstance(found, dict) else {}
    stored = about.get("schema_version"), about.get("kind")
    # first, for another version may have another checksum
    if version is not None and stored != (version, kind):
        raise OutputError(
            f"{str(path)!r} has schema_version {stored[0]!r} and kind {stored[1]!r}; this version reads "
            f"{version!r} and {kind!r}{_versions(about)}"
        )
    if not isinstance(found, dict) or CHECKSUM not in found:
        return found
    kept = found.pop(CHECKSUM)
    if kept != _digest(found):
        raise damaged(path)
    return found


def _versions(about: Mapping[str, Any]) -> str:
    """Which versions wrote the file and read it, where the file says: records keep them in one of three places."""
    record = about.get("record", about)
    record = record if isinstance(record, dict) else {}
    provenance = record.get("provenance")
    homes = [record.get("versions"), provenance, provenance.get("versions") if isinstance(provenance, dict) else None]
    theirs = [home["rankscope"] for home in homes if isinstance(home, dict) and isinstance(home.get("rankscope"), str)]
    ours = versions().get("rankscope", "not installed")
    return f" (rankscope {theirs[0]} wrote it, this one is {ours})" if theirs else ""


def _digest(value: Any) -> str:
    return digest_of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")))
