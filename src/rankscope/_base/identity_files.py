"""Digests of files: a text that names a file stands for its content too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rankscope._base.digests import node, text
from rankscope._base.files import digest_of_file
from rankscope._base.identity_folders import files_below

__all__ = ["FileDigests"]

_PIECE = 64


class FileDigests:
    """Contents by name, each read once."""

    def __init__(self) -> None:
        super().__init__()
        self._contents: dict[str, bytes] = {}
        self._texts: set[str] = set()

    def _content(self, named: str) -> bytes:
        """Digest of the file that a text names; nothing where it names none."""
        self._texts.add(named)
        if not 0 < len(named) < 4096 or "\0" in named or not {"/", ".", os.sep} & set(named):
            return b""
        if named not in self._contents:
            self._contents[named] = self.hashed(named) if os.path.isfile(named) else b""
        return self._contents[named]

    def below(self) -> bytes:
        """Digest of the files that the texts name below the folders that they name; nothing where there are none."""
        files = files_below(self._texts)
        if not files:
            return b""
        contents = _several(self.hashed, files)
        return node("files below", *(part for pair in zip(map(text, files), contents, strict=True) for part in pair))

    @staticmethod
    def hashed(file: str) -> bytes:
        try:
            return digest_of_file(file).encode()
        except OSError:
            return b"unreadable"  # met, named and skipped where it is used

    def _read_ahead(self, values: Iterable[Any]) -> None:
        """Digest the files that a long list names, several at once."""
        texts = {
            one
            for value in values
            for one in (value if isinstance(value, tuple | list) else (value,))
            if isinstance(one, str)
        }
        _several(self._content, list(texts))


def _several(make: Callable[[str], bytes], names: list[str]) -> list[bytes]:
    """A digest for each name, several at once; in pieces, for a task of its own takes longer than most answers."""
    pieces = [names[at : at + _PIECE] for at in range(0, len(names), _PIECE)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return [one for piece in pool.map(lambda piece: list(map(make, piece)), pieces) for one in piece]
