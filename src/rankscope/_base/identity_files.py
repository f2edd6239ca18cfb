"""Digests of files: a text that names a file stands for its content too."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rankscope._base.files import digest_of_file

__all__ = ["FileDigests"]


class FileDigests:
    """Contents by name, each read once."""

    def __init__(self) -> None:
        super().__init__()
        self._contents: dict[str, bytes] = {}

    def _content(self, text: str) -> bytes:
        """Digest of the file that a text names; nothing where it names none."""
        if not 0 < len(text) < 4096 or "\0" in text or ("/" not in text and "." not in text and os.sep not in text):
            return b""
        if text not in self._contents:
            self._contents[text] = self.hashed(text) if os.path.isfile(text) else b""
        return self._contents[text]

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
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            list(pool.map(self._content, texts))
