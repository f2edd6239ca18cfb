"""A small image folder, a small network whose head is fitted to it, and its checkpoint."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from rankscope.features import find_head
from rankscope.loading import calibrate_batchnorm, load_images, load_model

CLASSES, EACH = 10, 4
NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


def small(num_classes=10):
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(Block(8), Block(8)),
        nn.Conv2d(8, 24, 2, stride=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes),
    )
    with torch.no_grad():  # singular values over six decades, so that tolerances differ
        model[2].weight.mul_(10 ** (-torch.arange(24.0) / 4).view(-1, 1, 1, 1))
    model.input_size = (3, 32, 32)
    return model
"""


@dataclass(frozen=True)
class World:
    """Where the images, the network's file and the checkpoints lie."""

    images: Path
    net: str
    weights: Path

    def copy(self, folder: Path) -> World:
        """The same elsewhere, to be damaged."""
        shutil.copytree(self.images, folder / "val")
        shutil.copytree(self.weights, folder / "weights")
        return World(folder / "val", self.net, folder / "weights")


def write_images(root: Path) -> None:
    """Ten classes, each a random 4×4 pattern with noise, enlarged; 80×72 pixels."""
    rng = np.random.default_rng(0)
    for c in range(CLASSES):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        pattern = rng.random((4, 4, 3))
        for i in range(EACH):
            noisy = np.clip(pattern + 0.1 * rng.standard_normal((4, 4, 3)), 0, 1)
            picture = Image.fromarray((noisy * 255).astype("uint8")).resize((80, 72), Image.Resampling.BICUBIC)
            picture.save(folder / f"{i}.png")


def fitted(spec: str, images: Path, file: Path) -> None:
    """Random weights with statistics of these images and a ridge regression as the head, saved as a checkpoint."""
    loaded = load_model(spec, weights="random", num_classes=CLASSES)
    data = load_images(images, preprocessing=loaded.preprocessing)
    calibrate_batchnorm(loaded.model, [data.tensor])
    head = find_head(loaded.model)[1]
    seen: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        loaded.model(data.tensor)
    handle.remove()
    x = seen[0].double()
    mean = x.mean(0)
    centred = x - mean
    wanted = 8 * torch.nn.functional.one_hot(torch.tensor(data.labels), CLASSES).double() - 4
    gram = centred.T @ centred
    ridge = gram + 1e-3 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    weight = torch.linalg.solve(ridge, centred.T @ wanted)
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(wanted.mean(0) - mean @ weight)
    save_file({k: v.contiguous() for k, v in loaded.model.state_dict().items()}, file)
