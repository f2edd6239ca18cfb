"""Features of modules that are called several times in one pass, beside NumPy on what each call returns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind

EPS32 = float(np.finfo(np.float32).eps)


class Shared(nn.Module):
    """One drop-out module at both ends, as in T5's encoder, and one block that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block, self.head = nn.Linear(20, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(self.stem(x))
        return self.head(self.dropout(torch.relu(self.block(torch.tanh(self.block(h))))))


class Loops(nn.Module):
    """A layer that is called once a token, so that longer texts call it more often."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0]
        for k in range(x.shape[1]):
            h = torch.tanh(self.layer(h + x[:, k]))
        return self.head(h)


def by_call(model: nn.Module, samples: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Rows of ``name#k`` for the k-th call in the pass of each sample alone."""
    rows: dict[str, list[Tensor]] = {}
    seen: list[str] = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, out: Tensor) -> None:
            seen.append(name)
            rows.setdefault(f"{name}#{seen.count(name)}", []).append(out.detach().double())

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if name]
    for x in samples:
        seen.clear()
        model(x[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).numpy() for name, parts in rows.items()}


def same(layer: Any, rows: np.ndarray[Any, Any]) -> None:
    """float32 passes of a batch and of one sample alone differ by rounding, which moves a variance by far less."""
    variances = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2 / (len(rows) - 1)
    found = layer.covariance.singular_values
    np.testing.assert_allclose(found[: len(variances)], variances[: len(found)], rtol=1e-4, atol=1e-5 * variances[0])
    assert layer.samples == len(rows)


def test_each_call_is_measured() -> None:
    net = Shared().eval()
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
    truth = by_call(net, x)
    names = ["stem", "dropout#1", "block#1", "block#2", "dropout#2", "head"]
    for found in (rs.feature_rank(net, x, cut_points="all"), rs.feature_rank(net, x, cut_points=["*"])):
        assert [layer.name for layer in found if layer.name != "stem"] == names[1:]
        for layer in found:
            same(layer, truth[layer.name if "#" in layer.name else f"{layer.name}#1"])
    blocks = [layer.name for layer in rs.feature_rank(net, x)]
    assert blocks == list(rs.layers(net, x[:1]).default)
    assert {"block#1", "block#2"} <= set(blocks)
    local = rs.local_feature_rank(net, x[:1], samples=20)
    assert [layer.name for layer in local] == blocks


@pytest.mark.parametrize("wanted", [["block"], ["block", "hea*"], "block", ["block#1", "block", "hea*"], "bloc?"])
def test_a_name_without_a_number_stands_for_all_calls(wanted: Any) -> None:
    net = Shared().eval()
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
    found = rs.feature_rank(net, x, cut_points=wanted)
    truth = by_call(net, x)
    assert [layer.name for layer in found if layer.name != "head"] == ["block#1", "block#2"]
    for name in ("block#1", "block#2"):
        same(found[name], truth[name])


def test_a_call_that_nobody_makes_is_named() -> None:
    net, x = Shared().eval(), torch.randn(5, 20)
    with pytest.raises(rs.CutPointError, match="layer 'block#3' is never called"):
        rs.feature_rank(net, x, cut_points=["block#3"])
    with pytest.raises(rs.CutPointError, match="has no layer 'black#1'; did you mean 'block'"):
        rs.feature_rank(net, x, cut_points=["black#1"])


def test_a_collection_keeps_each_call(tmp_path: Any) -> None:
    net = Shared().eval()
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(1))
    truth = by_call(net, x)
    kept = rs.collect(net, (x, torch.arange(60) % 4), cut_points=["block#1", "block#2"], out=tmp_path)
    found = rs.feature_rank(kept)
    for name in ("block#1", "block#2"):
        same(found[name], truth[name])


