"""Models that a user's own Python file builds: ``path/to/file.py:factory``."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rankscope._base.errors import ModelError, RankscopeError, UsageError, nearest, parameter, type_and_line
from rankscope._base.facts import Fact, FactKind
from rankscope.loading._random import open_branches, seeded
from rankscope.loading._torchvision import ensure_torchvision, misses_operator
from rankscope.loading.built import check_built, size_lazy_layers
from rankscope.loading.preprocessing import Preprocessing, plain_preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.weights import load_weights

__all__ = ["check_file", "from_file"]

_ENDS = "it ends the program (sys.exit({})); let it return a model, or raise an error"


def from_file(
    spec: str, *, weights: str, seed: int, num_classes: int | None, weights_key: str | None = None
) -> LoadedModel:
    """Import the file, call the factory (seeded), and take what it returns: a module, or (module, transform).

    The file's folder is on ``sys.path`` meanwhile, so it may import its neighbours. ``num_classes`` is handed on when
    the factory has a parameter of that name. The model's ``input_size`` attribute (C, H, W), where it has one, sets the
    size; a transform takes a PIL picture (RGB, or L for one channel). Raises ``ModelError`` naming file and line.
    """
    path, factory_name = check_file(spec)
    try:
        model, transform = _build(path, factory_name, seed, num_classes)
    except ModelError as error:
        # the file imports torchvision or timm itself, and met what ensure_torchvision() is for
        if not misses_operator(error.__cause__):
            raise
        ensure_torchvision()
        model, transform = _build(path, factory_name, seed, num_classes)
    facts: list[Fact] = []
    if weights in ("random", "pretrained"):
        # a file of weights brings the sizes itself
        facts += size_lazy_layers(model, _known_size(model), seed=seed)
        check_built(model)
    if weights == "random":
        facts.insert(0, Fact(FactKind.FACTORY_BUILT, {"factory": factory_name, "seed": seed}, caution=True))
        facts += open_branches(model, seed=seed)
        described = f"random, seed {seed}"
    elif weights == "pretrained":
        described = f"as {path.name}:{factory_name} returns them"
    else:
        described, kept = load_weights(model, weights, key=weights_key)
        facts += kept
        check_built(model)
    if model.training:
        facts.append(Fact(FactKind.TRAINING_MODE))
    preprocessing = _preprocessing(model, transform, spec)
    return LoadedModel(
        model=model.cpu().eval(),
        name=spec,
        source="file",
        weights=described,
        input_size=None if preprocessing is None else preprocessing.input_size,
        preprocessing=preprocessing,
        random=weights == "random",
        facts=tuple(facts),
    )


def check_file(spec: str) -> tuple[Path, str]:
    """File and factory that ``spec`` names. Raises ``UsageError`` for another form, ``ModelError`` without the file."""
    path_text, _, factory_name = spec.rpartition(":")
    path = Path(path_text).expanduser()
    if path.suffix != ".py":
        raise UsageError(f"model {spec!r}: {path_text!r} is no Python file; write path/to/file.py:factory")
    if not factory_name.isidentifier():
        raise UsageError(f"model {spec!r}: {factory_name!r} is no function name; write path/to/file.py:factory")
    if not path.is_file():
        raise ModelError(f"model file {path_text!r} does not exist")
    return path, factory_name


def _build(path: Path, name: str, seed: int, num_classes: int | None) -> tuple[nn.Module, Any]:
    with seeded(seed):
        return _call(_factory(_import(path), path, name), path, name, num_classes)


def _import(path: Path) -> ModuleType:
    name = f"rankscope_model_{path.stem}_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"model file {str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    # dataclasses and pickling look their module up by name
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        del sys.modules[name]
        raise ModelError(f"importing {_where(path, error)}: {_ENDS.format(error)}") from error
    except Exception as error:
        del sys.modules[name]
        raise ModelError(f"importing {_where(path, error)}: {type_and_line(error)}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _factory(module: ModuleType, path: Path, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if callable(found):
        return found
    if found is not None:
        raise ModelError(f"{path.name}:{name} is {_of_type(found)}; it must be a function that returns a model")
    own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__]
    hint = nearest(name, own) if own else "it defines no function"
    raise UsageError(f"{path.name} has no {name!r}; {hint}")


def _call(factory: Callable[..., Any], path: Path, name: str, num_classes: int | None) -> tuple[nn.Module, Any]:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None
    options: dict[str, Any] = {}
    if signature is not None:
        if num_classes is not None and "num_classes" in signature.parameters:
            options["num_classes"] = num_classes
        try:
            signature.bind(**options)
        except TypeError as error:
            raise ModelError(f"{path.name}:{name} must be callable without arguments: {error}") from error
    if num_classes is not None and not options:
        raise UsageError(
            f"{parameter('num_classes', num_classes)} was given, but {path.name}:{name} has no such parameter; leave "
            "it out, or add it to the function"
        )
    try:
        made = factory(**options)
    except RankscopeError:
        raise
    except SystemExit as error:
        raise ModelError(f"calling {name} in {_where(path, error)}: {_ENDS.format(error)}") from error
    except Exception as error:
        raise ModelError(f"calling {name} in {_where(path, error)}: {type_and_line(error)}") from error
    model, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{path.name}:{name} returned {_of_type(made)}; return a torch.nn.Module or (module, transform)"
        )
    if transform is not None and not callable(transform):
        raise ModelError(f"{path.name}:{name} returned {_of_type(transform)} as its transform; give a callable")
    return model, transform


def _of_type(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _where(path: Path, error: BaseException) -> str:
    """The file, and the line in it nearest to the failure."""
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename) == path:
        return f"{path}, line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _preprocessing(model: nn.Module, transform: Any, spec: str) -> Preprocessing | None:
    known = _known_size(model)
    if transform is None:
        return None if known is None else plain_preprocessing(known)
    if known is None:
        known = _probe(transform, spec)
    return Preprocessing(f"the transform that {Path(spec.rpartition(':')[0]).name} returns", known, transform)


def _known_size(model: nn.Module) -> tuple[int, int, int] | None:
    size: Any = getattr(model, "input_size", None)
    if isinstance(size, list | tuple) and len(size) == 3 and all(isinstance(v, int) and v > 0 for v in size):
        return (size[0], size[1], size[2])
    return None


def _probe(transform: Any, spec: str) -> tuple[int, int, int] | None:
    """The shape a transform gives, when it gives the same one for two pictures of different shape."""
    from PIL import Image

    shapes = set()
    for width, height in ((320, 240), (256, 300)):
        try:
            made = transform(Image.new("RGB", (width, height)))
        except Exception as error:
            raise ModelError(
                f"the transform of {spec!r} fails on a {width}×{height} RGB picture ({type_and_line(error)}); "
                "for other inputs set the model's attribute input_size = (C, H, W)"
            ) from error
        shapes.add(tuple(getattr(made, "shape", ())))
    shape = shapes.pop()
    return (shape[0], shape[1], shape[2]) if not shapes and len(shape) == 3 else None
