"""Hugging Face models: from the hub, a local folder, or an architecture's default configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from rankscope._base.errors import ModelError, UsageError, first_line, nearest, parameter, type_and_line
from rankscope._base.facts import Fact, FactKind
from rankscope.loading._hf_folder import check_files, damaged_json, damaged_weights, preprocessing_file
from rankscope.loading._hf_timm import is_timm_config, own_size, without_repeats
from rankscope.loading._hub import download
from rankscope.loading._random import open_branches, seeded
from rankscope.loading._remedies import RANDOM
from rankscope.loading._torchvision import ensure_torchvision
from rankscope.loading.preprocessing import Preprocessing, plain_preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.weights import MisfitError, Weights, load_weights, read_weights

__all__ = ["from_hf"]

# Forward-mode derivatives need attention and expert layers as plain operators.
_PLAIN = {"attn_implementation": "eager"}


def from_hf(
    name: str, *, weights: str, seed: int, num_classes: int | None, weights_key: str | None = None
) -> LoadedModel:
    """``name`` is a hub name, a local folder with a ``config.json``, or a model type such as ``vit`` (no weights).

    The class is the one the configuration names, else the image classifier of that architecture, else the bare model.
    Code from the hub is never run.
    """
    ensure_torchvision()
    transformers = _transformers()
    folder = Path(name).expanduser()
    local = folder.is_dir()
    where = str(folder) if local else name
    known = transformers.CONFIG_MAPPING
    bare = not local and name in known
    if not local and name.startswith(("/", ".", "~")):
        raise ModelError(f"model folder {name!r} does not exist; a hub name is written OWNER/NAME")
    if bare and weights == "pretrained":
        raise UsageError(f"hf:{name} is an architecture without weights; use {RANDOM}, or a full hub name")
    if not local and not bare and "/" not in name:
        raise UsageError(f"Hugging Face has no architecture {name!r} ({nearest(name, known)}); a hub name has a '/'")
    if local and not (folder / "config.json").is_file():
        raise ModelError(f"folder {str(folder)!r} holds no config.json; save_pretrained() writes one")
    if local:
        check_files(folder)
    with _quiet(transformers):
        config = _config(transformers, where, local=local, bare=bare, num_classes=num_classes)
        try:
            config = without_repeats(config, num_classes)
            builder = _builder(transformers, config)
        except Exception as error:  # fields of another type, which transformers takes as they are
            raise _bad_config(where, error) from error
        if num_classes and _without_classifier(builder, config):
            raise UsageError(
                f"{parameter('num_classes', num_classes)} sizes a classifier, and hf:{name} is a "
                f"{_class_built(builder, config)}, which has none; leave it out, or name a class with one as "
                "architectures in config.json"
            )
        facts: list[Fact] = []
        if weights == "pretrained":
            model, found = _pretrained(builder, where, name, config, local=local)
            fresh = sorted(found["missing_keys"])
            if fresh:
                facts.append(Fact(FactKind.FRESH_PARAMETERS, {"names": fresh}, caution=True))
            described = f"pretrained ({where})"
        else:
            model = _random_model(transformers, builder, config, name, seed)
            if weights == "random":
                facts = open_branches(model, seed=seed)
                described = f"random, seed {seed}"
            else:
                model, (described, kept) = _file_weights(builder, config, model, weights, weights_key)
                facts = list(kept)
        preprocessing = _preprocessing(transformers, model, config, where, local=local)
        if preprocessing is not None and preprocessing.plain and weights != "random":
            facts.append(Fact(FactKind.PLAIN_PREPROCESSING, {"size": preprocessing.input_size}, caution=True))
    trained = weights != "random" and num_classes is None
    return LoadedModel(
        model=model.eval(),
        name=f"hf:{name}",
        source="hf",
        weights=described,
        input_size=None if preprocessing is None else preprocessing.input_size,
        preprocessing=preprocessing,
        class_names=_class_names(model, config) if trained else None,
        random=weights == "random",
        facts=tuple(facts),
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ModelError("hf: models need the transformers package; pip install 'rankscope[transformers]'") from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and reports on loading: what matters of them is in the notes and errors."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _config(transformers: Any, where: str, *, local: bool, bare: bool, num_classes: int | None) -> Any:
    options = {} if num_classes is None else {"num_labels": num_classes}
    if bare:
        return transformers.AutoConfig.for_model(where, **options)
    if local:
        try:
            return transformers.AutoConfig.from_pretrained(where, **options)
        except Exception as error:  # whatever a damaged file leads to
            raise _bad_config(where, error) from error
    with download(f"configuration of hf:{where}", remedy=_fetch(where)):
        return transformers.AutoConfig.from_pretrained(where, **options)


def _bad_config(where: str, error: Exception) -> ModelError:
    return ModelError(f"{where}/config.json cannot be used: {first_line(error)}")


def _fetch(name: str) -> str:
    return (
        f"run hf download {name} --local-dir FOLDER on a machine with access and use hf:FOLDER as the model, or use "
        f"the architecture alone (such as hf:vit) with {RANDOM}"
    )


def _builder(transformers: Any, config: Any) -> Any:
    for architecture in config.architectures or []:
        named = getattr(transformers, architecture, None)
        if isinstance(named, type):  # transformers has modules and functions too
            return named
    mapping = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    without_head = is_timm_config(config) and not config.num_labels  # as timm saves them too
    if type(config) in mapping and not without_head:
        found = mapping[type(config)]
        return found[0] if isinstance(found, tuple) else found
    return transformers.AutoModel


def _class_built(builder: Any, config: Any) -> str:
    """Name of the class that is built: ``AutoModel`` stands for the bare one of the configuration."""
    mapping = getattr(builder, "_model_mapping", {})
    found = mapping.get(type(config), builder)
    return str((found[0] if isinstance(found, tuple) else found).__name__)


def _without_classifier(builder: Any, config: Any) -> bool:
    """Whether it is a bare model or one of language, which take ``num_labels`` and have no use for it."""
    return _class_built(builder, config).endswith(("Model", "LM"))


def _refuse_misfits(model: nn.Module, misfits: Any) -> None:
    """Sizes that differ from the file's are those of heads of no output alone."""
    sizes = {name: part.numel() for name, part in model.state_dict().items()}
    for one in misfits:
        name = one if isinstance(one, str) else one[0]
        if sizes.get(name):
            raise ValueError(f"size mismatch for {name}")


