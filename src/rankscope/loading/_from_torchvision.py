"""Classification models of torchvision, with the preprocessing of their weights."""

from __future__ import annotations

import warnings
from typing import Any

from rankscope._base.errors import ModelError, UsageError, nearest, type_and_line
from rankscope._base.facts import Fact
from rankscope.loading._hub import download
from rankscope.loading._random import open_branches, seeded
from rankscope.loading._remedies import FROM_FILE, RANDOM
from rankscope.loading._torchvision import ensure_torchvision
from rankscope.loading.preprocessing import Preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.weights import load_weights

__all__ = ["check_torchvision", "from_torchvision"]

_USUAL = "IMAGENET1K_V1"


def from_torchvision(
    name: str, *, weights: str, seed: int, num_classes: int | None, weights_key: str | None = None
) -> LoadedModel:
    """``torchvision.models.get_model``; ``name`` may end in the weights' name (``resnet50.IMAGENET1K_V2``).

    Without it the original ``IMAGENET1K_V1`` weights are taken, which papers refer to, or torchvision's default where
    there are none of that name. Their transform applies to random weights too.
    """
    ensure_torchvision()
    from torchvision import models

    base = name.partition(".")[0]
    chosen = check_torchvision(name)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    facts: list[Fact] = []
    if weights == "pretrained":
        remedy = f"use {RANDOM}, or download {chosen.url} on a machine with access and give {FROM_FILE}"
        with download(f"pretrained weights of torchvision:{name}", remedy=remedy, host="download.pytorch.org"):
            model = models.get_model(base, weights=chosen, progress=False)
        if num_classes == 0:
            _behead(model)
        described = f"pretrained ({chosen.name})"
    else:
        model = _build(models, base, options, seed)
        if weights == "random":
            facts = open_branches(model, seed=seed)
            described = f"random, seed {seed}"
        else:
            described, kept = load_weights(model, weights, key=weights_key)
            facts = list(kept)
    preprocessing = _preprocessing(chosen)
    trained = weights != "random" and num_classes is None
    return LoadedModel(
        model=model.eval(),
        name=f"torchvision:{name}",
        source="torchvision",
        weights=described,
        input_size=preprocessing.input_size,
        preprocessing=preprocessing,
        class_names=tuple(chosen.meta["categories"]) if trained else None,
        random=weights == "random",
        facts=tuple(facts),
    )


def check_torchvision(name: str) -> Any:
    """The weights that ``name`` means. Raises ``UsageError`` for a model or weights that torchvision does not know."""
    ensure_torchvision()
    from torchvision import models

    base, _, variant = name.partition(".")
    known = models.list_models(module=models)
    if base not in known:
        raise UsageError(f"torchvision has no classification model {base!r}; {nearest(base, known)}")
    choices = models.get_model_weights(base)
    if variant and variant not in choices.__members__:
        raise UsageError(
            f"torchvision has no weights {variant!r} for {base!r}; {nearest(variant, choices.__members__)}"
        )
    return choices[variant] if variant else choices.__members__.get(_USUAL, choices.DEFAULT)


def _preprocessing(chosen: Any) -> Preprocessing:
    transform = chosen.transforms()
    crop = transform.crop_size
    side = int(crop[0]) if isinstance(crop, list | tuple) else int(crop)
    text = (
        f"torchvision {chosen.name}: {transform.interpolation.value} resize {transform.resize_size[0]}, "
        f"crop {side}×{side}, mean {tuple(transform.mean)}, std {tuple(transform.std)}"
    )
    return Preprocessing(text, (3, side, side), transform)


def _behead(model: Any) -> Any:
    """The backbone alone: the last layer, which torchvision's models always have, becomes the identity."""
    from torch import nn

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    holder, _, last = layers[-1][0].rpartition(".")
    setattr(model.get_submodule(holder), last, nn.Identity())
    return model


def _build(models: Any, name: str, options: dict[str, Any], seed: int) -> Any:
    try:
        with seeded(seed), warnings.catch_warnings():
            # googlenet and inception_v3 announce that their slow initialisation will one day change
            warnings.simplefilter("ignore", FutureWarning)
            model = models.get_model(name, weights=None, **({} if options.get("num_classes") == 0 else options))
            return _behead(model) if options.get("num_classes") == 0 else model
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        raise ModelError(f"torchvision cannot build {name!r}: {type_and_line(error)}") from error
