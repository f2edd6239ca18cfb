"""Which calls ``cut_points=`` chooses: blocks, the paper's lists, names, globs; and what a wrong name is told."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import cast

import pytest
import torch
from networks import CASES
from torch import nn

import rankscope as rs
from rankscope._base.facts import FactKind
from rankscope.loading import ensure_torchvision
from rankscope.slicing import Trace, example_sample, select, trace

ensure_torchvision()

import timm  # noqa: E402  (needs the call above where torch and torchvision were built apart)


@lru_cache(maxsize=8)
def traced(name: str) -> tuple[nn.Module, Trace]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        return model, trace(model, example_sample(model))


RESNET18 = ["maxpool", *[f"layer{i}.{j}" for i in range(1, 5) for j in range(2)], "global_pool.flatten", "fc"]
BLOCKS = {
    "resnet18": RESNET18,
    "resnet50": [
        "maxpool",
        *[f"layer{i + 1}.{j}" for i, n in enumerate((3, 4, 6, 3)) for j in range(n)],
        "global_pool.flatten",
        "fc",
    ],
    "vit_tiny_patch16_224": 12,
    "gmixer_24_224": 24,
    "swin_tiny_patch4_window7_224": 12,
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name: str) -> None:
    model, found = traced(name)
    calls = select(model, found, "blocks")
    names = [c.name for c in calls]
    assert all(c.true_cut for c in calls)
    assert names == [c.name for c in found.calls if c.name in names], "depth order"
    expected = BLOCKS[name]
    if isinstance(expected, list):
        assert names == expected
        return
    blocks = [n for n in names if "blocks." in n]
    assert len(blocks) == expected
    assert all(n.rsplit(".", 2)[-2] == "blocks" for n in blocks)
    assert names.index(blocks[0]) >= 1, "a stem comes before"
    assert len(names) - names.index(blocks[-1]) - 1 == 2, "pooled features and logits come after"
    assert names[-1].startswith("head")


PAPER = {
    "resnet18": 11,
    "resnet50": 19,
    "gmixer_24_224": 24,
    "resmlp_24_224": 24,
    "swin_tiny_patch4_window7_224": 18,
    "vit_tiny_patch16_224": 13,
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_lists(name: str) -> None:
    model, found = traced(name)
    calls = select(model, found, "paper")
    assert len(calls) == PAPER[name]
    assert not any(c.name in ("fc", "head", "head.fc") for c in calls), "the lists end before the classifier"


@pytest.mark.parametrize("name", PAPER)
def test_the_lists_of_the_papers_code(name: str) -> None:
    """As many layers; a ResNet's begin after the max-pooling and end with the class logits."""
    model, found = traced(name)
    code, text = ([c.name for c in select(model, found, wanted)] for wanted in ("reference", "paper"))
    assert len(code) == PAPER[name]
    if name.startswith("resnet"):
        assert code == ["maxpool", *(n for n in text if re.fullmatch(r"layer[1-4]\.[0-9]", n)), "global_pool", "fc"]
    else:
        assert code == text


def test_paper_knows_no_other_network() -> None:
    model = CASES["residual"].model()
    found = trace(model, example_sample(model, CASES["residual"].sample(1)))
    with pytest.raises(rs.CutPointError, match=r'this ResidualCNN is none of them\. Use cut_points="blocks"'):
        select(model, found, "paper")
    model, found = traced("resnet18")
    fewer = Trace(found.calls[:9], found.model, found.input_shape, True)
    with pytest.raises(rs.CutPointError, match=r"none of them .*layers where ResNet-18 has 11"):
        select(model, fewer, "paper")
    with pytest.raises(rs.CutPointError, match=r'cut_points="reference" knows ResNet-18'):
        select(model, fewer, "reference")


def names(case: str, wanted: object) -> list[str]:
    model = CASES[case].model()
    found = trace(model, example_sample(model, CASES[case].sample(1)))
    return [c.name for c in select(model, found, wanted)]


SELECTIONS = [
    ("shared", "layer", ["layer#1", "layer#2", "layer#3"]),
    ("shared", "layer#2", ["layer#2"]),
    ("shared", "all", ["layer#1", "layer#2", "layer#3", "last"]),
    ("shared", ["last", "layer#3"], ["layer#3", "last"]),  # depth order whatever the order asked for
    ("shared", "layer#[23]", ["layer#2", "layer#3"]),
    ("residual", "blocks.?", ["blocks.0", "blocks.1"]),
    ("residual", ["head*", "pool"], ["pool", "head.0", "head.1", "head.2", "head"]),
    ("residual", "blocks", ["pool", "blocks.0", "blocks.1", "head.1", "head.2"]),
    ("mlp", "blocks", ["0", "1", "2", "3", "4"]),
    ("vit", "blocks", ["patch", "blocks.0", "blocks.1", "norm", "head"]),
]


