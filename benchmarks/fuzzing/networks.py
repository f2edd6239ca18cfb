"""Random networks: pieces in a row, nested, shared, in branches, with arguments and several outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fuzzing import batch_pieces, plain_pieces, spatial_pieces, state_pieces, token_pieces, value_pieces
from fuzzing.choices import PIECES, Choices, Piece, Shape
from fuzzing.spatial_pieces import to_tokens, to_vector
from fuzzing.token_pieces import Attention

__all__ = ["Made", "make"]

_ = (batch_pieces, plain_pieces, spatial_pieces, state_pieces, token_pieces, value_pieces)  # they fill the registry
MOST_VALUES = 80  # of one cut point, which is how many reverse passes its truth costs


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, h: Tensor) -> Tensor:
        return h + 0.7 * self.body(h)


class Branches(nn.Module):
    def __init__(self, a: nn.Module, b: nn.Module, *, join: str) -> None:
        super().__init__()
        self.a, self.b, self.join = a, b, join

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.a(h), self.b(h)
        return torch.cat([a, b], -1) if self.join == "cat" else a * b if self.join == "times" else a + b


class Twice(nn.Module):
    """One module called twice, so its outputs are two cut points."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, h: Tensor) -> Tensor:
        return self.body(torch.tanh(self.body(h)))


class Network(nn.Module):
    """Stages in a row and a head. Subclasses name the arguments of ``forward``."""

    def __init__(self, stages: list[nn.Module], head: nn.Module, argument: nn.Module | None = None) -> None:
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), head
        self.argument = argument

    def run(self, x: Tensor, *values: Any) -> Any:
        h = x
        middle = len(self.stages) // 2
        for k, stage in enumerate(self.stages):
            if k == middle and self.argument is not None:
                h = self.argument(h, *values)
            h = stage(h)
        return self.head(h)


class Plain(Network):
    def forward(self, x: Tensor) -> Any:
        return self.run(x)


class Masked(Network):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.run(x, mask)


class Timed(Network):
    def forward(self, x: Tensor, t: Tensor | None = None) -> Any:
        return self.run(x, t)


class Labelled(Network):
    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.run(x, y)


class Weighted(Network):
    def forward(self, z: Tensor, scale: Tensor) -> Any:
        return self.run(z, scale)


