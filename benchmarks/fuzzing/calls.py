"""Random calls of ``jacobian_rank``: how samples are given, in which precision and scale, and with which options."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import rankscope as rs
from fuzzing.choices import Choices
from fuzzing.networks import Made

__all__ = ["Alone", "Call", "make_call"]

_OPTIONS = inspect.signature(rs.jacobian_rank).parameters


@dataclass(frozen=True)
class Alone:
    """What the model is called with for one sample: ``x`` has a first dimension of 1."""

    x: Tensor
    keyword: str | None
    extra: Mapping[str, Any]


@dataclass
class Call:
    """``jacobian_rank(model, inputs, **options)``, and what each of its samples means."""

    inputs: Any
    options: dict[str, Any]
    samples: list[Alone]
    work: torch.dtype
    directions: Tensor | None = None
    """Directions as rows, where not every input coordinate is one."""

    ambiguous: bool = False
    """Whether a refusal that names the spellings is right."""

    described: list[str] = field(default_factory=list)


class _Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def make_call(c: Choices, made: Made) -> tuple[nn.Module, Call]:
    """The network in its final precision and scale, and a call of it."""
    size = int(torch.Size(made.shape).numel())
    most = 12 if size <= 16 else 6 if size <= 32 else 4  # a truth costs a reverse pass a row
    count = c.one([n for n in (1, 2, 3, 4, 6, 8, 12) if n <= most])
    c.use("one sample" if count == 1 else "several samples")
    own = c.one([torch.float32, torch.float64, torch.bfloat16], [6, 3, 1])
    c.use(str(own).removeprefix("torch."))
    model = made.model.to(own)
    if made.scaled:
        _scale(c, model, own)
    x = torch.randn(count, *made.shape)
    if c.chance(0.15):  # inputs of one sign or far from zero take other pieces
        x = x.abs() + 1
    given = c.one([own, torch.float32]) if own != torch.float64 else own
    x = x.to(given)
    options: dict[str, Any] = {"cut_points": "all", "columns": "all", "progress": False}
    tolerance = c.one(["paper", "reference", 1e-3, 1e-2], [3, 3, 2, 1])
    options["tolerance"] = tolerance
    work = torch.float64 if own == torch.float64 else torch.float32
    if own == torch.float32 and c.chance(0.1):
        options["dtype"], work = "float64", torch.float64
        c.use("measured in float64")
    if c.chance(0.2):
        options["chunk_size"] = c.size(1, 7)
    if c.chance(0.1):
        model.train(c.chance(0.5))
        if model.training:
            c.use("training mode")
    extra = _extra(c, made, count)
    call = _given(c, made, x, extra, options, work)
    _columns(c, call, made)
    return model, call


def _scale(c: Choices, model: nn.Module, own: torch.dtype) -> None:
    """One layer's weights times a power of ten: products of two such layers would not be normal numbers."""
    most = 100 if own == torch.float64 else 25
    exponent = c.one([-1, 1]) * c.size(most // 5, most)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        return
    c.use(f"scale 1e{'-' if exponent < 0 else '+'}{abs(exponent) // 20 * 20:02d} and on")
    chosen = c.one(layers)
    with torch.no_grad():
        chosen.weight.mul_(10.0**exponent)


def _extra(c: Choices, made: Made, count: int) -> dict[str, Tensor]:
    """The second argument: ``t`` and ``y`` belong to a sample each, ``mask`` and ``scale`` to all."""
    if made.argument is None or (made.argument in ("t", "y", "mask") and c.chance(0.1)):
        return {}
    if made.argument == "t":
        return {"t": torch.randn(count, 1) if c.chance(0.5) else torch.randn(count)}
    if made.argument == "y":
        return {"y": torch.randint(0, 4, (count,))}
    if made.argument == "scale":
        return {"scale": torch.randn(made.width) * (torch.rand(made.width) > 0.3)}
    tokens = made.shape[0]
    mask = torch.triu(torch.full((tokens, tokens), -torch.inf), 1) if c.chance(0.5) else torch.randn(tokens, tokens)
    return {"mask": mask}


def _given(
    c: Choices, made: Made, x: Tensor, extra: dict[str, Tensor], options: dict[str, Any], work: torch.dtype
) -> Call:
    """The same samples as a tensor, mapping, data set or loader."""
    name = "input" if isinstance(made.model, nn.Sequential) else "z" if made.argument == "scale" else "x"
    own = made.argument in ("t", "y")
    samples = []
    for i in range(len(x)):
        part = {k: v[i : i + 1] if own else v for k, v in extra.items()}
        samples.append(Alone(x[i : i + 1], name if extra else None, part))
    if extra:
        c.use("mapping")
        spelled = c.chance(0.6) and "shared" in _OPTIONS
        if spelled:
            c.use("spelled out")
            options["per_sample" if own else "shared"] = tuple(extra)
            options["differentiate"] = name
        first = next(iter(extra.values()))
        either = len(x) > 1 and len(first) == len(x)
        two = name == "z"
        return Call({name: x, **extra}, options, samples, work, ambiguous=not spelled and (either or two))
    inputs: Any = x
    form = c.one(["tensor", "mapping", "data set", "pairs", "loader"], [6, 1, 1, 1, 1])
    c.use(form)
    if form == "mapping":
        inputs = {name: x}
    elif form == "data set":
        inputs = _Items(list(x))
    elif form == "pairs":
        labels = torch.arange(len(x)) % 4
        inputs = TensorDataset(x, labels)
        if made.argument == "y":  # what ``forward`` accepts under the name of a label is passed to it
            samples = [Alone(s.x, name, {"y": labels[i : i + 1]}) for i, s in enumerate(samples)]
    elif form == "loader":
        inputs = DataLoader(_Items(list(x)), batch_size=c.size(1, 4))
    if c.chance(0.1) and len(x) > 1:
        options["limit"] = c.size(1, len(x))
        samples = samples[: options["limit"]]
    return Call(inputs, options, samples, work)


def _columns(c: Choices, call: Call, made: Made) -> None:
    """Now and then a part of the input, random directions, or zeros around a patch."""
    size = int(torch.Size(made.shape).numel())
    kind = c.one(["all", "coordinates", "patch", "sketch"], [7, 1, 1, 1])
    if kind == "coordinates":
        chosen = sorted(c.random.sample(range(size), c.size(2, size)))
        call.options["columns"] = rs.Patch(coordinates=chosen)
    elif kind == "patch" and len(made.shape) == 3:
        call.options["columns"] = rs.Patch(2, offset=(1, 1))
        grid = torch.arange(size).view(made.shape)
        chosen = grid[:, 1:3, 1:3].flatten().sort().values.tolist()
        if c.chance(0.5):
            c.use("zero background")
            call.options["background"] = "zero"
            call.samples = [Alone(_only(s.x, chosen), s.keyword, s.extra) for s in call.samples]
    elif kind == "sketch":
        k = c.size(2, size)
        call.options["columns"] = rs.Sketch(k, seed=c.seed % 100)
        drawn = call.options["columns"].tangents(made.shape, 0, k, torch.device("cpu"), call.work)
        call.directions = drawn.flatten(1).double()
        c.use("sketch")
        return
    else:
        return
    c.use(kind)
    call.directions = torch.eye(size, dtype=torch.float64)[chosen]


def _only(x: Tensor, kept: list[int]) -> Tensor:
    out = torch.zeros_like(x).flatten(1)
    out[:, kept] = x.flatten(1)[:, kept]
    return out.view_as(x)
