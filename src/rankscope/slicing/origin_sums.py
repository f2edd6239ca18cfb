"""Codes (``origins``) where an operator computes a number from many: sums, norms, products, convolutions, attention."""

from __future__ import annotations

from torch import Tensor

from rankscope.slicing.origin_call import Called, Rule
from rankscope.slicing.origins import MIXED, merged, over

__all__ = [
    "along",
    "attention",
    "batch_norm",
    "convolution",
    "counted",
    "distances",
    "grid_sampled",
    "group_norm",
    "last",
    "layer_norm",
    "matrices",
    "product",
    "reduced",
    "rest_unknown",
    "trilinear",
    "unfolded",
]


def reduced(call: Called) -> list[Tensor]:
    codes, dims = call.of("self", "input"), call.dims("dim")
    kept = over(codes, range(codes.ndim) if dims is None else dims)
    return [kept.reshape(made.shape) for made in call.made]


def along(call: Called) -> Tensor:
    codes, dims = call.of("self", "input"), call.dims("dim")
    return over(codes, range(codes.ndim) if dims is None else dims)


def last(count: int | None = None) -> Rule:
    def rule(call: Called) -> list[Tensor]:
        codes = call.of("self", "input")
        last = codes.ndim - 2 if count is None else count
        kept = over(codes, range(codes.ndim - last, codes.ndim))
        return [kept if made.ndim == kept.ndim else kept.reshape(made.shape) for made in call.made]

    return rule


def layer_norm(call: Called) -> Tensor:
    codes = call.of("input")
    beside = [call.codes(call.given[k]) for k in ("weight", "bias") if call.given.get(k) is not None]
    kept = over(codes, range(codes.ndim - len(call.given["normalized_shape"]), codes.ndim)).expand(codes.shape)
    return merged(kept, *beside)


def group_norm(call: Called) -> Tensor:
    codes = call.of("input")
    kept = over(codes, range(1, codes.ndim)).expand(codes.shape)
    return merged(kept, *(_channels(call, k, codes.ndim) for k in ("weight", "bias") if call.given.get(k) is not None))


def batch_norm(call: Called) -> Tensor:
    codes = call.of("input")
    given = call.given
    # an operator without the argument is for one of the two: that without statistics to keep for a batch's own
    own = given.get("training", call.func._schema.name.endswith("_with_update"))
    statistics = own or given.get("running_mean") is None
    kept = over(codes, [d for d in range(codes.ndim) if d != 1]).expand(codes.shape) if statistics else codes
    names = [k for k in ("weight", "bias", "running_mean", "running_var") if call.given.get(k) is not None]
    return merged(kept, *(_channels(call, k, codes.ndim) for k in names))


def _channels(call: Called, name: str, ndim: int) -> Tensor:
    return call.of(name).reshape(1, -1, *[1] * (ndim - 2))


def product(left: str, right: str, added: str | None = None) -> Rule:
    def rule(call: Called) -> Tensor:
        a, b = call.of(left), call.of(right)
        a, b = over(a, [-1]), over(b, [-2] if b.ndim > 1 else [-1])
        made = call.made[0]
        if call.given[right].ndim == 1:  # matrix by vector
            a = a.squeeze(-1)
        both = merged(a, b).expand(made.shape) if made.ndim else merged(a, b).reshape(())
        return both if added is None else merged(both, call.of(added).expand(made.shape))

    return rule


def distances(call: Called) -> Tensor:
    a, b = call.of("x1"), call.of("x2")
    return merged(over(a, [-1]), over(b, [-1]).transpose(-1, -2))


def trilinear(call: Called) -> Tensor:
    """Three tensors, each with new dimensions, multiplied by broadcasting and summed over some dimensions."""
    found = []
    for k in ("1", "2", "3"):
        codes, new = call.of("i" + k), call.given["expand" + k]
        for dim in sorted(d % (codes.ndim + len(new)) for d in new):
            codes = codes.unsqueeze(dim)
        found.append(over(codes, call.given["sumdim"]))
    return merged(*found).squeeze([d % found[0].ndim for d in call.given["sumdim"]])


def counted(call: Called) -> Tensor:
    """How many numbers there are of each kind: each count may come of any of them."""
    codes = call.of("self")
    return over(codes, range(codes.ndim)).reshape(-1)[:1]


def convolution(call: Called) -> Tensor:
    x, weight, made = call.of("input", "self"), call.of("weight"), call.made[0]
    groups = int(call.given.get("groups") or 1)
    x = over(x, range(2, x.ndim)).reshape(len(x), groups, -1)
    own = over(x, [2]).squeeze(2).repeat_interleave(made.shape[1] // groups, 1)
    if call.given.get("transposed", call.func._schema.name.endswith("_transpose")):
        weight = over(weight, range(2, weight.ndim)).reshape(groups, -1, weight.shape[1])
        by = over(weight, [1]).reshape(1, -1)
    else:
        by = over(weight, range(1, weight.ndim)).reshape(1, -1)
    parts = [own, by] + ([call.of("bias")[None]] if call.given.get("bias") is not None else [])
    return merged(*parts).reshape(*made.shape[:2], *[1] * (made.ndim - 2))


def attention(call: Called) -> list[Tensor]:
    query, key, value = call.of("query"), call.of("key"), call.of("value")
    own = over(query, [-1])
    heads = own.shape[1] if own.ndim == 4 else 1
    others = [over(part, [-1, -2]) for part in (key, value)]
    others = [
        part.repeat_interleave(heads // part.shape[1], 1) if own.ndim == 4 and part.shape[1] != heads else part
        for part in others
    ]
    mask = next((call.given[k] for k in ("attn_mask", "attn_bias") if call.given.get(k) is not None), None)
    parts = [own, *others] + ([] if mask is None else [over(call.codes(mask), [-1])])
    first = merged(*parts)
    rest = [first.new_full((), MIXED) for _ in call.made[1:]]  # logarithms of sums, for a backward pass
    return [first, *rest]


def matrices(call: Called) -> list[Tensor]:
    """Of each matrix by itself: matrices, vectors or numbers."""
    codes = call.of("self", "A", "input")
    kept = over(codes, [-1, -2])
    shapes = [[*kept.shape[: kept.ndim - 2], *[1] * (made.ndim - kept.ndim + 2)] for made in call.made]
    return [kept.reshape(shape) for shape in shapes]


def unfolded(call: Called) -> Tensor:
    codes = call.of("self", "input")
    return over(codes, range(1, codes.ndim)).reshape(-1, *[1] * (call.made[0].ndim - 1))


def grid_sampled(call: Called) -> Tensor:
    x, grid = call.of("input"), call.of("grid")
    return merged(over(x, range(2, x.ndim)), over(grid, [-1]).squeeze(-1).unsqueeze(1))


def rest_unknown(rule: Rule) -> Rule:
    """Beside the result an operator returns what a backward pass takes."""

    def first(call: Called) -> list[Tensor]:
        codes = rule(call)
        assert isinstance(codes, Tensor)
        return [codes, *(codes.new_full((), MIXED) for _ in call.made[1:])]

    return first