class Time(nn.Module):
    """One number a sample moves the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)

    def forward(self, h: Tensor, t: Tensor | None) -> Tensor:
        return torch.tanh(h) if t is None else torch.tanh(h * (1 + 0.5 * torch.tanh(self.embed(t.view(-1, 1)))))


class Label(nn.Module):
    """The class of a sample gates half of the features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.Embedding(4, width)
        with torch.no_grad():
            self.gates.weight[:, : width // 2] = 0

    def forward(self, h: Tensor, y: Tensor | None) -> Tensor:
        return h if y is None else h * self.gates(y)


class Scale(nn.Module):
    """A vector that all samples share multiplies the features."""

    def forward(self, h: Tensor, scale: Tensor) -> Tensor:
        return h * scale


class Heads(nn.Module):
    """Several outputs: as a tuple, a dict, or a pyramid of different sizes."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(width, 4), nn.Linear(width, 3), kind

    def forward(self, h: Tensor) -> Any:
        a, b = self.a(h), torch.tanh(self.b(h))
        if self.kind == "dict":
            return {"logits": a, "features": b}
        return (a, b) if self.kind == "tuple" else [a, (b, h.sum(1, keepdim=True))]


@dataclass
class Made:
    """A network in evaluation mode, the shape of one sample, and what its call needs."""

    model: nn.Module
    shape: Shape
    argument: str | None
    width: int
    couples: bool
    scaled: bool


def make(c: Choices) -> Made:
    """The random network of these choices, weights included."""
    torch.manual_seed(c.seed)
    shape = start = _start(c)
    scaled = c.chance(0.15)
    coupling = c.chance(0.45)  # otherwise samples of a batch do not touch each other
    pieces = [p for p in PIECES.values() if (p.homogeneous or not scaled) and (coupling or not p.couples)]
    argument = None if scaled or len(shape) == 3 else _argument(c, shape)
    count = c.size(2, 5)
    stages: list[nn.Module] = []
    couples = False
    module: nn.Module | None = None
    for k in range(count):
        if argument is not None and k == count // 2:
            module = _taker(c, argument, shape)
            width = shape[-1]
        made, shape, chosen = _stage(c, pieces, shape)
        stages.append(made)
        couples |= any(p.couples for p in chosen)
    head: nn.Module
    ending: list[nn.Module] = []
    if len(shape) == 3 and c.chance(0.3):
        made, shape = to_tokens(c, shape)
        ending.append(made)
    if len(shape) > 1 and c.chance(0.7):
        made, shape = to_vector(c, shape)
        ending.append(made)
    if len(shape) == 1 and not scaled and c.chance(0.15):
        c.use("several outputs")
        ending.append(Heads(shape[0], c.one(["tuple", "dict", "pyramid"])))
    elif len(shape) < 3 and c.chance(0.7):
        ending.append(nn.Linear(shape[-1], c.size(3, 8)))
    head = ending[0] if len(ending) == 1 else nn.Sequential(*ending)
    kinds = {None: Plain, "mask": Masked, "t": Timed, "y": Labelled, "scale": Weighted}
    model = kinds[argument](stages, head, module)
    if argument is None and not isinstance(head, Heads) and c.chance(0.1):
        c.use("bare Sequential")
        model = nn.Sequential(*stages, *([head] if len(ending) else []))
    return Made(model.eval(), start, argument, width if argument is not None else 0, couples, scaled)


def _start(c: Choices) -> Shape:
    kind = c.one(["vector", "tokens", "maps"], [4, 4, 3])
    if kind == "vector":
        return (c.size(3, 12),)
    if kind == "tokens":
        return (c.size(2, 5), c.one([4, 6, 8]))
    return c.one([(1, 5, 5), (2, 4, 4), (3, 4, 4), (1, 6, 6), (2, 5, 5), (1, 4, 6)])


def _argument(c: Choices, shape: Shape) -> str | None:
    argument = c.one([None, "t", "y", "scale"] if len(shape) == 1 else [None, "mask", "scale"], None)
    if argument is not None and not c.chance(0.4):
        return None
    if argument is not None:
        c.use(f"argument: {argument}")
    return argument


def _taker(c: Choices, argument: str, shape: Shape) -> nn.Module:
    if argument == "mask":
        return Attention(shape[-1], heads=1, causal=False, fused=c.chance(0.5))
    if argument == "scale":
        return Scale()
    return Time(shape[-1]) if argument == "t" else Label(shape[-1])


def _piece(c: Choices, pieces: list[Piece], shape: Shape) -> tuple[nn.Module, Shape, Piece]:
    fitting = [p for p in pieces if len(shape) in p.dims]
    chosen = c.one(fitting, [p.weight for p in fitting])
    c.use(chosen.name)
    module, out = chosen.build(c, shape)
    return module, out, chosen


def _stage(c: Choices, pieces: list[Piece], shape: Shape) -> tuple[nn.Module, Shape, list[Piece]]:
    kind = c.one(["one", "nested", "residual", "branches", "twice", "shared"], [5, 2, 1.5, 1, 0.7, 0.7])
    a, out, first = _piece(c, pieces, shape)
    if kind == "nested":
        b, after, second = _piece(c, pieces, out)
        c.use("nested")
        return nn.Sequential(a, nn.Sequential(b)), after, [first, second]
    if kind == "residual" and out == shape:
        c.use("residual")
        return Residual(a), out, [first]
    if kind == "branches" and len(shape) < 3 and shape[-1] <= 8:
        b, other, second = _piece(c, pieces, shape)
        if other == out:
            c.use("branches")
            # a product of two scales would leave the range of normal numbers
            join = c.one(["cat", "plus"] if any(p.homogeneous for p in pieces) and len(pieces) < 20 else
                         ["cat", "plus", "times"])  # fmt: skip
            joined = (*out[:-1], 2 * out[-1]) if join == "cat" else out
            return Branches(a, b, join=join), joined, [first, second]
    if kind == "twice" and out == shape and first.name in ("linear", "gate", "convolution", "attention"):
        c.use("module called twice")
        return Twice(a), out, [first]
    if kind == "shared" and out == shape and first.name != "state":
        c.use("module in two places")
        return nn.Sequential(a, nn.Tanh() if not first.homogeneous else nn.ReLU(), a), out, [first]
    return a, out, [first]
