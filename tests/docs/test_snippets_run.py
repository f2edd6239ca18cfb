"""Every block of Python in README and documentation runs, and prints what the page shows below it or behind it.

The blocks of a page share one namespace. What a page presumes a reader to have is given here, by the first line of the
block that needs it; a block that is not listed and does not run, fails the test of its page.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from documented import Snippet, pages, snippets
from documented_world import NETS
from torch import nn

import rankscope as rs
from rankscope.demo.digits_network import digits_network, digits_split

# numbers that would take longer than a second or two, and networks that have to be downloaded
SHORTER = {
    '"timm:resnet18"': '"nets/small.py:resnet"',
    "2, 3, 224, 224": "2, 3, 32, 32",
    "samples=5000": "samples=200",
    "input_shape=(64, 8, 8), samples=1000": "input_shape=(4, 4, 4), samples=30",
    "every=100": "every=2",
    'probe_all(scale="small")': 'probe_all(["relu", "fc"], input_shape=(4, 4, 4), samples=20)',
    'reproduce("fig1d",': 'reproduce("fig1d", scale="small",',
}


def digits() -> dict[str, Any]:
    """The trained digits network, some held-out digits, and what is collected of them."""
    split = digits_split()
    images, labels = split.held_out_images[:150], split.held_out_labels[:150]
    dataset = list(zip(images, labels.tolist(), strict=True))
    run = rs.collect(digits_network(), dataset, out="runs/digits", progress=False)
    return {
        "rs": rs,
        "torch": torch,
        "np": np,
        "model": digits_network(),
        "images": images[:8],
        "dataset": dataset[:40],
        "run": run,
    }


def photographs() -> dict[str, Any]:
    model = small_net("resnet")
    image, other, v = torch.randn(3, 3, 32, 32)
    J = rs.linear_map(model, image[None], cut_points=["layer1", "layer4", "output"])
    u = torch.randn(J.shape[0])
    return {"model": model, "images": torch.randn(2, 3, 32, 32), "image": image, "other": other, "v": v, "u": u}


def small_net(name: str) -> nn.Module:
    space: dict[str, Any] = {"__file__": str(Path("nets/small.py").resolve())}
    exec(NETS, space)
    found: nn.Module = space[name]()
    return found.eval()


def blocks_of_one_width() -> dict[str, Any]:
    return {"model": small_net("vit"), "images": torch.randn(1, 3, 32, 32)}


def profiles() -> dict[str, Any]:
    x = torch.randn(40, 6)
    nets = [nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2)]
    made = {name: rs.feature_rank(net, x) for name, net in zip(("plain", "skip"), nets, strict=True)}
    return {"rs": rs, **made}


def training() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def step(model: nn.Module, batch: torch.Tensor) -> None:
        model(batch).square().mean().backward()

    return {
        "rs": rs,
        "model": model,
        "probe_images": torch.randn(20, 6),
        "loader": torch.randn(4, 10, 6),
        "train_step": step,
    }


def lightning() -> dict[str, Any]:
    return {"lightning": pytest.importorskip("lightning")}


class MyBlock(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def block() -> dict[str, Any]:
    return {"MyBlock": MyBlock, "activations": torch.randn(30, 4, 4, 4)}


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.layer(x)
        y = y if t is None else y * t[:, None, None]
        return y if mask is None else mask @ y


def arguments() -> dict[str, Any]:
    return {"model": Timed(), "x": torch.randn(3, 5, 4), "t": torch.rand(3) + 1, "mask": torch.eye(5)}


def text() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    made = transformers.AutoModel.from_pretrained("FOLDER", attn_implementation="eager")
    return {"model": made.eval(), "tokenizer": transformers.AutoTokenizer.from_pretrained("FOLDER")}


def matrices() -> dict[str, Any]:
    return {"matrices": [*np.random.default_rng(0).standard_normal((5, 6, 6))]}


def checkpoints() -> dict[str, Any]:
    Path("checkpoints").mkdir(exist_ok=True)
    for step in (0, 5):
        torch.save(digits_network("random", seed=step).state_dict(), f"checkpoints/step{step}.pt")
    images = digits_split().held_out_images[:20]
    given: dict[str, Any] = {"rs": rs, "model": digits_network(), "images": images}
    return {**given, "other": rs.watch("checkpoints", given["model"], images, progress=False)}


# the first words of a block, and what it presumes
PRESUMED: dict[str, Callable[[], dict[str, Any]]] = {
    "run = rs.collect(": digits,
    "found = rs.compare({": profiles,
    "table = rs.independence_deficit(run": digits,
    "profile = rs.feature_rank(model": digits,
    "J = rs.linear_map(": lambda: {**digits(), **photographs()},
    "monitor = rs.RankMonitor(": training,
    "from rankscope.integrations.lightning": lightning,
    "import rankscope as rs\n\nresult = rs.probe": block,
    "profile = rs.jacobian_rank(model, images, columns=rs.Patch(16))": lambda: {**digits(), **photographs()},
    'rs.jacobian_rank(model, {"x": x, "t": t}': arguments,
    "ids = tokenizer(": text,
    "profile = rs.jacobian_rank(model, images)\n": digits,
    "found = rs.chain_exponents(model": blocks_of_one_width,
    "rs.theory.predicted_rank(": matrices,
    'run = rs.watch("checkpoints"': checkpoints,
}


def shown(snippet: Snippet) -> list[str]:
    """What the page says that the block prints, without what may depend on the processor: bounds and flags."""
    rows = [re.match(r"\S+\s+[\d,]+(\s+[\d.]+){3}(?=\s+\[)", line) for line in snippet.printed.splitlines()]
    behind = re.findall(r"^print\(.*\)  # (\d.*)$", snippet.code, re.MULTILINE)
    return [row.group() for row in rows if row] + behind


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page", [page for page in pages() if snippets(page)], ids=lambda page: page.stem)
def test_the_snippets_of_a_page(page: Path, here: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page):
        for first, presumed in PRESUMED.items():
            if snippet.code.startswith(first):
                space.update(presumed())
        code = snippet.code
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), space)
        said = " ".join(printed.getvalue().split())
        for line in shown(snippet):
            assert " ".join(line.split()) in said, f"{page.name}: {said}"
    plt.close("all")


def test_the_tables_have_no_row_too_many() -> None:
    blocks = [snippet for page in pages() for snippet in snippets(page)]
    assert len(blocks) > 20
    for first in PRESUMED:
        assert any(block.code.startswith(first) for block in blocks), first
    for long in SHORTER:
        assert any(long in block.code for block in blocks), long
    assert sum(len(shown(block)) for block in blocks) >= 5
