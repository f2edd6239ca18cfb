"""The batch that is trained on in a monitored step: hooks for its passes, and the features that they leave."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from rankscope._base.errors import CutPointError, UsageError
from rankscope.features.cut_names import cut_names
from rankscope.features.reduction import Channels, Reduce
from rankscope.monitor.hooks import StepFeatures, counted_input
from rankscope.monitor.passes import around_calls, eager_pass, hides_hooks
from rankscope.slicing import CutPointsLike
from rankscope.slicing.meaning import PREFERRED
from rankscope.slicing.reader import Samples, meaning_of
from rankscope.slicing.signature import is_hugging_face
from rankscope.slicing.wrapped import unwrapped

__all__ = ["Called", "TrainingBatch"]

Called: TypeAlias = Literal["whole", "parts"]


class TrainingBatch:
    """Hooks around every pass of a monitored step, between ``arm`` and ``disarm``.

    A pass is a call of the model; where ``called`` is ``parts``, also a call of one of its parts that stands in no
    other: training then calls an encoder and a head by themselves. ``around`` such calls may be others, which
    a trainer makes and which are no passes.
    """

    def __init__(
        self,
        model: nn.Module,
        inner: nn.Module,
        cut_points: CutPointsLike,
        names: list[str] | None,
        called: Called,
        reading: tuple[Reduce, Channels, float],
        say: Callable[[str], None],
    ) -> None:
        self.inner, self.cut_points, self.names, self.reading = inner, cut_points, names, reading
        doors = [inner, *_parts(inner)] if called == "parts" else [model]
        # the network in each, looked up while no hook of ours is there
        self.doors = {door: unwrapped(door, "all")[0] for door in doors}
        self.around = 0
        self.features: StepFeatures | None = None
        self._say = say
        self._stack: ExitStack | None = None
        self._depth = 0
        self._last: list[Callable[[], None]] = []

    def arm(self) -> None:
        """Watch for passes."""
        if self._stack is not None:
            return
        self._depth = 0
        with ExitStack() as stack:
            self._last = [stack.enter_context(around_calls(door, self._enter, self._leave)) for door in self.doors]
            self._stack = stack.pop_all()

    def disarm(self) -> None:
        """Take every hook away, and forget the features."""
        if self.features is not None:
            self.features.detach()
        self.features = None
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        outermost = self._depth == self.around
        if module._compiled_call_impl is None:  # else nothing says that the call is over
            self._depth += 1
        if not outermost or not self.inner.training:
            return
        if self.names is None:
            self.names = self._look_up(module, args, kwargs)
        if self.features is None:
            self.features = StepFeatures(self.inner, self.names, *self.reading)
        self.features.begin(self.doors[module], args, kwargs)
        self.features.attach()
        for put_last in self._last:
            put_last()
        if hides_hooks(module):
            self._say(
                "the model is compiled or runs on several GPUs in one process: in monitored steps its original module "
                "runs once more, eagerly"
            )
            try:
                eager_pass(self.doors[module], args, kwargs)
                self.features.end()
            finally:
                self.features.detach()

    def _leave(self, failed: bool) -> None:
        self._depth -= 1
        if self._depth == self.around and self.features is not None:
            self.features.end(failed=failed)

    def _look_up(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        root, wanted, prefix = self.doors[module], self.cut_points, ""
        if root is not self.inner:
            prefix = next(f"{name}." for name, one in self.inner.named_modules() if one is root)
            if wanted not in ("blocks", "all"):
                globs = [wanted] if isinstance(wanted, str) else list(wanted)
                wanted = [glob.removeprefix(prefix) for glob in globs if glob.startswith(prefix)]
                if not wanted:
                    raise CutPointError(f"training calls {prefix[:-1]!r}, which contains no cut point of {globs!r}")
        inputs = _batch(root, args, kwargs)
        name, rows = counted_input(root, args, kwargs) or ("", torch.zeros(0))
        named = inputs if isinstance(inputs, Mapping) else {}
        # which layers there are does not depend on whether a mask belongs to one sample or to all
        own = [key for key, v in named.items() if isinstance(v, torch.Tensor) and v.ndim and len(v) == len(rows)]
        usual = is_hugging_face(root) or any(key in PREFERRED for key in named)
        differentiate = name if name in named and not usual else None
        # token ids have no derivative: what is said of them is that layers have to be named
        floating = is_hugging_face(root) or rows.is_floating_point()
        with torch.compiler.set_stance("force_eager"):
            sample = next(Samples(root, inputs, 1, meaning_of(differentiate, (), own, floating=floating)))
            return [prefix + name for name in cut_names(root, sample, wanted)]


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Children that can be called: those of a list or dictionary of modules in place of it."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child)
        else:
            yield child


def _batch(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call as ``jacobian_rank`` and others read inputs."""
    if not args:
        return kwargs
    parameters = inspect.signature(model.forward).parameters.values()
    if len(args) == 1 and not kwargs:
        return args[0]
    if any(p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters):
        if kwargs:
            raise UsageError("blocks and globs need a batch of positional or of named inputs alone; name layers")
        return args
    return dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
