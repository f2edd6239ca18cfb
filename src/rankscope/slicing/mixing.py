"""Which operations mix features: matrix products, convolutions, attention, recurrent cells, Fourier transforms.

Everything else acts on each feature by itself, moves features, or averages them (activations, normalisations, pooling,
padding, reshaping). A random chain has one layer for what mixes and none for the rest, so a comparison with it has to
know what lies between two cut points. Autograd's graph tells, whether a module or a function call did it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["mixing_before"]

_MIXING = re.compile(
    r"(Mm|Bmm|Mv|Dot|Addmm|Addbmm|Baddbmm|Addmv|SparseAddmm|SparseMm|ScaledMm|Linear|MkldnnLinear|Trilinear"
    r"|\w*Convolution\w*|SlowConv\w*|\w*RnnLayer|CudnnRnn|MiopenRnn|ScaledDotProduct\w*|NativeMultiHeadAttention"
    r"|_?Fft\w*)Backward\d*"
)


def mixing_before(outputs: Iterable[Any], leaf: Tensor) -> dict[Any, int]:
    """The graph's nodes that depend on the leaf, each with one bit for every mixing operation on the way to it.

    What b has beyond a, ``bits[b] & ~bits[a]``, lies between the two.
    """
    bits: dict[Any, int] = {}
    count = 0
    stack: list[tuple[Any, bool]] = [(node, False) for node in outputs if node is not None]
    seen: set[Any] = set()
    while stack:  # depth-first post-order: every node after all the nodes it depends on
        node, done = stack.pop()
        before = [n for n, _ in node.next_functions if n is not None]
        if not done:
            if node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((n, False) for n in before if n not in seen)
            continue
        found = [bits[n] for n in before if n in bits]
        if not found and getattr(node, "variable", None) is not leaf:
            continue
        own = 0
        if found and _mixes(node):
            own, count = 1 << count, count + 1
        for each in found:
            own |= each
        bits[node] = own
    return bits


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
