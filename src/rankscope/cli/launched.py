"""A command in several processes that a launcher such as torchrun has started: one speaks, and all end together."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import ProcessError, UsageError, first_line
from rankscope._base.text import own_verb
from rankscope._base.world import world_size

if TYPE_CHECKING:
    from rankscope._base.processes import Several

__all__ = ["ToldElsewhereError", "launched"]

_COMMANDS = ("profile", "collect")
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_STAY = 2.0  # seconds that the first process stays for the others to see that it speaks
_PATIENCE = 25.0  # seconds until the first process has said what went wrong; a launcher kills the others after 30


class ToldElsewhereError(Exception):
    """The command fails, and the first process says why. ``code`` is this process's exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextlib.contextmanager
def launched(given: Sequence[str]) -> Iterator[None]:
    """Inside, the processes of the launcher share the work of the command; without one nothing changes.

    Only the first prints. An error, Ctrl-C or SIGTERM of one process ends all.
    """
    if world_size() == 1:
        yield
        return
    try:
        _check(given)
    except UsageError as error:  # which every process meets
        if os.environ.get("RANK", "0") == "0":
            raise
        raise ToldElsewhereError(error.exit_code) from error
    import torch.distributed as dist

    from rankscope._base.processes import Several, team_for

    own = not dist.is_initialized()
    if own:
        _begin()
    found: Several | None = None
    quiet = contextlib.ExitStack()
    try:
        with _ends_once(), team_for(f"rankscope {given[0]}") as team:
            assert isinstance(team, Several)
            found = team
            if not found.writes:
                nothing = quiet.enter_context(contextlib.closing(Path(os.devnull).open("w")))  # noqa: SIM115
                quiet.enter_context(contextlib.redirect_stdout(nothing))
                quiet.enter_context(contextlib.redirect_stderr(nothing))
            yield
    except BaseException as error:
        quiet.close()
        if found is not None and not found.writes and "--debug" in given:
            traceback.print_exception(error)
        if found is not None and found.writes:
            _let_others_hear(found)
        if found is not None and not found.writes and (_told(found) or found.rank > 1):
            code = 130 if isinstance(error, KeyboardInterrupt) else int(getattr(error, "exit_code", 1))
            raise ToldElsewhereError(code) from error
        raise
    finally:
        quiet.close()
        if own:
            with contextlib.suppress(Exception):
                dist.destroy_process_group()


def _check(given: Sequence[str]) -> None:
    if given[0] not in _COMMANDS and not {"--help", "--version"} & {*given}:
        raise UsageError(
            f"rankscope {given[0]} works in one process, and WORLD_SIZE is {world_size()}; several processes can share "
            f"{' and '.join(f'rankscope {name}' for name in _COMMANDS)}: start the others without a launcher"
        )
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(missing)} {own_verb(len(missing), 'be')} not set; "
            "start the command with torchrun, or unset WORLD_SIZE"
        )


def _begin() -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError("this torch has no torch.distributed; start the command without a launcher")
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo")
    except (RuntimeError, ValueError) as error:  # an address that nobody answers, a number that two processes have
        raise ProcessError(f"the processes do not find each other ({first_line(error)})") from error


@contextlib.contextmanager
def _ends_once() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work as one does; a second one must not stop the first from keeping results."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    except BaseException:
        # the launcher now ends all processes, this one too, which has yet to say why
        for number, _ in before:
            signal.signal(number, signal.SIG_IGN)
        raise
    for number, handler in before:
        signal.signal(number, handler)


def _let_others_hear(found: Several) -> None:
    """The first process may hold the store in which the others look whether it speaks: it stays until they have."""
    until = time.monotonic() + _STAY
    with contextlib.suppress(ProcessError):
        while time.monotonic() < until and not all(found.published(f"heard {rank}") for rank in range(1, found.size)):
            time.sleep(0.02)


def _told(found: Several) -> bool:
    """Whether the first process has heard of the failure, and so says it; where it is gone, the second does."""
    until = time.monotonic() + _PATIENCE
    with contextlib.suppress(ProcessError):
        while time.monotonic() < until and not found.ended(0):
            if found.has_parted(0):
                found.publish(f"heard {found.rank}", True)
                return True
            time.sleep(0.05)
        return found.has_parted(0)
    return False
