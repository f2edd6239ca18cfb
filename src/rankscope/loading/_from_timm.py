"""Models of timm, with timm's own preprocessing."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from rankscope._base.errors import ModelError, UsageError, nearest, type_and_line
from rankscope._base.facts import Fact
from rankscope.loading._hub import download
from rankscope.loading._random import open_branches, seeded
from rankscope.loading._remedies import FROM_FILE, RANDOM
from rankscope.loading._torchvision import ensure_torchvision
from rankscope.loading.preprocessing import Preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.weights import Translation, load_weights

__all__ = ["build_timm", "check_timm", "from_timm", "is_timm", "timm_class_names", "timm_preprocessing"]


def is_timm(name: str) -> bool:
    """Whether timm knows a model of this name (a pretrained tag after a dot may follow)."""
    ensure_torchvision()
    import timm

    return bool(timm.is_model(name))


def from_timm(
    name: str, *, weights: str, seed: int, num_classes: int | None, weights_key: str | None = None
) -> LoadedModel:
    """``timm.create_model`` with pretrained weights, random ones, or those of a file."""
    ensure_torchvision()
    import timm

    check_timm(name, pretrained=weights == "pretrained")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    facts: list[Fact] = []
    if weights == "pretrained":
        command = (
            f"import timm, torch; torch.save(timm.create_model('{name}', pretrained=True).state_dict(), 'FILE.pth')"
        )
        remedy = f'use {RANDOM}, or run python -c "{command}" on a machine with access and give {FROM_FILE}'
        with download(f"pretrained weights of timm:{name}", remedy=remedy):
            model: Any = timm.create_model(name, pretrained=True, **options)
        tag = (model.pretrained_cfg or {}).get("tag", "")
        described = f"pretrained ({tag})" if tag else "pretrained"
    else:
        model = build_timm(name, options, seed)
        if weights == "random":
            facts = open_branches(model, seed=seed)
            described = f"random, seed {seed}"
        else:
            described, kept = load_weights(model, weights, key=weights_key, translate=_translation(model))
            facts = list(kept)
    model.eval()
    preprocessing = timm_preprocessing(model)
    names = None if weights == "random" or num_classes is not None else timm_class_names(model)
    return LoadedModel(
        model=model,
        name=f"timm:{name}",
        source="timm",
        weights=described,
        input_size=preprocessing.input_size,
        preprocessing=preprocessing,
        class_names=names,
        random=weights == "random",
        facts=tuple(facts),
    )


def timm_preprocessing(model: Any) -> Preprocessing:
    """The evaluation transform of ``timm.data.resolve_model_data_config``."""
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    config = resolve_model_data_config(model)
    size = tuple(int(v) for v in config["input_size"])

    # made on first use: for one channel timm's normalisation constants may not fit yet. A cache and not a list, so
    # that a used transform has the identity of a fresh one
    @cache
    def transform() -> Any:
        return create_transform(**config, is_training=False)

    def apply(image: Any) -> Any:
        return transform()(image)

    mean, std = (tuple(round(float(v), 4) for v in config[key]) for key in ("mean", "std"))
    text = (
        f"timm: {config['interpolation']} resize, {config['crop_mode']} crop {size[1]}×{size[2]} "
        f"(crop {config['crop_pct']:g}), mean {mean}, std {std}"
    )
    return Preprocessing(text, (size[0], size[1], size[2]), apply)


def check_timm(name: str, *, pretrained: bool = False) -> None:
    """Raise ``UsageError`` for a model or a tag that timm does not know, and ``ModelError`` where weights are wanted
    and it has none. Names on a hub or in a folder pass.
    """
    ensure_torchvision()
    import timm

    if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UsageError(f"timm has no model {base!r}; {nearest(base, timm.list_models())}")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}*") if n.partition(".")[0] == base]
    if tag and tag not in tags:
        raise UsageError(f"timm has no weights {tag!r} for {base!r}; {nearest(tag, tags) if tags else 'it has none'}")
    if pretrained and not tags:
        raise ModelError(f"timm has no pretrained weights for {base!r}; use {RANDOM} or {FROM_FILE}")


def build_timm(name: str, options: dict[str, Any], seed: int) -> Any:
    """``timm.create_model`` with random weights from ``seed``. Raises ``ModelError`` where timm cannot."""
    import timm

    try:
        with seeded(seed):
            return timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, TypeError, ValueError, ImportError, OSError) as error:
        raise ModelError(f"timm cannot build {name!r}: {type_and_line(error)}") from error


def _translation(model: Any) -> Translation | None:
    """timm's own mapping of other code bases' names, which stands beside the model's class."""
    found = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    return found if callable(found) else None


def timm_class_names(model: Any) -> tuple[str, ...] | None:
    """Names of ImageNet's classes in the order of the logits, where timm knows which subset a model was trained on."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return tuple(str(info.index_to_description(i)) for i in range(info.num_classes()))