@pytest.mark.parametrize(("case", "wanted", "expected"), SELECTIONS)
def test_select(case: str, wanted: object, expected: list[str]) -> None:
    assert names(case, wanted) == expected


WRONG = [
    ("shared", "lyer", "there is no module 'lyer'; did you mean 'layer#"),
    ("shared", "block", "there is no module 'block'; did you mean 'blocks'"),
    ("shared", "layer#4", "there is no module 'layer#4'; did you mean 'layer#"),
    ("shared", "lasd*", r"no called module matches 'lasd\*'; did you mean 'last'"),
    ("shared", [], "cut_points is empty"),
]


@pytest.mark.parametrize(("case", "wanted", "message"), WRONG)
def test_wrong_names(case: str, wanted: object, message: str) -> None:
    with pytest.raises(rs.CutPointError, match=message):
        names(case, wanted)


def test_never_called_and_known_under_another_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
            self.alias = self.used

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.alias(x)

    model = Odd()
    found = trace(model, example_sample(model))
    with pytest.raises(rs.CutPointError, match="'unused' is never called"):
        select(model, found, ["unused"])
    assert [c.name for c in select(model, found, ["alias"])] == ["used"]


def test_where_no_module_passes_all_information_the_output_does() -> None:
    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    model = Parallel()
    assert [c.name for c in select(model, trace(model, example_sample(model)), "blocks")] == ["output"]
    assert rs.layers(model).default == ("output",)


def test_the_table() -> None:
    table = rs.layers(CASES["residual"].model(), CASES["residual"].sample(1))
    frame = table.table()
    assert list(frame.columns) == ["name", "kind", "shape", "true_cut", "depends", "default"]
    assert len(table) == len(frame) == len(list(table))
    assert list(frame.name[frame.default]) == list(table.default)
    row = frame[frame.name == "blocks.0.conv1"].iloc[0]
    assert (row.kind, row["shape"], row.true_cut) == ("Conv2d", (1, 4, 2, 2), False)
    json.dumps(table.to_dict())
    assert "blocks.0.conv1" in str(table)
    assert "in a branch" in str(table)
    assert "* = cut points of 'blocks' (5)" in str(table)
    with pytest.raises(rs.UsageError, match="the input shape of ReLU is not known"):
        rs.layers(nn.ReLU())


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("cell", ["cell#1", "cell#2"]),
        ("cell.0", ["cell#1.0", "cell#2.0"]),
        ("cell#2.1.1", ["cell#2.1.1"]),
        ("*ell", ["cell#1", "cell#2"]),
        ("*.1.1", ["cell#1.1.1", "cell#2.1.1"]),
        ("last#1", ["last"]),
        ("*2", ["conv2"]),  # and not the second call of another module
        ("*#2", ["cell#2"]),
    ],
)
def test_a_name_without_a_number_stands_for_all_calls(wanted: str, names: list[str]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.conv2, self.last = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h, (state, _) = self.cell(x)
            again, (other, _) = self.cell(h + state.mean())
            return cast(torch.Tensor, self.last(self.conv2(again) + other.mean()))

    net = Net()
    found = trace(net, example_sample(net, torch.randn(1, 3, 4)))
    assert [call.name for call in select(net, found, wanted)] == names


def test_the_table_says_how_the_input_was_read() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return mask @ self.fc(x)

    given = {"x": torch.randn(3, 3, 4), "mask": torch.ones(3, 3), "label": torch.arange(3)}
    table = rs.layers(Masked().train(), given, shared="mask")
    assert [fact.kind for fact in table.facts] == [
        FactKind.TRAINING_MODE,
        FactKind.COUNTED,
        FactKind.INPUT_LEFT_OUT,
    ]
    assert dict(table.facts[1].values) == {"name": "x", "per_sample": (), "shared": ("mask",)}
    assert table.facts[2].values["name"] == "label"
    assert str(table).endswith(table.notes[-1])
    assert not rs.layers(Masked().eval().fc, torch.ones(2, 4)).facts
