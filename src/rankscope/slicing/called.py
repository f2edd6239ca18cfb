"""Which module calls one sample leads to: a model whose path depends on its input calls others for another sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rankscope.slicing.capture import OUTPUT, capture
from rankscope.slicing.members import members
from rankscope.slicing.module_calls import Trace
from rankscope.slicing.same import version_of

__all__ = ["called"]


def called(model: nn.Module, run: Callable[[], Any], found: Trace) -> frozenset[tuple[str, int]]:
    """The calls of one plain pass, as (module, number of the call); ``run`` makes the pass, inside ``measuring``.

    The network's own output is among them where it is not what stands for it in ``found``, which has traced another
    sample. Empty where the model fails.
    """
    made: dict[tuple[str, int], list[tuple[Tensor, int]]] = {}
    stands = found.stands_for_output(found.calls)

    def take(key: tuple[str, int], module: nn.Module, output: Any) -> bool:
        made[key] = _versions(output)
        return True

    with capture(model, None, take):
        try:
            output = _versions(run())
        except Exception:  # the model's own code, which may raise anything; the sweep says what
            return frozenset()
    whole = (OUTPUT, -1)
    same = stands is not None and (
        stands.of_network or _same(made.get((stands.key.module, stands.key.call), []), output)
    )
    return frozenset(made) | (frozenset() if same else frozenset([whole]))


def _versions(output: Any) -> list[tuple[Tensor, int]]:
    return [(t, version_of(t)) for t in members(output).values()]


def _same(returned: list[tuple[Tensor, int]], output: list[tuple[Tensor, int]]) -> bool:
    """Whether every output is a tensor that the module returned, unchanged since."""
    return all(any(a is b and v == w for b, w in returned) for a, v in output)
