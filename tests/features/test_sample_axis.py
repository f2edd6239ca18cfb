"""Rows of features are samples, also where torch counts layers or time steps first. NumPy is the oracle of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind

X = torch.randn(30, 5, 4, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """Samples first from outside; ``batch_first=False`` transposes inside."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = kind(4, 6, **options)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        steps = x if self.cell.batch_first else x.transpose(0, 1)
        out, last = self.cell(steps)
        state = last[0] if isinstance(last, tuple) else last
        return self.head(out.sum(1 if self.cell.batch_first else 0)[..., :6] + state[-1])


def check(layer: rs.LayerFeatures, rows: Tensor) -> None:
    """NumPy's singular values of the centred rows; float32 features err by some 1e-6 of the largest."""
    flat = rows.double().numpy().reshape(len(rows), -1)
    values = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    assert (layer.samples, layer.width) == flat.shape
    found = np.asarray(layer.matrix.singular_values)[: len(values)]
    assert found == pytest.approx(values[: len(found)], abs=1e-5 * values[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_states_and_outputs(kind: Any, options: dict[str, Any], batch_first: bool) -> None:
    net = Recurrent(kind, batch_first=batch_first, **options).eval()
    with torch.no_grad():
        out, last = net.cell(X if batch_first else X.transpose(0, 1))
    out = out if batch_first else out.transpose(0, 1)
    states = last if isinstance(last, tuple) else (last,)
    names = ["cell.1.0", "cell.1.1"] if isinstance(last, tuple) else ["cell.1"]
    rows = {"cell.0": out, **{name: s.transpose(0, 1) for name, s in zip(names, states, strict=True)}}
    for name, expected in rows.items():
        # two samples a pass, as many as there are layers or directions: shapes alone do not tell
        check(rs.feature_rank(net, X, cut_points=name, batch_size=2)[name], expected)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8)
        self.encoder = nn.TransformerEncoder(self.block, 2, enable_nested_tensor=False)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.encoder(x.transpose(0, 1))
        return self.attention(h, h, h)[0].mean(0)


@pytest.mark.parametrize("samples", [9, 5])  # five samples of five steps: shapes alone do not tell
@pytest.mark.parametrize(
    "name", ["encoder", "encoder.layers.0", "encoder.layers.1.linear1", "encoder.layers.0.norm2", "attention.0"]
)
def test_a_transformer_with_steps_first(name: str, samples: int) -> None:
    net, x, kept = Transposed().eval(), X[:samples], {}
    module = dict(net.named_modules())[name.removesuffix(".0") if name == "attention.0" else name]
    handle = module.register_forward_hook(lambda m, a, o: kept.update(o=o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        net(x)
    handle.remove()
    layer = rs.feature_rank(net, x, cut_points=name)[name]
    check(layer, kept["o"].transpose(0, 1))


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(2, 2), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.inner(x.reshape(-1, 2)).reshape(len(x), -1))


def test_rows_that_are_no_samples_are_refused(tmp_path: Path) -> None:
    net = Windows().eval()
    with pytest.raises(rs.CutPointError, match=r"'inner' returns a tensor of shape \(300, 2\) for 30 samples"):
        rs.feature_rank(net, X, cut_points="inner")
    with pytest.raises(rs.CutPointError, match=r"'inner' returns a tensor of shape \(300, 2\) for 30 samples"):
        rs.collect(net, (X, torch.arange(30) % 3), out=tmp_path, cut_points=["inner"], progress=False)
    assert rs.feature_rank(net, X, cut_points="last")["last"].samples == 30


def left_out(found: Any) -> list[str]:
    return [name for fact in of_kind(found.facts, FactKind.ROWS_NOT_SAMPLES) for name in fact["names"]]


@pytest.mark.parametrize("wanted", ["all", "*", ["last", "inn*"]], ids=str)
@pytest.mark.parametrize("batch_size", [30, 1])
def test_windows_that_nobody_named_are_left_out(wanted: Any, batch_size: int) -> None:
    net = Windows().eval()
    found = rs.feature_rank(net, X, cut_points=wanted, batch_size=batch_size)
    assert left_out(found) == ["inner"]
    assert [layer.name for layer in found] == ["last"]
    check(found["last"], net(X).detach())
    with pytest.raises(rs.CutPointError, match=r"'inner' returns a tensor of shape"):
        rs.feature_rank(net, X, cut_points=["last", "inner"], batch_size=batch_size)


def test_windows_are_left_out_of_a_neighbourhood_and_a_collection(tmp_path: Path) -> None:
    net = Windows().eval()
    local = rs.local_feature_rank(net, X[:1], cut_points="all", samples=40)
    assert left_out(local) == ["inner"]
    assert [layer.name for layer in local] == ["last"]
    run = rs.collect(net, (X, torch.arange(30) % 3), out=tmp_path, cut_points="*", progress=False)
    assert left_out(run) == ["inner"]
    assert list(run.moments) == ["last"]
    again = rs.collect(net, (X, torch.arange(30) % 3), out=tmp_path, cut_points="*", progress=False)
    assert left_out(again) == ["inner"]


class Fixed(nn.Module):
    """Rows of a table, one or two whatever the samples are: a batch of as many does not make them samples."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last, self.rows = nn.Linear(4, 4), nn.Linear(20, 3), rows

    def forward(self, x: Tensor) -> Any:
        return self.last((x + self.table(x.mean((0, 1)).expand(self.rows, 4)).mean(0)).flatten(1))


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_fixed_number_of_rows_is_left_out(rows: int) -> None:
    found = rs.feature_rank(Fixed(rows).eval(), X, cut_points="*", batch_size=max(rows, 1))
    assert left_out(found) == ["table"]


def test_where_no_layer_is_left_the_call_is_refused() -> None:
    with pytest.raises(rs.CutPointError, match="no layer that cut_points='inn\\*' chooses returns rows that count"):
        rs.feature_rank(Windows().eval(), X, cut_points="inn*")


def test_the_windows_of_a_swin_transformer() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.models.swin_transformer.SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(2, 2), num_classes=3
    ).eval()
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = rs.feature_rank(net, x, cut_points="all", reduce="pool")
    gone, kept = left_out(found), [layer.name for layer in found]
    assert "layers.0.blocks.0.attn.qkv" in gone  # 4 windows of 4 × 4 of 8 × 8 positions
    assert "layers.1.blocks.0.attn.qkv" not in gone  # 4 × 4 positions are one window
    assert {"layers.0.blocks.0", "layers.1.blocks.0.attn.qkv", "norm"} <= set(kept)
    with torch.no_grad():
        check(found["norm"], net.forward_features(x).mean((1, 2)))
