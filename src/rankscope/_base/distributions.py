"""Which files an installer put beside the record of a distribution, in whatever folder or archive it did so."""

from __future__ import annotations

import os
import re
import sys
import zipfile
from functools import lru_cache
from importlib import metadata
from pathlib import PurePath

__all__ = ["distribution_of"]


def distribution_of(file: str) -> str | None:
    """Name and version of the distribution whose record has the file; ``None`` for a file that nobody installed.

    Looked for in what Python imports from: folders and archives, whatever their names. What was installed so that it
    may be edited where it is (``pip install --editable``) has no record beside it, so that its code counts as written.
    """
    path = os.path.abspath(file)
    known = _entries((*sys.path, *sys.path_importer_cache))
    for above in PurePath(path).parents:
        if str(above) in known:
            name = _installed_below(str(above)).get(PurePath(path).relative_to(above).as_posix())
            if name is not None:
                return name
            top = PurePath(path).relative_to(above).parts[0]
            name = _unlisted_below(str(above)).get(top.partition(".")[0])
            if name is not None:
                return name
    return None


@lru_cache(maxsize=8)
def _entries(paths: tuple[str, ...]) -> frozenset[str]:
    return frozenset(os.path.abspath(path) for path in paths if isinstance(path, str))


@lru_cache(maxsize=256)
def _below(entry: str) -> tuple[tuple[str, tuple[str, ...] | None, tuple[str, ...]], ...]:
    """Every distribution that was installed into a folder or archive: its name, its files if listed, its modules."""
    if not (os.path.isdir(entry) or zipfile.is_zipfile(entry)):
        return ()
    found = []
    for one in metadata.distributions(path=[entry]):
        name = one.metadata["Name"]
        if not name or not _is_installed(one):
            continue
        record = one.read_text("RECORD")
        if record:  # read here, for the one of the standard library takes seconds for a large package
            files: tuple[str, ...] | None = tuple(line.rsplit(",", 2)[0].strip('"') for line in record.splitlines())
        else:
            listed = one.read_text("installed-files.txt") is not None
            files = tuple(PurePath(f).as_posix() for f in one.files or ()) if listed else None
        modules = (one.read_text("top_level.txt") or re.sub("[-.]", "_", name)).split()
        found.append((f"{name} {one.version}", files, tuple(modules)))
    return tuple(found)


def _is_installed(one: metadata.Distribution) -> bool:
    """A build leaves ``name.egg-info`` beside the sources that are still worked on; an installed one has a version."""
    folder = str(getattr(one, "_path", ""))
    base = PurePath(folder).name
    if base.endswith(".egg-info"):
        return "-" in base.removesuffix(".egg-info") or one.read_text("installed-files.txt") is not None
    return True


@lru_cache(maxsize=256)
def _installed_below(entry: str) -> dict[str, str]:
    return {file: name for name, files, _ in _below(entry) for file in files or ()}


@lru_cache(maxsize=256)
def _unlisted_below(entry: str) -> dict[str, str]:
    """Modules of distributions that have no list of their files."""
    return {module: name for name, files, modules in _below(entry) if files is None for module in modules}
