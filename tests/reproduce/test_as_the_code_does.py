"""``--as reference`` against an independent rewrite of the paper's published procedure, on small networks.

The rewrite follows the authors' code as it was read: cut a ResNet at the max-pooling, every block, the pooled features
and the class logits; for each image set all but the central patch to zero, take the Jacobian of the layer by the patch
row by row, form the Gram matrix JᵀJ, and count what ``torch.linalg.matrix_rank`` counts by default in float32, singular
values of JᵀJ above eps32·K of the largest; take the mean over the images. It uses plain autograd and NumPy alone, in
float64, so that the counts are those of the procedure and not of its rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from rankscope.loading import load_images, load_model
from rankscope.reproduce import reproduce

SIDE, IMAGES = 8, 10
NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, entering, leaving, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(leaving)
        self.short = nn.Conv2d(entering, leaving, 1, stride, bias=False)

    def forward(self, x):
        return torch.relu(self.short(x) + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    def __init__(self, depths, seed, decades):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        width = 8
        for number, (depth, leaving) in enumerate(zip(depths, (8, 12, 16, 24)), 1):
            blocks = []
            for place in range(depth):
                blocks.append(Block(width, leaving, 2 if place == 0 and number in (2, 4) else 1))
                width = leaving
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 6)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * torch.randn(len(module.running_mean)))
                module.running_var.copy_(1 + torch.rand(len(module.running_var)))
        with torch.no_grad():  # singular values over some decades, so that the tolerance decides
            self.conv1.weight.mul_(10 ** (-decades * torch.linspace(0, 1, 8)).view(-1, 1, 1, 1))
        self.input_size = (3, 32, 32)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def first(num_classes=6):
    return ResNet([2, 2, 2, 2], 1, 1.0)


def second(num_classes=6):
    return ResNet([2, 2, 2, 2], 2, 2.0)


def third(num_classes=6):
    return ResNet([2, 2, 2, 2], 3, 3.0)


def fourth(num_classes=6):
    return ResNet([2, 2, 2, 2], 4, 1.5)
"""
CODE = {"first": 11, "second": 11, "third": 11, "fourth": 11}  # cut points of the code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("code")
    rng = np.random.default_rng(5)
    for c in range(6):
        folder = root / "val" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray((rng.random((32, 32, 3)) * 255).astype("uint8")).save(folder / f"{i}.png")
    (root / "nets.py").write_text(NETS)
    return root


def code_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The authors' cut points: after the max-pooling to the class logits."""
    found = [("maxpool", model.maxpool)]
    for number in (1, 2, 3, 4):
        found += [(f"layer{number}.{i}", block) for i, block in enumerate(getattr(model, f"layer{number}"))]
    return [*found, ("avgpool", model.avgpool), ("fc", model.fc)]


def published(model: nn.Module, image: torch.Tensor) -> tuple[list[int], list[float]]:
    """Rank of every layer at one image, and how far from the threshold the nearest singular value lies."""
    top = left = (32 - SIDE) // 2
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[top : top + SIDE, left : left + SIDE] = True
    patch = image[:, inside].clone().requires_grad_()  # (3, SIDE²)
    padded = torch.zeros_like(image)
    padded = padded.masked_scatter(inside.expand_as(image), patch.reshape(-1))
    outputs: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, out: outputs.append(out)) for _, layer in code_layers(model)]
    model(padded[None])
    for handle in handles:
        handle.remove()
    ranks, nearest = [], []
    for output in outputs:
        flat = output.flatten()
        assert flat.dtype == torch.float64
        rows = torch.autograd.grad(
            flat, patch, torch.eye(len(flat), dtype=flat.dtype), is_grads_batched=True, retain_graph=True
        )[0]
        jacobian: NDArray[np.float64] = rows.flatten(1).numpy()
        size = 3 * SIDE * SIDE
        assert jacobian.shape[1] == size
        values = np.linalg.svd(jacobian.T @ jacobian, compute_uv=False)
        threshold = size * 2.0**-23 * values[0]
        ranks.append(int((values > threshold).sum()))
        nearest.append(float(np.abs(values / threshold - 1).min()))
    return ranks, nearest


@pytest.mark.parametrize("name", CODE)
def test_means_over_ten_images_are_those_of_the_rewrite(
    place: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """44 layers in all, each the mean of 10 integers."""
    spec = f"{place / 'nets.py'}:{name}"
    as_the_papers(monkeypatch, spec, CODE[name])
    given: dict[str, Any] = {"imagenet": place / "val", "only": ["ResNet-18"], "scale": "small", "device": "cpu"}
    found = reproduce("fig1a", out=tmp_path, as_printed="reference", images=IMAGES, **given)
    rows = found.values[found.values["as_printed"] == "reference"]
    loaded = load_model(spec)
    drawn = load_images(place / "val", preprocessing=loaded.preprocessing, limit=IMAGES, seed=0)
    model = loaded.model.double().eval()
    each = [published(model, image) for image in drawn.tensor.double()]
    expected = np.mean([ranks for ranks, _ in each], axis=0)
    assert list(rows["layer"]) == [layer for layer, _ in code_layers(model)]
    assert len(rows) == CODE[name]
    # rounding of float32 rows moves a squared singular value by some 1e-5 of the threshold at most; none is as near
    close = np.array([near for _, near in each]).min(axis=0) < 1e-4
    assert close.sum() <= 1
    same = rows["rank"].to_numpy() == expected
    assert (same | close).all(), [
        (layer, mine, theirs)
        for layer, mine, theirs, equal in zip(rows["layer"], rows["rank"], expected, same, strict=True)
        if not equal
    ]
    # the ranks are no trivial ones: they fall, and the tolerance cuts them below the number of rows and columns
    assert expected[-1] <= 6
    assert len(set(expected.tolist())) > 4
    # the text has other numbers at the same layers: another background, another tolerance, the largest, not the mean
    text = found.values[found.values["as_printed"] == "paper"]
    assert (text["rank"].iloc[1:6].to_numpy() != rows["rank"].iloc[:5].to_numpy()).any()


def as_the_papers(monkeypatch: pytest.MonkeyPatch, spec: str, layers: int) -> None:
    """Let a small network stand in the place of the paper's ResNet of as many layers."""
    from dataclasses import replace

    from rankscope.reproduce import networks

    stand_in = replace(networks.PAPER_NETWORKS[0], spec=spec, layers=layers)
    monkeypatch.setattr(networks, "PAPER_NETWORKS", (stand_in, *networks.PAPER_NETWORKS[1:]))
