"""Several processes that share one call, inside an initialised process group of ``torch.distributed``.

What is to be done is claimed unit by unit, and what is done is sent to the first process, through the store of the
group. No collective operation is used: who waits in one for a process that has ended waits for its timeout.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

import psutil
import torch.distributed as dist

from rankscope._base.checks import choice_of
from rankscope._base.errors import (
    ProcessError,
    RankscopeError,
    UsageError,
    first_line,
    lack_of_memory,
    parameter,
    type_and_line,
)
from rankscope._base.process_store import SharedStore
from rankscope._base.world import group_size, world_size

__all__ = ["Processes", "Several", "Team", "several", "team", "team_for", "together"]

P = ParamSpec("P")
R = TypeVar("R")
Processes: TypeAlias = Literal["all", "this"]

_POLL, _LISTEN = 0.02, 0.1  # seconds between two looks at the store, of who waits and of the thread
_JOIN = 600.0  # seconds in which every process has to make the call: loading a model may take minutes
_BEAT, _SILENT = 5.0, 120.0  # seconds: a process of another machine has ended where its beat stands still
_PARTING = 5.0  # seconds that a failing first process waits for the others to read why
_INTERRUPTED = 130  # exit code of an interrupt that has been put into words
_NUMBER = itertools.count()


class Team:
    """The processes that share a call: here this one alone, which does everything."""

    rank, size = 0, 1

    @property
    def writes(self) -> bool:
        """Whether this process writes, reports progress, and makes the result."""
        return self.rank == 0

    def least(self, name: str, value: int) -> int:
        """The smallest of what the processes bring."""
        return value

    def same(self, result: R) -> R:
        """What the first process returns, for the others to return too (``result``)."""
        return result

    def result(self) -> Any:
        """What the first process returns."""
        raise AssertionError("a process alone makes its result itself")


class Several(Team):
    """The processes of an initialised group, in one call that all of them make.

    ``send`` is for all but the first, whose thread gives what comes to ``arrived``, so that it is on disk also while
    the first process is at work.
    """

    def __init__(self, store: Any, rank: int, size: int, call: str, parent: Several | None = None) -> None:
        self.rank, self.size, self.call, self.parent = rank, size, call, parent
        self._store = SharedStore(store, f"rankscope/{next(_NUMBER)}")
        self._there: dict[int, tuple[str, int, str]] = {}
        self._beats: dict[int, tuple[int, float]] = {}
        self._parted: set[int] = set()
        self._receiver: Callable[[int, Any], None] | None = None
        self._receiving = threading.Lock()
        self._refused: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._accompany, name="rankscope processes", daemon=True)

    def join(self) -> None:
        """Wait until every process has made the call."""
        self._store.put(f"here/{self.rank}", (_machine(), os.getpid(), self.call))
        self._thread.start()
        until = time.monotonic() + _JOIN
        for rank in range(self.size):
            while not self._store.has(f"here/{rank}"):
                if time.monotonic() > until:
                    raise ProcessError(
                        f"process {rank} of {self.size} has not called {self.call} within {_JOIN:.0f} s; let every "
                        f"process of the group call it, or give {parameter('processes', 'this')}"
                    )
                self._pause()
            self._there[rank] = self._store.get(f"here/{rank}")
            other = self._there[rank][2]
            if other != self.call:
                raise UsageError(
                    f"process {rank} calls {other} while process {self.rank} calls {self.call}; let every process of "
                    f"the group make the same calls, or give {parameter('processes', 'this')}"
                )

    def agree(self, **given: str) -> None:
        """All processes must bring the same texts; ``UsageError`` names what differs."""
        self._store.put(f"given/{self.rank}", given)
        for rank in range(self.size):
            theirs = self.wait(f"given/{rank}")
            for name in sorted({*given, *theirs}):
                if given.get(name) != theirs.get(name):
                    first, second = sorted((rank, self.rank))
                    raise UsageError(
                        f"the {name.replace('_', ' ')} of process {first} differs from that of process {second}; give "
                        f"every process the same, or give {parameter('processes', 'this')}"
                    )

    @staticmethod
    def comparable(key: str, unreadable: Sequence[str], owner: str) -> str:
        """The key of an object that every process has to bring alike; ``UsageError`` where that cannot be seen."""
        if unreadable:
            raise UsageError(
                f"the {owner} holds objects that cannot be compared between processes ({', '.join(unreadable)}); give "
                f"{parameter('processes', 'this')} to do everything in each process"
            )
        return key

    def least(self, name: str, value: int) -> int:
        self._store.put(f"least/{name}/{self.rank}", value)
        return min(int(self.wait(f"least/{name}/{rank}")) for rank in range(self.size))

    def claim(self, unit: str) -> bool:
        """Whether this process is the first to ask for a unit of work, which is then its own."""
        return self._store.add(f"claim/{unit}") == 1

    def publish(self, key: str, value: Any) -> None:
        """Let every process know a value."""
        self._store.put(f"known/{key}", value)

    def published(self, key: str) -> bool:
        return self._store.has(f"known/{key}")

    def known(self, key: str) -> Any:
        """What was published, once it is."""
        return self.wait(f"known/{key}")

    def wait(self, key: str) -> Any:
        self.until(lambda: self._store.has(key))
        return self._store.get(key)

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for something, as long as all processes are there."""
        while not done():
            try:
                self._pause()
            except ProcessError:
                if not done():  # it may have come just before the other process ended
                    raise

    def _pause(self) -> None:
        self.check()
        time.sleep(_POLL)

    def send(self, value: Any) -> None:
        """To the first process."""
        self.until(lambda: self._store.send(self.rank, value))

    def listen(self, arrived: Callable[[int, Any], None]) -> None:
        """From now on the thread hands what the other processes send to ``arrived``, with their number."""
        self._receiver = arrived

    def receive(self) -> None:
        """Hand on what has come, now; raises what ``arrived`` raised."""
        with self._receiving:
            if self._refused is None and self._receiver is not None:
                try:
                    for rank in range(1, self.size):
                        for value in self._store.receive(rank):
                            self._receiver(rank, value)
                except BaseException as error:
                    self._refused = error
            if self._refused is not None:
                raise self._refused

    def _accompany(self) -> None:
        """In a thread: a beat that says that this process lives, and what the others send."""
        count, latest = 0, 0.0
        with contextlib.suppress(BaseException):  # `check` raises it in the caller's thread
            while not self._over.wait(_LISTEN):
                if time.monotonic() - latest > _BEAT:
                    count, latest = count + 1, time.monotonic()
                    self._store.put(f"beat/{self.rank}", count)
                if self.writes:
                    self.receive()

    def check(self) -> None:
        """Raise what ends the call: an error of another process, or its end."""
        if self.parent is not None:
            self.parent.check()
        if self._refused is not None:
            raise self._refused
        why = self.blame()
        if why is not None:
            raise why

    def blame(self) -> BaseException | None:
        """What another process said before it ended, or that one has ended without a word."""
        for _ in range(2):  # one that has ended may have said why since the first look
            if self._store.has("failure"):
                rank, interrupted, text = self._store.get("failure")
                if rank == self.rank:
                    return None
                return KeyboardInterrupt() if interrupted else ProcessError(text)
            ended = [rank for rank in self._there if self.ended(rank)]
            if not ended:
                return None
        number = self._there[ended[0]][1]
        return ProcessError(
            f"process {ended[0]} (number {number} of the system) ended without a message; it may have been killed"
        )

    def ended(self, rank: int) -> bool:
        """Whether a process is gone that has not left the call."""
        if rank == self.rank or rank in self._parted:
            return False
        machine, number, _ = self._there[rank]
        if machine == _machine():
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(number).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    return False
        elif not self._silent(rank):
            return False
        if self.has_parted(rank):
            self._parted.add(rank)
        return rank not in self._parted

    def _silent(self, rank: int) -> bool:
        beat = self._store.get(f"beat/{rank}") if self._store.has(f"beat/{rank}") else 0
        known, since = self._beats.get(rank, (-1, 0.0))
        if beat != known:
            self._beats[rank] = beat, time.monotonic()
            return False
        return time.monotonic() - since > _SILENT

    def same(self, result: R) -> R:
        self._store.put("result", result)
        return result

    def result(self) -> Any:
        return self.wait("result")

    def fail(self, error: BaseException) -> None:
        """Tell the other processes why this one ends."""
        interrupted = isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", 1) == _INTERRUPTED
        text, lack = type_and_line(error), lack_of_memory(error)
        if isinstance(error, RankscopeError):
            text = error.marked
        elif lack is not None:
            text = f"out of memory ({first_line(lack)})"
        if not isinstance(error, ProcessError):  # which names the process that it is about
            text = f"process {self.rank}: {text}"
        with contextlib.suppress(ProcessError):
            if self._store.add("failed") == 1:
                self._store.put("failure", (self.rank, interrupted, text))

    def has_parted(self, rank: int) -> bool:
        """Whether a process has left the call."""
        return self._store.has(f"parted/{rank}")

    def part(self, *, patience: float | None = None) -> None:
        """This process has all that it needs. The first, which may hold the store, leaves last."""
        self._over.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._store.put(f"parted/{self.rank}", True)
        until = None if patience is None else time.monotonic() + patience
        if self.writes:
            for rank in range(1, self.size):
                while not self.has_parted(rank):
                    if until is not None and (time.monotonic() > until or (rank in self._there and self.ended(rank))):
                        break
                    if until is None:
                        self.check()
                    time.sleep(_POLL)