def _without_empty_heads(model: nn.Module) -> None:
    """Leave out what some classes make of no classes, a linear layer of no output."""
    for name, module in list(model.named_modules()):
        if name and isinstance(module, nn.Linear) and not module.out_features:
            model.set_submodule(name, nn.Identity())


def _pretrained(builder: Any, where: str, name: str, config: Any, *, local: bool) -> tuple[Any, dict[str, Any]]:
    own: dict[str, Any] = {"config": config} if is_timm_config(config) or not config.num_labels else {}
    if not config.num_labels:  # a head of no output does not take the kept one
        own["ignore_mismatched_sizes"] = True

    def load() -> tuple[Any, dict[str, Any]]:
        model, found = builder.from_pretrained(where, output_loading_info=True, **own, **_PLAIN)
        if not config.num_labels:
            _refuse_misfits(model, found["mismatched_keys"])
            _without_empty_heads(model)
            found["missing_keys"] = {key for key in found["missing_keys"] if key in model.state_dict()}
        return model, found

    if not local:
        with download(f"pretrained weights of hf:{name}", remedy=_fetch(name)):
            return load()
    try:
        return load()
    except Exception as error:
        damaged = damaged_weights(Path(where)) or damaged_json(Path(where), "generation_config.json")
        raise ModelError(
            f"weights in folder {where!r} cannot be loaded ({damaged or first_line(error)}); it needs a whole "
            f"model.safetensors (or its index with every shard) that fits its config.json, or use {RANDOM}"
        ) from error


