"""Memory that runs out where nothing smaller is left to try: one error that names what needs less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rankscope._base.errors import DeviceError, RankscopeError, first_line, lack_of_memory, parameter

__all__ = ["naming_what_needs_less"]


@contextmanager
def naming_what_needs_less(device: torch.device, *, full: bool) -> Iterator[None]:
    """``full``: whether whole Jacobians are measured."""
    try:
        yield
    except RankscopeError:
        raise
    except Exception as error:
        lack = lack_of_memory(error)
        if lack is None:
            raise
        smaller = parameter("method", "lanczos") + " with fewer probes" if full else "fewer " + parameter("columns")
        elsewhere = [] if device.type == "cpu" else [parameter("device", "cpu")]
        remedies = [f"a smaller {parameter('memory_budget')}", smaller, "an earlier cut point", *elsewhere]
        raise DeviceError(
            f"memory ran out ({first_line(lack)}); give {', '.join(remedies[:-1])} or {remedies[-1]}"
        ) from error
