"""The networks that are measured, trained on fractals and untrained, and the images that they are measured on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rankscope.datasets import FractalSpec, fractal_images
from rankscope.loading import calibrate_batchnorm, ensure_torchvision
from rankscope.loading._random import open_branches, seeded

__all__ = ["NAMES", "Network", "Training", "pictures", "train", "trained", "untrained"]

NAMES = ("resnet18", "resnet50", "vit_tiny_patch16_224")
_TRAIN = Path(__file__).parents[2] / "examples/fractals/train.py"
_SEED = 1  # of untrained networks
_LEAST = 16  # pixels of the smallest fractal image: smaller ones than twice that are not halved in training


@dataclass(frozen=True)
class Training:
    """How a network is trained: seconds on a GPU, or steps where a run has to be short."""

    spec: FractalSpec
    device: str
    seconds: float = 60.0
    steps: int | None = None
    batch: int | None = None
    test_per_class: int = 10

    def command(self, name: str, file: Path) -> list[str]:
        """``examples/fractals/train.py`` in a process of its own: it changes settings of torch."""
        asked: dict[str, Any] = {
            "model": name,
            "out": file,
            "device": self.device,
            "test-per-class": self.test_per_class,
            "classes": self.spec.classes,
            "size": self.spec.size,
            **({"minutes": self.seconds / 60} if self.steps is None else {"steps": self.steps}),
            **({} if self.batch is None else {"batch": self.batch}),
            **({"half": 0} if self.spec.size < 2 * _LEAST else {}),
        }
        given = [text for key, value in asked.items() for text in (f"--{key}", str(value))]
        return [sys.executable, str(_TRAIN), *given, *(["--float32"] if self.device == "cpu" else [])]


@dataclass(frozen=True)
class Network:
    """A network with what is known of it. ``key`` changes with its weights, of which it is a checksum."""

    name: str
    weights: str
    model: nn.Module
    key: str
    record: dict[str, Any]


def _architecture(name: str, spec: FractalSpec) -> nn.Module:
    ensure_torchvision()
    sized = {} if name.startswith("resnet") else {"img_size": spec.size}
    return timm.create_model(name, pretrained=False, num_classes=spec.classes, **sized).eval()


def train(name: str, file: Path, training: Training) -> None:
    """Train, unless the file of weights is there."""
    if not file.exists():
        unfinished = _unfinished(file)
        subprocess.run(training.command(name, unfinished), check=True)
        unfinished.replace(file)


def trained(name: str, file: Path, spec: FractalSpec) -> Network:
    """The network with the weights that ``train`` wrote, and what was written of its training."""
    model = _architecture(name, spec)
    model.load_state_dict(load_file(file))
    with safe_open(file, "pt") as opened:
        written = {key: _plain(value) for key, value in (opened.metadata() or {}).items()}
    return Network(name, "trained", model, _key(model), written)


def untrained(name: str, file: Path, spec: FractalSpec, device: str) -> Network:
    """Random weights; BatchNorm has seen 256 images. The file keeps them, as other devices give other last bits.

    timm starts the last norm of every residual branch at zero, so an untrained ResNet would be a chain of identities:
    those norms become one (``zero_init_last=False``), and the branches are open.
    """
    with seeded(_SEED):
        model = _architecture(name, spec)
    if file.exists():
        model.load_state_dict(load_file(file))
    else:
        open_branches(model, seed=_SEED)
        count = min(256, 64 * spec.classes)
        labels, numbers = torch.arange(count) % spec.classes, torch.arange(count) // spec.classes
        images = fractal_images(spec, labels, numbers, split="validation", device=device)
        calibrate_batchnorm(model.to(device), images.split(64))
        unfinished = _unfinished(file)
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, unfinished)
        unfinished.replace(file)
    return Network(name, "untrained", model, _key(model), {"seed": _SEED, "data": asdict(spec)})


def _unfinished(file: Path) -> Path:
    """Where a file is written until it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.with_name(f"unfinished-{file.name}")


def pictures(spec: FractalSpec, count: int) -> torch.Tensor:
    """One test image of each of ``count`` classes, spread over all classes."""
    labels = torch.arange(count) * (spec.classes // count)
    return fractal_images(spec, labels, torch.zeros_like(labels), split="test")


def _key(model: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
