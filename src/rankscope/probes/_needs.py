"""Which shape of a sample each standard component takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rankscope._base.errors import UsageError, parameter
from rankscope.views.phrases import joined

__all__ = ["check_shape"]

_ANY = frozenset(
    {"fc", "relu", "gelu", "silu", "layernorm", "rmsnorm", "dropout"}
)  # they flatten, or act on each value


_ONE_NUMBER = frozenset({"relu", "gelu", "silu", "dropout"})  # they act on each value


def _has_size(name: str, shape: tuple[int, ...]) -> bool:
    return name not in _ANY or name in _ONE_NUMBER or len(shape) > 0


def _is_map(name: str, shape: tuple[int, ...]) -> bool:
    return name in _ANY or len(shape) == 3


def _halves(name: str, shape: tuple[int, ...]) -> bool:
    return name not in ("maxpool", "avgpool") or not (shape[1] % 2 or shape[2] % 2)


def _varies(name: str, shape: tuple[int, ...]) -> bool:
    return name != "instancenorm" or shape[1] * shape[2] > 1


def _groups(name: str, shape: tuple[int, ...]) -> bool:
    return name != "groupnorm" or shape[0] % 4 == 0


_NEEDS: tuple[tuple[str, Callable[[str, tuple[int, ...]], bool]], ...] = (
    ("samples of at least one dimension", _has_size),
    ("(channels, height, width)", _is_map),
    ("an even height and width", _halves),
    ("channels divisible by 4", _groups),
    ("more than one value per channel", _varies),
)


def check_shape(shape: tuple[int, ...], chosen: Iterable[str], known: Iterable[str], *, given: bool) -> None:
    """Refuse a shape that a chosen component cannot take, naming the components that can.

    ``given`` says that it is the shape of the caller's own ``inputs``, not of ``input_shape``.
    """
    names = list(chosen)
    need = next((found for found in (_lacking(name, shape) for name in names) if found is not None), None)
    if need is None:
        return
    unfit = [name for name in names if _lacking(name, shape) == need]
    fit = [name for name in known if _lacking(name, shape) is None]
    has = f"samples of {parameter('inputs')} have shape" if given else f"{parameter('input_shape')} is"
    raise UsageError(
        f"{has} {shape}, but {joined(unfit)} {'needs' if len(unfit) == 1 else 'need'} {need}; the standard "
        f"components that take this shape are {joined(fit)}"
    )


def _lacking(name: str, shape: tuple[int, ...]) -> str | None:
    """What the component needs and the shape does not have."""
    return next((need for need, has in _NEEDS if not has(name, shape)), None)
