"""Modules that samples call different numbers of times: names, samples and features of each call, beside plain hooks.

The oracle passes each sample by itself in float64 and keeps what the k-th call of each module returns. The first value
of a sample says how often it calls ``cell``, the second how often the block around it.
"""

from __future__ import annotations

import copy
import fnmatch
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind


class Cell(nn.Module):
    """A child that its parent and the network call: its calls of a pass are counted over both."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.inner = child

    def forward(self, h: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        made = torch.tanh(self.inner(h))
        return made, {"twice": 2 * made.sin()}


class Often(nn.Module):
    """As often as the sample says: a shared child, a parent of it that returns two tensors, and a functional tail."""

    def __init__(self, tail: bool) -> None:
        super().__init__()
        self.stem, self.child, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.cell, self.tail = Cell(self.child), tail

    def forward(self, x: Tensor) -> Tensor:
        times, around = (int(v) for v in x.flatten()[:2])
        h = torch.tanh(self.stem(x))
        for _ in range(times):
            h = torch.tanh(self.child(h)) + h
        for _ in range(around):
            first, more = self.cell(h)
            h = first + more["twice"]
        made: Tensor = self.head(h)
        return made * 2 if self.tail else made


def by_call(model: nn.Module, samples: Tensor) -> tuple[dict[str, Any], dict[str, int]]:
    """Rows of ``module#k`` by sample, and the most calls of each module in one pass."""
    model = copy.deepcopy(model).double()
    rows: dict[str, list[Tensor]] = {}
    most: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            calls[name] += 1
            parts = {"": out} if isinstance(out, Tensor) else {".0": out[0], ".1.twice": out[1]["twice"]}
            for path, part in parts.items():
                rows.setdefault(f"{name}#{calls[name]}{path}", []).append(part.detach())

        return hook

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(keep(name))
    for x in samples:
        calls.clear()
        rows.setdefault("output", []).append(model(x[None].double()).detach())
        most |= calls
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}, most


def recorded(name: str, most: dict[str, int]) -> str:
    """The name of a call in a record: without the number where no sample calls the module twice."""
    module, _, rest = name.partition("#")
    _, mark, path = rest.partition(".")
    return module + mark + path if rest and most[module] == 1 else name


def samples_of(times: list[int], around: list[int], seed: int) -> Tensor:
    x = torch.randn(len(times), 6, generator=torch.Generator().manual_seed(seed))
    x[:, 0], x[:, 1] = torch.tensor(times) + 0.5, torch.tensor(around) + 0.5
    return x


def expected(wanted: Any, rows: dict[str, Any], most: dict[str, int], tail: bool) -> dict[str, Any]:
    """What ``wanted`` stands for, by the name in a record."""
    found = {}
    for name, part in rows.items():
        module, _, rest = name.partition("#")
        path = rest.partition(".")[2]
        names = {module, f"{module}.{path}" if path else module}
        asked = [wanted] if isinstance(wanted, str) else wanted
        if name == "output":
            chosen = wanted == "all" and tail
        else:
            chosen = wanted == "all" or any(fnmatch.fnmatchcase(one, glob) for one in names for glob in asked)
        if chosen:
            found[recorded(name, most)] = part
    return found


