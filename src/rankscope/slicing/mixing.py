"""Which operations mix features: matrix products and solves, convolutions, attention, recurrent cells, distances to
fixed points, running sums, Fourier transforms.

Everything else acts on each feature by itself, moves features, or averages them (activations, normalisations, pooling,
padding, reshaping). A random chain has one layer for what mixes and none for the rest, so a comparison with it has to
know what lies between two cut points. Autograd's graph tells, whether a module or a function call did it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["MixingGraph", "Stretch", "mixing_before"]

_MIXING = re.compile(
    r"(Mm|Bmm|Mv|Dot|Addmm|Addbmm|Baddbmm|Addmv|SparseAddmm|SparseMm|ScaledMm|Linear|MkldnnLinear|Trilinear"
    r"|\w*Convolution\w*|SlowConv\w*|\w*RnnLayer|CudnnRnn|MiopenRnn|ScaledDotProduct\w*|NativeMultiHeadAttention"
    r"|Linalg(Solve|Lstsq|LuSolve|Inv)\w*|CholeskySolve|TriangularSolve|Cdist|Pdist|\w*Cumsum|\w*Cumprod|Logcumsumexp"
    r"|_?Fft\w*)Backward\d*"
)


@dataclass(frozen=True)
class Stretch:
    """What mixes features between two cut points. False where nothing does.

    Attributes
    ----------
    operations : int
        How many mixing operations lie between.
    sizes : tuple of (int, int)
        Where they are a plain chain (all information passes through each of them, one after the other): the numbers of
        values that enter and leave each, 0 for a number that autograd does not tell. Empty where branches join.
    """

    operations: int = 0
    sizes: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return self.operations > 0

    @property
    def plain(self) -> bool:
        """Whether each operation is a layer of its own: a chain, or a single one wherever it stands."""
        return self.operations < 2 or len(self.sizes) == self.operations

    @classmethod
    def of(cls, mixes: bool | Stretch) -> Stretch:
        """Where no more is known than whether features mix: one operation."""
        return mixes if isinstance(mixes, Stretch) else cls(int(mixes))


@dataclass
class MixingGraph:
    """The nodes that depend on the input, with one bit for every mixing operation.

    ``some[node]``: those on any way to it; ``every[node]``: those on every way; ``sizes``: by bit, the numbers of
    values that enter and leave the operation (0: not told). Bits are in topological order.
    """

    some: dict[Any, int] = field(default_factory=dict)
    every: dict[Any, int] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)


def mixing_before(outputs: Iterable[Any], leaf: Tensor) -> MixingGraph:
    """The graph's nodes that depend on the leaf, each with the mixing operations on the way to it.

    What b has beyond a, ``some[b] & ~some[a]``, lies between the two.
    """
    found = MixingGraph()
    stack: list[tuple[Any, bool]] = [(node, False) for node in outputs if node is not None]
    seen: set[Any] = set()
    while stack:  # depth-first post-order: every node after all the nodes it depends on
        node, done = stack.pop()
        before = [(n, place) for n, place in node.next_functions if n is not None]
        if not done:
            if node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((n, False) for n, _ in before if n not in seen)
            continue
        entering = [(n, place) for n, place in before if n in found.some]
        if not entering and getattr(node, "variable", None) is not leaf:
            continue
        some, every = 0, -1 if entering else 0
        for each, _ in entering:
            some |= found.some[each]
            every &= found.every[each]
        if entering and _mixes(node):
            own = 1 << len(found.sizes)
            some, every = some | own, every | own
            found.sizes.append((max(_values(n, place) for n, place in entering), _values(node, 0)))
        found.some[node], found.every[node] = some, every
    return found


def _values(node: Any, place: int) -> int:
    """How many real numbers one of a node's outputs holds; 0 where autograd does not tell."""
    try:
        about = node._input_metadata[place]
        return math.prod(int(n) for n in about.shape) * (2 if about.dtype.is_complex else 1)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return 0


def _mixes(node: Any) -> bool:
    name = node.name()
    if not _MIXING.fullmatch(name):
        return _custom_with_weight(node)
    return not (name.startswith("Convolution") and _one_input_each(node))


def _one_input_each(node: Any) -> bool:
    """Whether a convolution scales its channels one by one: a normalisation or scale in another form."""
    try:
        weight, groups, transposed = node._saved_weight, node._saved_groups, node._saved_transposed
    except (AttributeError, RuntimeError):  # the weight was written to since
        return False
    entries = weight[0, 0].numel() * (weight.shape[0] // groups if transposed else weight.shape[1])
    return bool(entries == 1)


def _custom_with_weight(node: Any) -> bool:
    """Whether it is a user's own autograd function that takes a weight matrix that can be trained."""
    if not hasattr(node, "_forward_cls") and not hasattr(node, "needs_input_grad"):
        return False
    weights = (getattr(n, "variable", None) for n, _ in node.next_functions if n is not None)
    return any(w is not None and sum(size > 1 for size in w.shape) >= 2 for w in weights)
