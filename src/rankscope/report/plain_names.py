"""Names of layers without those of wrappers, so that a wrapped network's layers are those of the plain one."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["plain_name", "plain_names"]

# torch.compile, FSDP and checkpoint_wrapper put a module of this name around whatever they are given, at any depth
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?:\.|(?=[#:]|$))")
# DataParallel and DistributedDataParallel; elsewhere it may be a name that the network's author gave
_OUTERMOST = re.compile(r"^(?:module\.)+")
_OWN = "output"  # what the whole model returns, whatever wraps it
_MODEL = "model"


def plain_name(name: str) -> str:
    """A layer's name without those of wrappers; a wrapper's own name stays where there is nothing else.

    >>> plain_name("module._orig_mod.layer1.0"), plain_name("a._checkpoint_wrapped_module#2"), plain_name("_orig_mod")
    ('layer1.0', 'a#2', '_orig_mod')
    """
    inner = re.sub(r"\.(?=[#:]|$)", "", _INSIDE.sub("", name))
    inner = _OUTERMOST.sub("", inner)
    return name if not inner or inner[0] in "#:" else inner


def plain_names(runs: Sequence[Sequence[str]]) -> list[list[str]]:
    """``plain_name`` of every layer of every run.

    A leading ``model.``, as of a ``LightningModule`` around a network, goes where all names of one run have it and no
    name of another has: else it is part of the network's own names.

    >>> plain_names([["model.a", "model.b"], ["a", "b"]])
    [['a', 'b'], ['a', 'b']]
    """
    plain = [[plain_name(name) for name in run] for run in runs]
    while True:
        has = [[_below(name) for name in run if name not in (_OWN, _MODEL)] for run in plain]
        if not all(has) or any(any(run) != all(run) for run in has) or len({any(run) for run in has}) < 2:
            return plain
        plain = [[name.removeprefix(f"{_MODEL}.") for name in run] for run in plain]


def _below(name: str) -> bool:
    return name.startswith(f"{_MODEL}.")
