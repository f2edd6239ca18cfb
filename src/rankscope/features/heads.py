"""The last linear layer of a classifier: found by itself in timm, torchvision and Hugging Face models, and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from rankscope._base.arrays import dense
from rankscope._base.dtypes import dtype_name
from rankscope._base.errors import DataError, ModelError, UsageError
from rankscope.features._inputs import first_bad_row
from rankscope.features.precision import kept_whole
from rankscope.slicing import evaluation_mode
from rankscope.slicing.looking import changing_hooks
from rankscope.slicing.values import is_array

__all__ = [
    "evaluated_copy",
    "find_head",
    "head_mismatch",
    "linear_parts",
    "only_its_weights",
    "refuse_hooks",
    "weight_and_bias",
]

# Attributes that hold the classifier in torchvision (fc, classifier, head, heads) and Hugging Face (classifier, score)
_NAMES = ("fc", "classifier", "head", "heads", "score", "classification_head", "last_linear", "linear", "output")


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


# Where the forward of a layer that multiplies by its weight and adds its bias is defined
_PLAIN = ("torch.nn.modules.linear", "torch.nn.modules.conv", "timm.layers.linear")


def only_its_weights(module: nn.Module) -> bool:
    """Whether a linear layer multiplies by its weight and adds its bias, and does nothing else.

    A class with a forward of its own, such as a cosine classifier, may normalise, scale or shift beside it, and hooks
    may too; torch's own that make the weight (``weight_norm``, ``spectral_norm``) do not.

    >>> only_its_weights(nn.Linear(2, 2)), only_its_weights(nn.Sequential(nn.Linear(2, 2)))
    (True, False)
    """
    return _has_plain_forward(module) and not _hooks(module)


def refuse_hooks(head: Any) -> None:
    """Raise ``UsageError`` for a linear layer that hooks alone keep from being its weight and bias."""
    if isinstance(head, nn.Module) and _has_plain_forward(head) and _hooks(head):
        raise UsageError(
            "head has forward hooks, which may change what it gives; remove them, or give its (weight, bias)"
        )


def _has_plain_forward(module: nn.Module) -> bool:
    own = "forward" in vars(module) or type(module).forward.__module__ not in _PLAIN
    padded = isinstance(module, nn.Conv2d) and module.padding not in ((0, 0), "valid", "same")
    return _is_linear(module) and not (own or padded)


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in changing_hooks(module) if not isinstance(hook, WeightNorm | SpectralNorm)]


def weight_and_bias(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Both as the next call in evaluation mode will have them: torch's hooks make them anew from what was loaded since.

    In training mode a parametrisation such as ``spectral_norm`` would give another weight at every look at it.
    """
    # what is in evaluation mode is read as it is: a thread that writes for a measurement has no turn of its own
    training = any(part.training for part in module.modules())
    with evaluation_mode(module) if training else nullcontext():
        parts: dict[str, Any] = {"weight": module.weight, "bias": module.bias}
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                parts[hook.name] = hook.compute_weight(module)
            elif isinstance(hook, SpectralNorm):
                parts[hook.name] = hook.compute_weight(module, do_power_iteration=False)
    return parts["weight"], parts["bias"]


def _last_linear(module: nn.Module, prefix: str) -> tuple[str, nn.Module] | None:
    """The linear layer after which the module does nothing more than reshape, by order of registration."""
    found: tuple[str, nn.Module] | None = None
    inside = None  # the linear layer whose own parts follow: parametrisations make its weight
    for name, child in module.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if _is_linear(child):
            inside = f"{name}." if name else ""
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
    """(weight c × d, bias c) of a linear head, in float32 or float64, or None for a callable that is not one.

    ``head`` may be a Linear, a 1×1 convolution, a weight, or a (weight, bias) pair. One output becomes the two of a
    binary classifier.

    Raises
    ------
    DataError
        When the head takes features of another width, is complex, or holds a NaN or an infinity (its class is named).
    """
    parts: tuple[torch.Tensor, torch.Tensor | None] | None = None
    if isinstance(head, tuple | list) and len(head) == 2:
        parts = (dense(head[0], "the head's weight"), None if head[1] is None else dense(head[1], "the head's bias"))
    elif is_array(head):
        parts = (dense(head, "the head's weight"), None)
    elif isinstance(head, nn.Module) and _is_linear(head):
        weight, bias = weight_and_bias(head)
        parts = (weight.flatten(1), bias)
    if parts is None:
        return None
    weight, bias = parts
    if weight.ndim != 2 or weight.shape[1] != width:
        raise DataError(
            f"the head takes features of width {tuple(weight.shape)[-1]}, these have {width}; give the features that "
            "go into the head, of the same model"
        )
    bias = torch.zeros(len(weight), device=weight.device, dtype=weight.dtype) if bias is None else bias
    if bias.shape != weight.shape[:1]:
        raise DataError(f"the head's bias has shape {tuple(bias.shape)}; {len(weight)} classes need ({len(weight)},)")
    for name, part in (("weight", weight), ("bias", bias)):
        if part.is_complex():
            raise DataError(f"the head's {name} is {dtype_name(part.dtype)}; give a real one")
        bad = first_bad_row(part.detach())
        if bad is not None:
            raise DataError(f"the head's {name} holds a NaN or infinite value (class {bad}); fix the head")
    weight, bias = kept_whole(weight.detach()), kept_whole(bias.detach())
    dtype = torch.promote_types(weight.dtype, bias.dtype)
    weight, bias = weight.to(dtype), bias.to(dtype)
    if len(weight) == 1:  # class 0 has the logit 0: its odds against class 1 are what one output gives
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return weight, bias


def evaluated_copy(head: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, torch.dtype]:
    """A copy in evaluation mode, its floating parameters in ``dtype`` or wider, and that dtype; the caller's stays.

    A bfloat16 head on float32 features is computed with in float32, and dropout and batch statistics are off.
    """
    try:
        made = copy.deepcopy(head)
    except Exception as error:  # whatever a module's attributes raise
        raise ModelError(
            f"the head {type(head).__name__} cannot be copied ({error}); give it as a function: lambda rows: head(rows)"
        ) from error
    held = [t.dtype for t in (*made.parameters(), *made.buffers()) if t.is_floating_point()]
    for other in held:
        dtype = torch.promote_types(dtype, other)
    return made.to(dtype).eval(), dtype


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
    if logits.ndim != 2 or logits.is_complex():
        raise DataError(f"the stored logits are {logits.dtype} of shape {tuple(logits.shape)}; give (samples, classes)")
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)  # as of a head with one output
    bad = first_bad_row(logits)
    if bad is not None:
        raise DataError(
            f"the stored logits of sample {bad} hold a NaN or infinite value; fix the computation behind them"
        )
    limit = max(limit, 4 * torch.finfo(logits.dtype).eps) if logits.is_floating_point() else limit
    if len(logits) != len(features):
        raise DataError(f"{len(logits)} rows of logits for {len(features)} samples; give one row per sample")
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
