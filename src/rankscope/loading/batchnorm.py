"""BatchNorm statistics for a network that has seen no data, whose normalisation would otherwise normalise nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rankscope._base.checks import module_of
from rankscope._base.errors import DataError, ModelError
from rankscope._base.facts import Fact, FactKind

__all__ = ["calibrate_batchnorm"]


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, batches: torch.Tensor | Iterable[torch.Tensor]) -> Fact | None:
    """Set the running statistics of every BatchNorm of ``model`` to the averages over ``batches``.

    ``batches`` is one tensor (N, C, H, W) or several; every image counts alike, whatever the batch sizes. Only the
    BatchNorm modules run in training mode, so dropout stays off; modes and momenta are restored, and after an
    exception the old statistics too. The variance of a layer is the mean over the batches of the variance within a
    batch (what training itself accumulates), so use batches of at least 8.

    Returns a fact on what was done, or None where no BatchNorm keeps statistics. Raises ``DataError`` when there is
    no batch or a batch is too small, ``ModelError`` when the statistics come out not finite (names the layer).

    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> calibrate_batchnorm(network, torch.randn(8, 1, 6, 6))["images"]
    8
    """
    module_of(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return None
    modes = {module: module.training for module in model.modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    before = {name: {k: v.clone() for k, v in layer.named_buffers(recurse=False)} for name, layer in layers.items()}
    seen = dict.fromkeys(layers, 0)
    hooks = [layer.register_forward_pre_hook(_weigher(name, seen)) for name, layer in layers.items()]
    images = 0
    try:
        model.eval()
        for layer in layers.values():
            layer.train()
        for batch in [batches] if isinstance(batches, torch.Tensor) else batches:
            if batch.shape[0]:
                _forward(model, batch)
                images += int(batch.shape[0])
        if not images:
            raise DataError("no images to set the BatchNorm statistics from; give at least one batch, or noise")
        for name, layer in layers.items():
            if seen[name] and not all(bool(torch.isfinite(v).all()) for v in layer.buffers(recurse=False)):
                raise ModelError(f"BatchNorm layer {name!r} got NaN or infinite statistics from {images} images")
    except BaseException:
        for name, layer in layers.items():
            for key, value in before[name].items():
                getattr(layer, key).copy_(value)
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
        for module, mode in modes.items():
            module.training = mode
    used = sum(count > 0 for count in seen.values())
    values = {"layers": used, "unused": len(layers) - used, "images": images, "source": "data"}
    return Fact(FactKind.BATCHNORM_SET, values)


def _weigher(name: str, seen: dict[str, int]) -> Any:
    # momentum n/total makes the exponential average the plain average over samples, for repeated calls as well
    def weigh(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        count = int(inputs[0].shape[0])
        if inputs[0].numel() == inputs[0].shape[1]:  # one value per channel has no variance, and torch refuses it
            raise DataError(
                f"a batch of {count} is too small to set the BatchNorm statistics from; give 8 or more at a time"
            )
        seen[name] += count
        layer.momentum = count / seen[name]

    return weigh


def _forward(model: nn.Module, batch: torch.Tensor) -> None:
    parameter = next(model.parameters(), None)
    if parameter is not None:
        batch = batch.to(parameter.device, parameter.dtype)
    model(batch)
