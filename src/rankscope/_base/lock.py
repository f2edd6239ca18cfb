"""A lock that keeps two runs out of one folder. The operating system releases that of a process that died."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import threading
from contextvars import ContextVar, Token
from pathlib import Path
from types import ModuleType, TracebackType

from rankscope._base.errors import OutputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no POSIX: a file that exists is the lock
    fcntl = None

__all__ = ["HELD", "NO_LOCKS", "FolderLock"]

HELD = (errno.EACCES, errno.EAGAIN)
"""What a system says of a file that another process has locked."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What it says on a file system without locks."""

_NAME = ".rankscope-lock"
_TRIES = 10
_HELD: set[tuple[int, str]] = set()  # (process, folder): a POSIX lock does not keep out its own process
_LENT: ContextVar[frozenset[tuple[int, str]]] = ContextVar("_LENT", default=frozenset())
_GUARD = threading.Lock()


class FolderLock:
    """``with FolderLock(folder):`` makes the folder, and raises ``OutputError`` where another run uses it.

    A folder that it made and that an error left empty is removed again. Inside, half-written files that an earlier run
    left behind are gone. A process that forks does not pass the lock on.
    With ``lend`` what is called inside may lock the folder again, in the same thread alone.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, FolderLock(folder):
    ...     try:
    ...         FolderLock(folder).__enter__()
    ...     except OutputError as error:
    ...         print(str(error).replace(folder, "FOLDER").replace(str(os.getpid()), "PID"))
    'FOLDER' is in use by another run (process PID); wait until it ends, or choose another output folder
    """

    def __init__(self, folder: str | Path, *, lend: bool = False) -> None:
        self.folder = Path(folder)
        self._lend = lend
        self._lent: Token[frozenset[tuple[int, str]]] | None = None
        self._file: int | None = None
        self._path = self.folder / _NAME
        self._key = (0, "")
        self._made: list[Path] = []  # innermost first

    def __enter__(self) -> FolderLock:
        try:
            self._make()
            self._key = (os.getpid(), str(self.folder.resolve()))
            if self._key in _LENT.get():
                return self
            with _GUARD:
                if self._key in _HELD:
                    raise self._in_use(f"process {os.getpid()}")
                locked = self._locked()
                if locked is None:
                    raise self._in_use(_owner(self.folder / _NAME))
                self._file, self._path = locked
                _HELD.add(self._key)
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {platform.node()}\n".encode())
        except OSError as error:
            self.__exit__(None, None, None)
            raise OutputError(
                f"cannot write into {str(self.folder)!r}: {error.strerror or error}; choose another output folder"
            ) from error
        if self._lend:
            self._lent = _LENT.set(_LENT.get() | {self._key})
        for part in self.folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                part.unlink()
        return self

    def _make(self) -> None:
        parts = [self.folder, *self.folder.parents]
        self._made += [part for part in parts if not part.exists() and part not in self._made]
        self.folder.mkdir(parents=True, exist_ok=True)

    def _locked(self) -> tuple[int, Path] | None:
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # a run that failed has just removed the folder that it made
                return _locked(self.folder / _NAME)
            self._make()
        return _locked(self.folder / _NAME)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or self._key[0] != os.getpid():
            return
        if self._lent is not None:
            _LENT.reset(self._lent)
            self._lent = None
        with _GUARD:
            with contextlib.suppress(OSError):
                self._path.unlink()  # before it is released: who opened it meanwhile sees that it is gone
            os.close(self._file)
            self._file = None
            _HELD.discard(self._key)
        if error is not None:
            with contextlib.suppress(OSError):  # not empty
                for part in self._made:
                    part.rmdir()

    def _in_use(self, who: str) -> OutputError:
        return OutputError(
            f"{str(self.folder)!r} is in use by another run ({who}); wait until it ends, or choose another output "
            "folder"
        )


def _locked(path: Path) -> tuple[int, Path] | None:
    """The open lock file, or ``None`` where another process holds it."""
    if fcntl is None:
        return _created(path)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in HELD:
                return None
            if error.errno in NO_LOCKS:
                return _created(path)  # a file system without locks
            raise
        # between opening and locking, the run before may have removed the file that was opened
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file, path
        os.close(file)


def _created(path: Path) -> tuple[int, Path] | None:
    """The same where the system has no locks: who creates the file holds the lock, until its process is gone."""
    import psutil

    beside = path.with_name(f"{path.name}-file")
    for _ in range(2):
        try:
            return os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), beside
        except FileExistsError:
            process, here = _process(beside)
            if not here or process is None or psutil.pid_exists(process):
                return None
            with contextlib.suppress(OSError):
                beside.unlink()
    return None


def _process(path: Path) -> tuple[int | None, bool]:
    """The process that a lock file names, and whether it runs on this machine."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = path.read_text(errors="replace").split()
        return int(words[1]), " ".join(words[3:]) == platform.node()
    return None, False


def _owner(path: Path) -> str:
    for one in (path, path.with_name(f"{path.name}-file")):
        process, here = _process(one)
        if process is not None:
            return f"process {process}" if here else f"process {process} on another machine"
    return "another process"
