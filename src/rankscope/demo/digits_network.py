"""A small residual network for 8×8 digits, its trained weights in the package: the full Jacobian of it is exact.

Its input has 64 dimensions, so the Jacobian of every sub-network is at most 1,024 × 64 and its rank needs no patch and
no sketch. ``examples/digits/train.py`` made the weights; their recipe and accuracy are in the file's metadata.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rankscope._base.errors import UsageError, nearest
from rankscope.loading.digits import digits_of

__all__ = ["DigitsNetwork", "DigitsSplit", "digits_network", "digits_split", "weights_path"]


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut. Every norm and every ReLU is a module of its own."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            projection = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(branch + self.shortcut(x))


class DigitsNetwork(nn.Module):
    """(N, 1, 8, 8) images in [0, 1] → (N, 10) logits: stem, three stages of two residual blocks, pool, linear."""

    input_size = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.layer3(self.layer2(self.layer1(self.stem(x))))
        logits: torch.Tensor = self.fc(self.flatten(self.pool(features)))
        return logits


class DigitsSplit(NamedTuple):
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels (N,) int64, apart for training and for holding out."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    held_out_images: torch.Tensor
    held_out_labels: torch.Tensor


def weights_path() -> Path:
    """Where the shipped weights lie."""
    return Path(str(resources.files("rankscope.demo") / "digits.safetensors"))


def digits_network(weights: str = "trained", *, seed: int = 0) -> DigitsNetwork:
    """The network in evaluation mode, with the shipped weights or with PyTorch's own initialisation.

    ``weights`` is ``"trained"`` or ``"random"``; ``seed`` decides the random ones, and leaves the global random state
    alone. Random weights come with untouched BatchNorm statistics (mean 0, variance 1): pass images through
    ``rankscope.loading.calibrate_batchnorm`` before measuring. Raises ``UsageError`` for another name.

    >>> network = digits_network()
    >>> network(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    if weights not in ("trained", "random"):
        raise UsageError(f"digits weights {weights!r} are unknown; {nearest(str(weights), ('trained', 'random'))}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = DigitsNetwork()
    if weights == "trained":
        from safetensors.torch import load_file

        network.load_state_dict(load_file(weights_path()))
    return network.eval()


def digits_split() -> DigitsSplit:
    """scikit-learn's 1,797 digits, a quarter of each class (450 images) held out; the same split on every call.

    The shipped weights never saw the held-out images.

    >>> [len(part) for part in digits_split()]
    [1347, 1347, 450, 450]
    """
    parts = [digits_of("digits:train"), digits_of("digits")]
    tensors = [
        (torch.from_numpy(part.images).to(torch.float32).div_(16).unsqueeze(1), torch.from_numpy(part.labels).clone())
        for part in parts
    ]
    return DigitsSplit(*tensors[0], *tensors[1])
