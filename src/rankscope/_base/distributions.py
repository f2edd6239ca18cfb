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
            files, modules = _below(str(above))
            below = PurePath(path).relative_to(above)
            name = files.get(below.as_posix()) or modules.get(below.parts[0].partition(".")[0])
            if name is not None:
                return name
    return None


@lru_cache(maxsize=8)
def _entries(paths: tuple[str, ...]) -> frozenset[str]:
    return frozenset(os.path.abspath(path) for path in paths if isinstance(path, str))


@lru_cache(maxsize=256)
def _below(entry: str) -> tuple[dict[str, str], dict[str, str]]:
    """Files that were installed into a folder or archive, and modules of distributions that list no files."""
    files: dict[str, str] = {}
    modules: dict[str, str] = {}
    if not (os.path.isdir(entry) or zipfile.is_zipfile(entry)):
        return files, modules
    for one in metadata.distributions(path=[entry]):
        about = one.metadata  # read anew each time it is asked for
        if not about["Name"] or not _is_installed(one):
            continue
        whole = f"{about['Name']} {about['Version']}"
        record = one.read_text("RECORD")
        if record:  # read here, for the one of the standard library takes seconds for a large package
            listed = [line.rsplit(",", 2)[0].strip('"') for line in record.splitlines()]
        elif one.read_text("installed-files.txt") is not None:
            listed = [PurePath(f).as_posix() for f in one.files or ()]
        else:
            top = one.read_text("top_level.txt") or re.sub("[-.]", "_", about["Name"])
            modules.update(dict.fromkeys(top.split(), whole))
            continue
        files.update(dict.fromkeys(listed, whole))
    return files, modules


def _is_installed(one: metadata.Distribution) -> bool:
    """A build leaves ``name.egg-info`` beside the sources that are still worked on; an installed one has a version."""
    folder = str(getattr(one, "_path", ""))
    base = PurePath(folder).name
    if base.endswith(".egg-info"):
        return "-" in base.removesuffix(".egg-info") or one.read_text("installed-files.txt") is not None
    return True
