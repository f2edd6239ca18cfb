"""The last linear layer of a classifier: found by itself in timm, torchvision and Hugging Face models, and checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import DataError, ModelError

__all__ = ["find_head", "head_mismatch", "linear_parts"]

# Attributes that hold the classifier in torchvision (fc, classifier, head, heads) and Hugging Face (classifier, score)
_NAMES = ("fc", "classifier", "head", "heads", "score", "classification_head", "last_linear", "linear", "output")


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _last_linear(module: nn.Module, prefix: str) -> tuple[str, nn.Module] | None:
    """The linear layer after which the module does nothing more than reshape, by order of registration."""
    found: tuple[str, nn.Module] | None = None
    for name, child in module.named_modules():
        if _is_linear(child):
            found = (".".join(p for p in (prefix, name) if p), child)
        elif found and not list(child.children()) and not isinstance(child, nn.Flatten | nn.Identity | nn.Dropout):
            found = None  # an activation, a norm or a pool follows: that layer's output is not the logits
    return found


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """Dotted name and module of the final linear classifier of a model.

    Looks at ``get_classifier()`` (timm), then at the names torchvision and Hugging Face use, then at the last layer of
    all. A Linear or a 1×1 convolution counts; the features are what goes *into* it.

    Raises
    ------
    ModelError
        When there is none, as in a model built with ``num_classes=0`` or with several classifiers; the remedy is to
        give the head yourself.

    Examples
    --------
    >>> find_head(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    ('2', Linear(in_features=3, out_features=2, bias=True))
    """
    names = {id(module): name for name, module in model.named_modules()}
    classifier = getattr(model, "get_classifier", None)
    if callable(classifier):
        head = classifier()
        if isinstance(head, tuple | list):
            raise ModelError(
                f"{type(model).__name__} has {len(head)} classifiers ({', '.join(names.get(id(h), '?') for h in head)}"
                "); give one of them as the head"
            )
        if isinstance(head, nn.Module):
            found = _last_linear(head, names.get(id(head), ""))
            if found:
                return found
    for name in _NAMES:
        child = getattr(model, name, None)
        if isinstance(child, nn.Module):
            found = _last_linear(child, name)
            if found:
                return found
    found = _last_linear(model, "")
    if found is None:
        raise ModelError(
            f"{type(model).__name__} has no final linear classifier that can be found; give the head itself "
            "(an nn.Linear, or any callable from features to logits)"
        )
    return found


def linear_parts(head: Any, width: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(weight c × d, bias c) in float32 of a linear head, or None for a callable that is not one.

    ``head`` may be a Linear, a 1×1 convolution, a (weight, bias) pair, or a model, whose head is then found.

    Raises
    ------
    DataError
        When the head takes features of another width.
    """
    parts: tuple[torch.Tensor, torch.Tensor | None] | None = None
    if isinstance(head, tuple | list) and len(head) == 2:
        parts = (torch.as_tensor(head[0]), None if head[1] is None else torch.as_tensor(head[1]))
    elif isinstance(head, nn.Module) and _is_linear(head):
        weight: torch.Tensor = head.weight  # type: ignore[assignment]
        parts = (weight.flatten(1), head.bias)  # type: ignore[assignment]
    if parts is None:
        return None
    weight, bias = parts
    if weight.ndim != 2 or weight.shape[1] != width:
        raise DataError(
            f"the head takes features of width {tuple(weight.shape)[-1]}, these have {width}; give the features that "
            "go into the head, of the same model"
        )
    weight = weight.detach().to(torch.float32)
    zero = torch.zeros(weight.shape[0], device=weight.device)
    return weight, zero if bias is None else bias.detach().to(torch.float32)


def head_mismatch(
    predict: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    logits: torch.Tensor,
    *,
    limit: float = 1e-3,
) -> float:
    """Largest |head(features) − stored logits|, as a share of the largest stored |logit|.

    Raises
    ------
    DataError
        Above ``limit``: the head is not the one that made the logits (float32 alone explains about 1e-6, TF32 or
        half precision about 1e-3).
    """
    if len(logits) != len(features):
        raise DataError(f"{len(logits)} rows of logits for {len(features)} samples; give one row a sample")
    worst, scale = 0.0, max(float(logits.abs().max()), torch.finfo(torch.float32).tiny)
    for a in range(0, len(features), 8192):
        made = predict(features[a : a + 8192])
        stored = logits[a : a + 8192].to(made.device, made.dtype)
        if made.shape != stored.shape:
            raise DataError(f"the head gives {made.shape[1]} classes, the stored logits have {stored.shape[1]}")
        difference = float((made - stored).abs().max())
        worst = worst if difference <= worst else difference  # a NaN is kept
    if not worst <= limit * scale:  # also for NaN
        raise DataError(
            f"the head does not reproduce the stored logits: they differ by up to {worst:.3g} "
            f"({worst / scale:.1%} of the largest logit); give the head and the features of the same model"
        )
    return worst / scale