def drawn(seed: int) -> tuple[nn.Module, Tensor, int, bool]:
    """A network, samples that call its modules 0 to 3 times in random order, a batch size, whether it has a tail."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    count, tail = int(generator.integers(5, 11)), bool(seed % 2)
    times, around = generator.integers(0, 4, count).tolist(), generator.integers(0, 3, count).tolist()
    x = samples_of([*times, 1, 1], [*around, 1, 1], seed)  # at least two samples call each module
    return Often(tail).eval(), x[generator.permutation(len(x))], int(generator.choice([1, 3, 64])), tail


WANTED: list[Any] = ["all", "child", "ch*", ["child", "head"], ["cell.0", "child"], ["c*", "head"]]


@pytest.mark.parametrize("seed", range(12))
def test_every_call_has_its_own_samples(seed: int, tmp_path: Path) -> None:
    net, x, batch_size, tail = drawn(seed)
    rows, most = by_call(net, x)
    wanted = WANTED[seed % len(WANTED)] if seed < 6 else WANTED[(seed + 1) % len(WANTED)]  # each with and without tail
    truth = expected(wanted, rows, most, tail)
    profile = rs.feature_rank(net, x, cut_points=wanted, batch_size=batch_size)
    assert {layer.name for layer in profile} == {name for name, part in truth.items() if len(part) > 1}
    for layer in profile:
        part = truth[layer.name]
        assert layer.samples == len(part)
        variances = np.linalg.svd(part - part.mean(0), compute_uv=False) ** 2 / (len(part) - 1)
        found = layer.covariance.singular_values
        # float32 passes through at most ten maps of width five: a variance is off by some 1e-6 of the largest
        np.testing.assert_allclose(found[: len(variances)], variances[: len(found)], atol=1e-5 * variances[0])
    missing = {name: len(x) - len(part) for name, part in truth.items() if 1 < len(part) < len(x)}
    facts = of_kind(profile.facts, FactKind.NOT_CALLED)
    said = dict(zip(facts[0]["names"], facts[0]["counts"], strict=True)) if facts else {}
    assert said == missing
    once = {name for fact in of_kind(profile.facts, FactKind.CALLED_ONCE) for name in fact["names"]}
    assert once == {name for name, part in truth.items() if len(part) == 1}
    if tail:
        return
    data: Any = (x, torch.arange(len(x)) % 4)
    for size in (2, 100):
        options: dict[str, Any] = {"cut_points": wanted, "head": "head", "shard_size": size, "batch_size": batch_size}
        made = rs.collect(net, data, out=tmp_path / str(size), **options)
        again = rs.collect(net, data, out=tmp_path / str(size), **options)
        for kept in (made, again, rs.Collection.load(tmp_path / str(size))):
            assert {name: int(moments.count) for name, moments in kept.moments.items()} == {
                name: len(part) for name, part in truth.items()
            }
        for name, part in truth.items():
            scatter = np.cov(part.T, bias=True) * len(part)
            np.testing.assert_allclose(made.moments[name].scatter.numpy(), scatter, atol=1e-4)


@pytest.mark.parametrize("wanted", ["all", "child", ["ch*", "head"], ["cell.0"]])
def test_names_are_those_of_jacobian_rank(wanted: Any) -> None:
    """Of what returns several tensors ``jacobian_rank`` takes all together, and features are those of each."""
    net, x, _, _ = drawn(3)
    rows, most = by_call(net, x)
    truth = expected(wanted, rows, most, tail=True)
    names = set(truth) if wanted == ["cell.0"] else {re.sub(r"(cell#?\d*)\..*", r"\1", name) for name in truth}
    for order in (list(range(len(x))), list(range(len(x)))[::-1]):
        assert {layer.name for layer in rs.jacobian_rank(net, x[order], cut_points=wanted).layers} == names
        features = {layer.name for layer in rs.feature_rank(net, x[order], cut_points=wanted)}
        assert features == {name for name, part in truth.items() if len(part) > 1}


def test_a_run_that_stopped_keeps_calls_apart(tmp_path: Path) -> None:
    """The shards before it hold samples that call the module once, those after it samples that call it twice."""
    net, x = Often(tail=False).eval(), samples_of([1, 1, 1, 2, 2, 0, 1, 2], [0] * 8, 0)
    rows, _ = by_call(net, x)
    options: dict[str, Any] = {"cut_points": "child", "head": "head", "shard_size": 2, "batch_size": 2}
    stops = [(one, k % 4) for k, one in enumerate(x)]

    class Data(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.run = threading.local()  # no part of what the data are

        def __len__(self) -> int:
            return len(stops)

        def __getitem__(self, k: int) -> Any:
            if k == getattr(self.run, "stop", None):
                raise KeyboardInterrupt("stopped")
            return stops[k]

    data = Data()
    data.run.stop = 2
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        rs.collect(net, data, out=tmp_path, **options)
    data.run.stop = None
    made = rs.collect(net, data, out=tmp_path, **options)
    assert made.resumed == 2
    assert {name: int(moments.count) for name, moments in made.moments.items()} == {"child#1": 7, "child#2": 3}
    for name, moments in made.moments.items():
        part = rows[name]
        np.testing.assert_allclose(moments.scatter.numpy(), np.cov(part.T, bias=True) * len(part), atol=1e-4)


class Active(nn.Module):
    """Every sample passes ``step`` three times, with no row where it is done: such a call has no part in a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.clone()
        for k in range(3):
            active = x[:, 0] > k
            h = h.index_put((active.nonzero().flatten(),), torch.tanh(self.step(h[active])))
        made: Tensor = self.head(h)
        return made