def _random_model(transformers: Any, builder: Any, config: Any, name: str, seed: int) -> Any:
    try:
        make = builder.from_config if builder is transformers.AutoModel else builder._from_config
        with seeded(seed):
            # transformers 5 chooses the experts' kernel; version 4 has one way alone
            experts = {"experts_implementation": "eager"} if hasattr(config, "_experts_implementation") else {}
            model = make(config, **_PLAIN, **experts)
    except Exception as error:
        raise ModelError(f"hf:{name} cannot be built: {type_and_line(error)}") from error
    if not config.num_labels:
        _without_empty_heads(model)
    return model


def _file_weights(builder: Any, config: Any, model: Any, path: str, key: str | None) -> tuple[Any, Weights]:
    """Weights whose names are the model's, or those of an older release, which only transformers can translate."""
    try:
        return model, load_weights(model, path, key=key)
    except MisfitError as error:
        given = read_weights(path, key)
        try:
            made, found = builder.from_pretrained(
                None, config=config, state_dict=given, output_loading_info=True, **_PLAIN
            )
        except Exception:
            raise error from None
        if any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise
        return made, Weights(f"file {Path(path).name} ({len(given)} tensors)")


def _preprocessing(transformers: Any, model: Any, config: Any, where: str, *, local: bool) -> Preprocessing | None:
    if getattr(model, "main_input_name", "") != "pixel_values":
        return None
    try:
        size = _config_size(config)
    except Exception as error:
        raise _bad_config(where, error) from error
    made: tuple[int, int, int] | None = None
    file = preprocessing_file(Path(where), config.model_type) if local else None
    if file is not None:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(where)
            prepared = own_size(config) if file.name == "config.json" else None
            if prepared is not None:
                processor = type(processor)(pretrained_cfg=prepared, architecture=config.architecture)
            made = _made_size(processor, size)
        except Exception as error:  # whatever a damaged file leads to
            why = "it is no whole JSON file" if damaged_json(Path(where), file.name) else first_line(error)
            raise ModelError(
                f"{str(file)!r} cannot be used ({why}); fetch or save it again, or remove it: then images are only "
                "resized and scaled to [0, 1]"
            ) from error
    elif not local and "/" in where:
        try:
            with download(f"preprocessing of hf:{where}", remedy=_fetch(where)):
                processor = transformers.AutoImageProcessor.from_pretrained(where)
        except ModelError:
            processor = None
    else:
        processor = None
    if processor is None:
        return None if size is None else plain_preprocessing(size)

    def apply(image: Any) -> Any:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    made = made or _made_size(processor, size)
    return Preprocessing(f"Hugging Face {type(processor).__name__}, {made[1]}×{made[2]}", made, apply)


def _config_size(config: Any) -> tuple[int, int, int] | None:
    prepared = own_size(config) or (getattr(config, "pretrained_cfg", None) if is_timm_config(config) else None)
    if prepared and "input_size" in prepared:
        channels, height, width = map(int, prepared["input_size"])
        return (channels, height, width)
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", None)
    channels = int(getattr(vision, "num_channels", 3))
    if side is None:
        # convolutional networks leave it out: they take any size, and ImageNet's is 224
        return (channels, 224, 224)
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return (channels, int(height), int(width))


def _made_size(processor: Any, size: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The shape that the processor really gives, which need not be the configuration's.

    A picture of the configuration's size shows it: a processor that does not resize gives back what it gets.
    """
    from PIL import Image

    channels, height, width = size if size is not None else (3, 256, 256)
    picture = Image.new("L" if channels == 1 else "RGB", (width, height))
    made = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    return (int(made.shape[0]), int(made.shape[1]), int(made.shape[2]))


def _class_names(model: Any, config: Any) -> tuple[str, ...] | None:
    if not type(model).__name__.endswith("Classification"):
        return None
    names = [str(config.id2label[i]) for i in range(config.num_labels) if i in config.id2label]
    made_up = all(name == f"LABEL_{i}" for i, name in enumerate(names))
    return None if made_up or len(names) != config.num_labels else tuple(names)
