"""One exception tree. A message names the value seen and the remedy; the command line prints it in one line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "CutPointError",
    "DataError",
    "DeviceError",
    "GlyphWarning",
    "MeasurementError",
    "ModelError",
    "NotFetchedError",
    "NotInstalledError",
    "OutputError",
    "PartlyDoneError",
    "ProcessError",
    "RankscopeError",
    "UsageError",
    "closest",
    "first_line",
    "is_out_of_memory",
    "lack_of_memory",
    "nearest",
    "parameter",
    "raise_ours",
    "type_and_line",
]

# Private-use characters around a parameter in a message: whoever shows the message words it in the caller's terms.
_OPEN, _VALUE, _CLOSE = "\ue000", "\ue001", "\ue002"
_LONG = 200
_CPU_ALLOCATOR = "DefaultCPUAllocator"
_CUDA_MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation
_PARAMETER = re.compile(f"{_OPEN}([^{_VALUE}{_CLOSE}]+)(?:{_VALUE}([^{_CLOSE}]*))?{_CLOSE}")


class GlyphWarning(UserWarning):
    """A figure shows boxes, since no installed font has some letters."""


class RankscopeError(Exception):
    """Base of every error that rankscope raises on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 1

    @property
    def marked(self) -> str:
        """The message with its parameters still marked, for use inside the message of another error."""
        return super().__str__()

    def __str__(self) -> str:
        """The message in the terms of the library: ``device="cpu"``."""
        return self.worded(lambda name: None)

    def worded(self, option: Callable[[str], str | None]) -> str:
        """The message with every parameter under the name that ``option`` gives it, such as ``--device cpu``.

        >>> error = UsageError(f"there is no GPU; use {parameter('device', 'cpu')}")
        >>> str(error)
        'there is no GPU; use device="cpu"'
        >>> error.worded({"device": "--device"}.get)
        'there is no GPU; use --device cpu'
        >>> str(UsageError(f"{parameter('the width of init')} is 0"))  # a name of several words is one too
        'the width of init is 0'
        """

        def shown(match: re.Match[str]) -> str:
            name, value = match[1], match[2]
            flag = option(name)
            if flag is not None:
                return flag if value in (None, "True", "") else f"{flag} {value}"
            if value is None:
                return name
            bare = not value or value.isupper() or value in ("True", "False", "None") or value.isdigit()
            return f"{name}={value}" if bare else f'{name}="{value}"'

        return _PARAMETER.sub(shown, self.marked)


class UsageError(RankscopeError, ValueError):
    """An option or argument has a value that cannot be used."""

    exit_code = 2


class CutPointError(UsageError):
    """A requested layer does not exist, is never called, or cannot be a cut point."""


class NotInstalledError(UsageError, ImportError):
    """A package that an extra brings is missing.

    >>> str(NotInstalledError("wandb", "wandb"))
    "wandb is not installed; install it with: pip install 'rankscope[wandb]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'rankscope[{extra}]'")


class ModelError(RankscopeError):
    """The model cannot be built, loaded, or run."""


class NotFetchedError(ModelError):
    """Weights that are neither here nor within reach; ``reason`` says what could not be fetched and why."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}. Without internet access: {remedy}")


class DataError(RankscopeError):
    """Inputs are missing, unreadable, of the wrong shape, or not finite."""


class DeviceError(RankscopeError):
    """The requested device is absent or too small for the work."""


class MeasurementError(RankscopeError):
    """A Jacobian could not be computed, or what was computed cannot be trusted."""


class OutputError(RankscopeError):
    """A result cannot be written or read back."""


class ProcessError(RankscopeError):
    """Another process that shares the work has failed or ended."""


class PartlyDoneError(RankscopeError):
    """Some of several experiments failed, the others were done.

    Attributes
    ----------
    finished : dict
        Every record that was made, by name.
    failed : dict
        The message of every other experiment, by name, in the terms of the library.
    """

    def __init__(self, finished: Mapping[str, Any], failed: Mapping[str, str]) -> None:
        self.finished = dict(finished)
        self.failed = {name: str(RankscopeError(text)) for name, text in failed.items()}
        count = len(self.finished) + len(self.failed)
        super().__init__(f"{len(self.failed)} of {count} experiments failed: {'; '.join(failed.values())}")


def parameter(name: str, value: Any = None) -> str:
    """A parameter, and a value for it, inside an error's message; capitals such as ``FILE`` stand for any value."""
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}{_VALUE}{value}{_CLOSE}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known value that a misspelt one was most likely meant to be; ``None`` when none is close.

    >>> closest("papr", ["paper", "reference"]), closest("x", ["paper"])
    ('paper', None)
    """
    plain = {n.casefold(): n for n in sorted(known, reverse=True)}
    found = difflib.get_close_matches(str(name).casefold(), plain, n=1, cutoff=0.5)
    return plain[found[0]] if found else None


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence end that names the closest known value, or the known values when none is close.

    >>> nearest("papr", ["paper", "reference"])
    "did you mean 'paper'?"
    >>> nearest("FIG1D", ["fig1d", "fig2"])
    "did you mean 'fig1d'?"
    """
    names = sorted(known)
    close = closest(name, names)
    if close is not None:
        return f"did you mean {close!r}?"
    shown = ", ".join(repr(n) for n in names[:8])
    return f"known are {shown}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, and at most 200 characters of it, in whole words; or its type.

    >>> first_line(ValueError("two lines\\nof text")), first_line(KeyError())
    ('two lines', 'KeyError')
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= _LONG else f"{line[: _LONG - 1].rpartition(' ')[0] or line[: _LONG - 2]} …"


def type_and_line(error: BaseException) -> str:
    """What an error of other code is: its type, and the first line of what it says.

    >>> type_and_line(ValueError("two lines\\nof text")), type_and_line(KeyError())
    ('ValueError: two lines', 'KeyError')
    """
    kind = type(error).__name__
    return f"{kind}: {first_line(error)}" if str(error).strip() else kind


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: by the type of the error, or of one that caused it.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("CUDA out of memory"))
    (True, False)
    """
    return lack_of_memory(error) is not None


def lack_of_memory(error: BaseException | None) -> BaseException | None:
    """The error that says so itself: what it led to speaks of damaged files, say; ``None`` where there is none.

    >>> try:
    ...     raise ValueError("it cannot be read") from MemoryError("80 GB")
    ... except ValueError as error:
    ...     print(lack_of_memory(error))
    80 GB
    """
    torch = sys.modules.get("torch")  # where it was not imported it raised nothing
    while error is not None:
        if isinstance(error, MemoryError) or (torch is not None and _torch_lacks_memory(torch, error)):
            return error
        error = error.__cause__
    return None


def raise_ours(error: Exception) -> None:
    """Raise an error of ours again; what the model's own code raised, which may be anything, stays with the caller.

    A ``MeasurementError`` stays too, since it says that a derivative cannot be had in the way that was tried.

    >>> raise_ours(AssertionError("call train() first"))
    """
    if isinstance(error, RankscopeError) and not isinstance(error, MeasurementError | UsageError):
        raise error


def _torch_lacks_memory(torch: Any, error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # a driver's call that failed, with its code
        return getattr(error, "error_code", None) == _CUDA_MEMORY_ALLOCATION
    # torch's allocator of the CPU has no type of its own: a bare RuntimeError that names the class of the allocator
    return type(error) is RuntimeError and _CPU_ALLOCATOR in str(error)