_TEAM: ContextVar[Team] = ContextVar("_TEAM", default=Team())  # noqa: B039 - it has no state


def team() -> Team:
    """The processes that share the call under way."""
    return _TEAM.get()


def several() -> Several | None:
    """The same where they are several."""
    found = _TEAM.get()
    return found if isinstance(found, Several) else None


@contextlib.contextmanager
def team_for(call: str, processes: str = "all") -> Iterator[Team]:
    """Inside, the processes of the initialised group share what ``call`` names; an error of one reaches all.

    Raises
    ------
    UsageError
        For ``WORLD_SIZE`` above one without a group, and processes that make different calls.
    ProcessError
        When another process fails, ends, or does not make the call.
    """
    found = _several(call, choice_of(processes, "processes", ("all", "this")))
    if found is None:
        token = _TEAM.set(Team())
        try:
            yield _TEAM.get()
        finally:
            _TEAM.reset(token)
        return
    token = _TEAM.set(found)
    try:
        found.join()
        yield found
        found.part()
    except BaseException as error:
        own: BaseException = error
        if isinstance(error, KeyboardInterrupt):
            # the signal may be the launcher's, which ends all processes when one of them has ended
            with contextlib.suppress(ProcessError):
                own = found.blame() or error
        found.fail(own)
        with contextlib.suppress(Exception):
            found.part(patience=_PARTING)
        if own is error:
            raise
        raise own from None
    finally:
        _TEAM.reset(token)


def together(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function with an option ``processes`` that all processes of a group call alike.

    Inside, ``team()`` are the processes.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        with team_for(function.__name__, str(options.get("processes", "all"))):
            return function(*args, **options)

    return run


def _several(call: str, processes: str) -> Several | None:
    if processes == "this":
        return None
    size = group_size()
    if size is None:
        wanted = world_size()
        if wanted > 1:
            raise UsageError(
                f"WORLD_SIZE is {wanted}, but torch.distributed has no process group; call "
                "torch.distributed.init_process_group() first, or give "
                f"{parameter('processes', 'this')} to do everything in this process"
            )
        return None
    if size == 1:
        return None
    return Several(dist.distributed_c10d._get_default_store(), dist.get_rank(), size, call, several())


@functools.cache
def _machine() -> str:
    """What processes that can see each other's numbers have in common."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{platform.node()} {space}"