@pytest.mark.parametrize("wanted", ["all", "step", ["st*"]])
def test_calls_without_a_row_have_no_sample(wanted: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Active().eval(), samples_of([0, 2, 1, 2, 0, 1, 2], [0] * 7, 1)
    x[:, 0] -= 0.75  # above k for as many k from 0 on as the list says
    rows: dict[str, list[Tensor]] = {"step#1": [], "step#2": []}
    for one in x:
        h = one
        for k in range(2):
            if one[0] > k:
                made = net.step(h)
                rows[f"step#{k + 1}"].append(made.detach())
                h = torch.tanh(made)
    profile = rs.feature_rank(net, x, cut_points=wanted)
    found = {layer.name: layer.samples for layer in profile if layer.name != "head"}
    assert found == {name: len(parts) for name, parts in rows.items() if len(parts) > 1}
    kept = rs.collect(net, (x, torch.arange(len(x)) % 4), cut_points=wanted, out=tmp_path, head="head")
    for made in (kept, rs.Collection.load(tmp_path)):
        counts = {name: int(moments.count) for name, moments in made.moments.items() if name != "head"}
        assert counts == {name: len(parts) for name, parts in rows.items()}


class Aside(nn.Module):
    """Some samples call the head a second time, for something that is not returned, or for what is."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.body, self.head, self.last = nn.Linear(6, 6), nn.Linear(6, 4), last

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        made: Tensor = self.head(h)
        if x.flatten()[0] > 1:
            other: Tensor = self.head(torch.tanh(h))
            return other if self.last else made
        return made


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("last", [False, True])
def test_features_are_those_that_the_logits_are_made_of(last: bool, batch_size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Aside(last).eval(), samples_of([0, 1, 0, 1, 1, 0, 1, 0], [0] * 8, 0)
    kept = rs.collect(net, (x, torch.arange(8) % 4), out=tmp_path, head="head", batch_size=batch_size)
    with torch.no_grad():
        features = torch.tanh(net.body(x))
        twice = (x[:, :1] > 1) & torch.tensor(last)
        # float32 rounds passes of several rows otherwise, by some 1e-7
        torch.testing.assert_close(kept.features, torch.where(twice, torch.tanh(features), features), atol=1e-6, rtol=0)
        torch.testing.assert_close(kept.logits, net.head(kept.features), atol=1e-6, rtol=0)


def test_a_mean_of_several_calls_of_the_head_is_refused(tmp_path: Path) -> None:
    class Mean(Aside):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.body(x))
            made: Tensor = (self.head(h) + self.head(h + 1e-3)) / 2
            return made

    with pytest.raises(rs.ModelError, match="'head' is called 2 times, and the model returns what none of these calls"):
        rs.collect(Mean(False).eval(), (torch.randn(8, 6), torch.arange(8) % 4), out=tmp_path, head="head")
