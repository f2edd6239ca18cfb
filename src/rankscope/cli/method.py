"""``--method`` of the full Jacobian, and the options that belong to its probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankscope._base.errors import UsageError, nearest
from rankscope._base.text import own_verb
from rankscope.cli.parsing import whole_number

if TYPE_CHECKING:
    from rankscope.spectra.matrix_free import Lanczos

__all__ = ["parse_method"]

_METHODS = ("auto", "exact", "lanczos")


def parse_method(
    method: str,
    probes: int | None,
    steps: str | None,
    bracket: float | None,
    seed: int,
    *,
    columns: str | None,
    patch: str | None,
) -> Lanczos | str:
    """The method that the options choose together.

    Raises
    ------
    UsageError
        For an unknown method, for numbers that cannot be used, and for options that do not belong together.

    Examples
    --------
    >>> parse_method("lanczos", 4, "200", None, seed=0, columns="all", patch=None)
    Lanczos(probes=4, steps=200, bracket=0.05, seed=0)
    """
    if method not in _METHODS:
        raise UsageError(f"--method {method!r} is unknown; {nearest(method, _METHODS)}")
    given = {"--probes": probes, "--steps": steps, "--bracket": bracket}
    named = [option for option, value in given.items() if value is not None]
    if named and method != "lanczos":
        raise UsageError(
            f"{' and '.join(named)} {own_verb(len(named), 'belong')} to --method lanczos; --method is {method}"
        )
    if method == "auto":
        return method
    if columns != "all":
        other = f"--patch {patch}" if patch is not None else f"--columns {columns or 'auto'}"
        raise UsageError(f"--method {method} measures the full Jacobian; give --columns all with it, not {other}")
    if method == "exact":
        return method
    number = None if steps is None else whole_number(steps)
    if steps not in (None, "auto") and number is None:
        raise UsageError(f"--steps is {steps!r}; give a whole number of at least 1, or auto")

    from rankscope.spectra.matrix_free import Lanczos

    return Lanczos(
        8 if probes is None else probes,
        "auto" if number is None else number,
        0.05 if bracket is None else bracket,
        seed,
    )