def test_later_samples_may_call_a_layer_more_often() -> None:
    net = Loops().eval()
    samples = list(torch.randn(10, 2, 6, generator=torch.Generator().manual_seed(2)))
    samples += list(torch.randn(20, 4, 6, generator=torch.Generator().manual_seed(3)))
    samples += list(torch.randn(10, 1, 6, generator=torch.Generator().manual_seed(4)))
    truth = by_call(net, samples)
    found = rs.feature_rank(net, torch.utils.data.StackDataset(x=samples), cut_points="all", batch_size=5)
    assert [layer.name for layer in found] == ["layer#1", "layer#2", "layer#3", "layer#4", "head"]
    for layer in found:
        same(layer, truth[layer.name if "#" in layer.name else "head#1"])
    (fact,) = of_kind(found.facts, FactKind.NOT_CALLED)
    assert dict(zip(fact["names"], fact["counts"], strict=True)) == {"layer#2": 10, "layer#3": 20, "layer#4": 20}


def test_a_batch_with_arguments_of_its_own_shows_further_layers() -> None:
    """The choice among the calls of a longer text is made with its first sample, not with the batch."""

    class ByLength(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.long, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.head((self.long if x.shape[1] > 3 else self.short)(x).mean(1) * t)

    torch.manual_seed(0)
    xs = [torch.randn(2 if k < 8 else 5, 6) for k in range(24)]
    data = torch.utils.data.StackDataset(x=xs, t=[torch.randn(6) for _ in xs])
    found = rs.feature_rank(ByLength().eval(), data, cut_points="all", reduce="pool", batch_size=8, differentiate="x")
    assert {layer.name: layer.samples for layer in found} == {"short": 8, "long": 16, "head": 24}


class Padded(nn.Module):
    """Embeddings that it is given are filled up through a further call of its embedding and norm, as in Longformer."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.norm, self.block, self.head = (
            nn.Embedding(9, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )
        self.again = again
        self.config = SimpleNamespace()  # the conventions of Hugging Face

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.tokens(input_ids)
        else:
            fill = self.norm(self.tokens(torch.zeros(len(inputs_embeds), 1, dtype=torch.int64)))
            inputs_embeds = torch.cat([inputs_embeds, 0 * fill], 1)[:, :-1]
        h = self.block(self.norm(inputs_embeds))
        return self.head(self.norm(h) if self.again else h)


@pytest.mark.parametrize(
    ("again", "names"),
    [(False, ["tokens", "norm", "block", "head"]), (True, ["tokens", "norm#1", "block", "norm#2", "head"])],
)
def test_calls_that_only_embeddings_make(again: bool, names: list[str]) -> None:
    net = Padded(again).eval()
    ids = torch.randint(9, (40, 4), generator=torch.Generator().manual_seed(1))
    truth = by_call(net, ids)
    found = rs.feature_rank(net, {"input_ids": ids}, cut_points="all", reduce="flatten")
    assert [layer.name for layer in found] == names
    for layer in found:
        rows = truth[layer.name if "#" in layer.name else f"{layer.name}#1"]
        same(layer, rows.reshape(len(rows), -1))
    local = rs.local_feature_rank(net, {"input_ids": ids[:1]}, samples=10, cut_points="all")
    assert "block" in [layer.name for layer in local]


@pytest.mark.filterwarnings("ignore:rankscope, step 0. layer block is called several times")
def test_a_monitor_follows_each_call() -> None:
    model = Shared().train()
    kept: list[np.ndarray[Any, Any]] = []
    model.block.register_forward_hook(lambda _m, _a, out: kept.append(out.detach().double().numpy()))
    x = torch.randn(40, 20, generator=torch.Generator().manual_seed(1))
    with rs.RankMonitor(model, ["block", "block#1", "block#2"], every=1, metrics=("stable_rank",)) as monitor:
        model(x)
        monitor.step()
    found = monitor.history.set_index("layer")["value"]
    for name, rows in (("block", kept[0]), ("block#1", kept[0]), ("block#2", kept[1])):
        variances = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        assert found[name] == pytest.approx(variances.sum() / variances[0], rel=1e-5)
