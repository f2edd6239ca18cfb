"""Folders that timm saved (``timm.models.save_for_hf``), as transformers' wrapper takes them."""

from __future__ import annotations

from typing import Any

__all__ = ["is_timm_config", "own_size", "without_repeats"]

_OF_TIMM = "timm_wrapper"
_REPEATED = ("num_classes", "pretrained")  # the wrapper gives them itself, and a call takes an argument once


def is_timm_config(config: Any) -> bool:
    return getattr(config, "model_type", None) == _OF_TIMM


def without_repeats(config: Any, num_classes: int | None) -> Any:
    """The configuration without the arguments of ``model_args`` that transformers gives to timm itself.

    timm saves all arguments a model was made with. Of two numbers of classes the one of ``model_args`` holds, as in
    timm, unless ``num_classes`` says another.
    """
    if not is_timm_config(config):
        return config
    given = getattr(config, "model_args", None) or {}
    wanted = given.get("num_classes") if num_classes is None else num_classes
    # this class of configuration takes num_labels=0 as if none were given
    if isinstance(wanted, int) and wanted != config.num_labels:
        config.num_labels = wanted
    if given:
        config.model_args = {name: value for name, value in given.items() if name not in _REPEATED}
    return config


def own_size(config: Any) -> dict[str, Any] | None:
    """How timm prepares pictures (``pretrained_cfg``), with the size and the channels that the model was made for.

    timm saves those of the architecture beside the ``img_size`` and ``in_chans`` of ``model_args``. ``None`` where
    they agree or nothing is known.
    """
    prepared, given = getattr(config, "pretrained_cfg", None), getattr(config, "model_args", None) or {}
    if not is_timm_config(config) or not isinstance(prepared, dict) or "input_size" not in prepared:
        return None
    channels, height, width = prepared["input_size"]
    side = given.get("img_size") or (height, width)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    made = [given.get("in_chans") or channels, height, width]
    if made == list(prepared["input_size"]) and ("img_size" not in given or "test_input_size" not in prepared):
        return None
    kept = {name: value for name, value in prepared.items() if name != "test_input_size"}
    return {**kept, "input_size": made}
