"""Values of any size in the key-value store of a process group, and the messages of one process to the first."""

from __future__ import annotations

import pickle
from typing import Any

import torch.distributed as dist

from rankscope._base.errors import ProcessError

__all__ = ["SharedStore"]

_CHUNK = 4 << 20  # torch's TCP store refuses values of more than 8 MiB
_UNREAD = 4  # messages of one process that may wait, so that the store does not fill the memory of its host


class SharedStore:
    """One prefix of the group's store. Nothing here waits for a key: whoever waits looks at the other processes too.

    Raises ``ProcessError`` when the process that holds the store has ended.

    >>> store = SharedStore(dist.HashStore(), "doctest")
    >>> store.put("pair", (1, b"x" * 9_000_000))
    >>> store.has("pair"), store.get("pair")[0], store.add("claimed"), store.add("claimed")
    (True, 1, 1, 2)
    """

    def __init__(self, store: Any, prefix: str) -> None:
        self._store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        self._sent = 0
        self._read: dict[int, int] = {}

    def put(self, key: str, value: Any) -> None:
        """Set a value, in parts; it is there for others once all of it is."""
        content = pickle.dumps(value, protocol=5)
        parts = range(0, max(len(content), 1), _CHUNK)
        for number, start in enumerate(parts):
            self._do("set", f"{key}/part/{number}", content[start : start + _CHUNK])
        self._do("set", key, str(len(parts)))

    def get(self, key: str, *, last: bool = False) -> Any:
        """A value that is there; with ``last`` it is removed, as nobody else reads it."""
        count = int(self._do("get", key))
        parts = [f"{key}/part/{number}" for number in range(count)]
        content = b"".join(self._do("get", part) for part in parts)
        for name in (key, *parts) if last else ():
            self._do("delete_key", name)
        return pickle.loads(content)  # of a process of the same program, as in torch's own object collectives

    def has(self, key: str) -> bool:
        return bool(self._do("check", [key]))

    def add(self, key: str) -> int:
        """Count up; who gets 1 was the first."""
        return int(self._do("add", key, 1))

    def send(self, rank: int, value: Any) -> bool:
        """One message of process ``rank`` to the first process; ``False``, and nothing done, where too many wait."""
        if self._sent >= _UNREAD and self.has(f"message/{rank}/{self._sent - _UNREAD}"):
            return False
        self.put(f"message/{rank}/{self._sent}", value)
        self._sent += 1
        return True

    def receive(self, rank: int) -> list[Any]:
        """The messages of process ``rank`` that have come, in order."""
        found = []
        while self.has(key := f"message/{rank}/{self._read.get(rank, 0)}"):
            found.append(self.get(key, last=True))
            self._read[rank] = self._read.get(rank, 0) + 1
        return found

    def _do(self, operation: str, *values: Any) -> Any:
        try:
            return getattr(self._store, operation)(*values)
        except dist.DistError as error:
            raise ProcessError("the process that holds the store of the process group has ended") from error
