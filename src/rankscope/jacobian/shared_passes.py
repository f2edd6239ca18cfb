"""What the cut points of one whole Jacobian share: passes through the model that do not depend on the cut point.

The values at a sample, the linear piece that the working precision stands on, the custom operators on the way, and what
comes of a tangent at every cut point are the same whichever cut point is measured. On a GPU each pass that is not made
again saves its launches, which are most of what a cut point costs beside its Lanczos steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from rankscope._base.errors import RankscopeError, is_out_of_memory, raise_ours
from rankscope.linear.derivative import Derivative
from rankscope.linear.kinks import SamePiece
from rankscope.linear.linear_map import LinearMap
from rankscope.linear.matrix import Matrix
from rankscope.linear.methods import METHODS, reason_of
from rankscope.linear.runner import NotCalledError
from rankscope.linear.secant import secant_direction
from rankscope.linear.traced_here import TracedHere
from rankscope.slicing import Sample

__all__ = ["PushedTogether", "SharedPasses", "pushed_by_trace"]

_HELD = 2  # pushed columns wait in a part of this size of what products may take
_ONE_PASS = frozenset(method.push for method in METHODS[:2])  # one pass a push, as a recorded piece has it


def pushed_by_trace(derivative: Derivative) -> bool:
    """Whether products push by the traced network: float64 watches over them, and one pass of the model is a push."""
    method = derivative.method
    return derivative.traced and derivative.probes_compare and method is not None and method.push in _ONE_PASS


@dataclass
class PushedTogether:
    """J times a few columns by one push, for all cut points that are still to be measured (``waiting``).

    ``room`` are the bytes that results may take until their cut points have been measured.
    """

    matrix: Matrix
    room: int
    waiting: set[int]
    _found: list[tuple[Tensor, dict[int, Tensor]]] = field(default_factory=list)

    def push(self, place: int, columns: Tensor) -> Tensor | None:
        """The rows of one cut point; ``None`` where there is no room for those of all, or one of them fails."""
        for known, parts in self._found:
            if place in parts and known.dtype == columns.dtype and torch.equal(known, columns):
                return parts[place]
        sizes = [size if k in self.waiting else 0 for k, size in enumerate(self.matrix.sizes)]
        if self.held + sum(sizes) * columns.shape[1] * columns.element_size() > self.room:
            return None
        nothing = torch.zeros(0, dtype=torch.long, device=columns.device)
        rows = None if sizes == list(self.matrix.sizes) else [None if size else nothing for size in sizes]
        try:
            pushed = self.matrix.push(columns, rows).split(sizes)
        except NotCalledError:
            raise
        except (RuntimeError, RankscopeError) as error:  # a push to each cut point alone says what is wrong there
            if is_out_of_memory(error):
                self.matrix.pushes_less = True
            self.room = 0
            return None
        parts = {k: pushed[k].contiguous() for k in self.waiting}
        self._found.append((columns, parts))
        return parts.get(place)

    @property
    def held(self) -> int:
        """Bytes of the results that wait."""
        return sum(part.nbytes for _, parts in self._found for part in parts.values())

    def done(self, place: int) -> None:
        """The cut point is measured: what was pushed to it is held no longer."""
        self.waiting.discard(place)
        for _, parts in self._found:
            parts.pop(place, None)
        self._found = [entry for entry in self._found if entry[1]]


@dataclass(frozen=True)
class _Precise:
    """The Jacobian in the other precision on the piece of the working one, and the units moved across their kink."""

    map: LinearMap
    flips: int


class SharedPasses:
    """The passes of one sample, each made when it is first asked for; use it inside ``measuring``.

    ``budget`` are the bytes that products may take.
    """

    def __init__(self, derivative: Derivative, sample: Sample, budget: int, wanted: Iterable[int]) -> None:
        self.derivative, self.sample, self.budget = derivative, sample, budget
        self.waiting = set(wanted)
        self._sizes: dict[int, int] = {}
        self._alone: tuple[int, SamePiece] | None = None
        self._columns: dict[bool, PushedTogether] = {}

    @property
    def room(self) -> int:
        """Bytes that columns pushed to all cut points may take until those are measured."""
        return self.budget // _HELD

    def done(self, place: int) -> None:
        """The cut point is measured, here or elsewhere."""
        self.waiting.discard(place)
        for columns in self._columns.values():
            columns.done(place)

    @cached_property
    def misled(self) -> dict[int, str]:
        """The cut points that a custom operator with a wrong backward leads to."""
        return self.derivative.misled(self.sample)

    # ---- the working precision ---------------------------------------------------------------------------------------

    def work(self, place: int) -> LinearMap:
        """The Jacobian of one cut point, by the traced network where that is the model here."""
        plain = self.derivative.plain(self.sample)
        return replace(plain, traced=self._traced).of_place(place)

    def rows(self, place: int) -> int:
        """How many rows it has."""
        if place not in self._sizes:
            self._piece(place)
        return self._sizes[place]

    @cached_property
    def _shared(self) -> tuple[tuple[Tensor, ...], SamePiece] | None:
        """The outputs of all cut points, and the piece that they are on.

        ``None`` where passes of all cut points tell nothing of one: where it takes several to push.
        """
        assert self.derivative.method is not None
        if self.derivative.method.push not in _ONE_PASS:
            return None
        piece = SamePiece()
        try:
            with piece.recording():
                outputs = self.derivative.plain(self.sample).outputs()
        except NotCalledError:
            raise
        except (RuntimeError, RankscopeError):  # a pass to each cut point alone says what is wrong there
            return None
        self._sizes = {place: out.numel() for place, out in enumerate(outputs)}
        return tuple(out.detach() for out in outputs), piece  # a model may turn gradients on inside

    def _piece(self, place: int) -> SamePiece:
        """Of the pass to this cut point."""
        if self._shared is not None:
            return self._shared[1]
        if self._alone is None or self._alone[0] != place:
            piece = SamePiece()
            with piece.recording():
                (out,) = self.derivative.plain(self.sample).of_place(place).outputs()
            self._sizes[place], self._alone = out.numel(), (place, piece)
        return self._alone[1]

    @cached_property
    def _traced(self) -> TracedHere | None:
        """The traced network at this sample, where it is the model here and a float64 pass watches over its products.

        It takes its coefficients once for all products, where ``vmap(jvp)`` passes the values through again each time.
        """
        derivative, shared = self.derivative, self._shared
        if derivative.linearised is None or not pushed_by_trace(derivative) or shared is None:
            return None
        if derivative.other(self.sample) is None:
            return None
        plain, direction = derivative.plain(self.sample), secant_direction(self.sample.x[0])[None]
        try:
            with derivative.runner.hooked():
                here = derivative.linearised.here(derivative.runner, self.sample)
            found, expected = replace(plain, traced=here).push(direction), plain.push(direction)
        except NotCalledError:
            raise
        except Exception as error:  # a trace of this sample runs the model's own code, which may raise anything
            raise_ours(error)
            derivative.give_up_linearised(reason_of(error))  # which a lack of memory is too: its coefficients are many
            return None
        return here if derivative.is_the_model(here.point.outputs, shared[0], found, expected) else None

    # ---- the other one -----------------------------------------------------------------------------------------------

    def exact(self, place: int) -> tuple[LinearMap, int] | None:
        """One cut point in the other precision, on the piece of the working one; and how many units had to be moved."""
        other = self.derivative.other(self.sample)
        if other is None:
            return None
        if self._shared is not None and other.method.push in _ONE_PASS:
            return self._precise.map.of_place(place), self._precise.flips
        own = _on_piece(other.of_place(place), self._piece(place))
        return own.map, own.flips

    @cached_property
    def _precise(self) -> _Precise:
        other = self.derivative.other(self.sample)
        assert other is not None
        assert self._shared is not None
        return _on_piece(other, self._shared[1])

    # ---- columns that are pushed to all cut points -------------------------------------------------------------------

    def less_at_once(self) -> list[int]:
        """Chunks of the pushes to all cut points that ran out of memory since this was last asked."""
        found = [c.matrix.chunk or 1 for c in self._columns.values() if c.matrix.pushes_less]
        for columns in self._columns.values():
            columns.matrix.pushes_less = False
        return found

    def together(self, place: int, *, exact: bool) -> Callable[[Tensor], Tensor | None] | None:
        """J times columns that every cut point is asked for alike; ``None`` where each has to be pushed to alone."""
        shared = self._pushed(exact=exact)
        return None if shared is None else lambda columns: shared.push(place, columns)

    def chunk(self, *, exact: bool) -> int | None:
        """How many tangents fit at once on the way to any cut point; ``None`` where that is not known."""
        shared = self._pushed(exact=exact)
        try:
            return None if shared is None else shared.matrix.fits
        except RankscopeError:  # an early cut point may need less
            return None

    def _pushed(self, *, exact: bool) -> PushedTogether | None:
        if self._shared is None:
            return None
        if exact not in self._columns:
            if exact:
                other = self.derivative.other(self.sample)
                if other is None or other.method.push not in _ONE_PASS:
                    return None
                whole = self._precise.map
            else:
                whole = replace(self.derivative.plain(self.sample), traced=self._traced)
            sizes = tuple(self._sizes[k] for k in range(len(self._sizes)))
            matrix = Matrix(whole, sizes, self.budget)
            self._columns[exact] = PushedTogether(matrix, self.room, self.waiting)
        return self._columns[exact]


def _on_piece(exact: LinearMap, piece: SamePiece) -> _Precise:
    aligned = SamePiece()
    aligned.inputs = piece.inputs  # one map's moves are not another's
    made = exact.on_piece(aligned)
    return _Precise(made, 0 if aligned.flips is None else int(aligned.flips.sum()))
