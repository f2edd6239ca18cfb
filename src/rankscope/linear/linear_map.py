"""``LinearMap``: the Jacobian of the cut points at one point, as products with tangents and cotangents.

How a tangent is pushed is decided inside: by the network's own linearisation where a trace of it is at hand, else by
the first method that works on the model. Hooks are in place while a product is computed, and only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from rankscope._base.errors import MeasurementError, first_line, is_out_of_memory, raise_ours
from rankscope.linear.kinks import SamePiece
from rankscope.linear.methods import Method, Push, choose_method
from rankscope.linear.regions import Region
from rankscope.linear.reverse import reverse_mode
from rankscope.linear.runner import Rows, Runner
from rankscope.slicing import Sample

__all__ = ["Context", "LinearMap", "Traced", "works_in"]

Context = Callable[[], AbstractContextManager[Any]]


class Traced(Protocol):
    """A traced network in the place of a method."""

    def within(self, region: Region | None) -> Push:
        """How tangents that are zero outside of a region of one image's input are pushed."""

    def reached(self, runner: Runner, sample: Sample, region: Region | None) -> tuple[Region, ...] | None:
        """Where they may differ from zero at each cut point; ``None`` where that is not followed."""

    def of_place(self, place: int) -> Traced | None:
        """The same for one of the cut points; ``None``: the model's own passes serve it."""


@dataclass(frozen=True)
class LinearMap:
    """The Jacobian of a runner's cut points at ``sample``; use it inside ``measuring``.

    Where the sample is a batch, tangents are those of every image alike, and the rows of a cut point those of all
    images in turn. ``forward`` is what every pass through the network runs inside, ``arithmetic`` what all runs inside.
    """

    runner: Runner
    method: Method
    sample: Sample
    traced: Traced | None = None
    """A traced network in the place of ``method``; it belongs to the same runner."""
    region: Region | None = None
    """Where the tangents of one image may differ from zero; ``None``: everywhere."""
    forward: Context = nullcontext
    arithmetic: Context = nullcontext

    @classmethod
    def of(cls, runner: Runner, sample: Sample) -> LinearMap:
        """By the first method that works there.

        Raises
        ------
        MeasurementError
            Where none does.
        """
        with runner.hooked():
            return cls(runner, choose_method(runner, sample, torch.ones_like(sample.x[:1]))[0], sample)

    @property
    def device(self) -> torch.device:
        return self.runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self.runner.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of all cut points together, and columns; the rows cost one forward pass."""
        return sum(out.numel() for out in self.outputs()), self.sample.x[0].numel()

    def outputs(self, rows: Rows = None) -> tuple[Tensor, ...]:
        """What the function itself gives at the point: one flat tensor per cut point."""
        with self._inside(), self.forward():
            return self.runner.outputs(self.sample, self.sample.x, rows)

    def push(self, tangents: Tensor, rows: Rows = None) -> tuple[Tensor, ...]:
        """J·v for tangents (count, *shape of one image): one (count, rows) tensor a cut point.

        ``rows`` chooses the rows of each cut point; ``None``: all of them.
        """
        push = self.method if self.traced is None else self.traced.within(self.region)
        with self._inside(), self.forward():
            return push(self.runner, self.sample, tangents, rows)

    def reached(self) -> tuple[Region, ...] | None:
        """Where tangents of the region may differ from zero at each cut point; ``None`` where no trace tells."""
        if self.traced is None:
            return None
        with self._inside():
            return self.traced.reached(self.runner, self.sample, self.region)

    def pull(
        self,
        cotangents: Sequence[Tensor],
        together: int = 1,
        watching: AbstractContextManager[Any] | None = None,
    ) -> Tensor:
        """Jᵀ·u for one (count, rows) tensor a cut point: (count, *shape of the point), summed over the cut points.

        One forward pass, and one backward pass for each ``together`` of ``count``; more than one go back through
        ``vmap``, which saves a GPU launches and needs a rule for every operator. The backward passes alone run inside
        ``watching``.

        Raises
        ------
        MeasurementError
            Where reverse mode fails.
        """
        with self._inside(), self.method.kernels(), reverse_mode(self.device):
            x = self.sample.x.detach().clone().requires_grad_()
            with self.forward():  # a backward formula in Python must not be taken for the network's own operators
                every = self.runner.outputs(self.sample, x * 1)
            live = [k for k, out in enumerate(every) if out.requires_grad and out.numel()]
            outputs = [every[k] for k in live]
            count = len(cotangents[0])
            if not live:
                return torch.zeros(count, *x.shape, dtype=x.dtype, device=x.device)
            weights = [cotangents[k].to(every[k].dtype) for k in live]
            found = []

            def back(*cotangent: Tensor) -> Tensor:
                return torch.autograd.grad(outputs, x, cotangent, retain_graph=True, materialize_grads=True)[0]

            try:
                with watching or nullcontext():
                    for i in range(0, count, together):
                        if together == 1:
                            found.append(back(*(w[i] for w in weights))[None])
                        else:  # not is_grads_batched: that goes one by one through convolutions and norms
                            found.append(vmap(back, randomness="same")(*(w[i : i + together] for w in weights)))
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                raise MeasurementError(
                    f"products with the transposed Jacobian need reverse mode, which fails at "
                    f"{self.runner.keys[-1].module!r}: {first_line(error)}; jacobian_rank measures columns by forward "
                    "mode alone"
                ) from error
        return torch.cat(found) if found else torch.zeros(0, *x.shape, dtype=x.dtype, device=x.device)

    def at(self, sample: Sample) -> LinearMap:
        """The same function's Jacobian at another point.

        Whether a traced network is the model there has to be looked at: values may decide what the model does.
        """
        return replace(self, sample=sample)

    def within(self, region: Region | None) -> LinearMap:
        """The same for tangents that are zero outside of a region of one image: a traced network carries no others."""
        return replace(self, region=region)

    def of_place(self, place: int) -> LinearMap:
        """The Jacobian of one cut point alone: the model's own passes end there."""
        traced = None if self.traced is None else self.traced.of_place(place)
        return replace(self, runner=self.runner.up_to(place), traced=traced)

    def in_dtype(self, dtype: torch.dtype) -> LinearMap:
        """The same Jacobian computed in another precision, by the plain method where it works there too."""
        if dtype == self.dtype:
            return replace(self, traced=None)
        runner = self.runner.in_dtype(dtype)
        sample = self.sample.to(self.device, dtype)
        with runner.hooked():
            return LinearMap(runner, works_in(runner, sample, self.method), sample)

    def on_piece(self, piece: SamePiece) -> LinearMap:
        """This Jacobian on the linear piece that another precision's pass recorded.

        ``piece.flips`` then counts the units that had to be moved across their kink, by image.
        """
        with self._inside(), piece.aligning(len(self.sample.x)):
            self.runner.outputs(self.sample, self.sample.x)
        return replace(self, forward=piece.replaying, traced=None)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self.runner.hooked(), self.arithmetic():
            yield


def works_in(runner: Runner, sample: Sample, method: Method) -> Method:
    """``method`` where it works for this runner too, in whose precision kernels differ; else the first that does."""
    direction = torch.ones_like(sample.x[:1])
    try:
        method(runner, sample, direction)
    except Exception as error:  # a custom backward is code of the model
        raise_ours(error)
        return choose_method(runner, sample, direction)[0]
    return method
