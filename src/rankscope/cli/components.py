"""Components that a user names on the command line: standard names, or their own by dotted import path."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Any

import torch
from torch import nn

from rankscope._base.errors import ModelError, UsageError, nearest, type_and_line

__all__ = ["chosen_components", "load_component"]


def chosen_components(text: str, *, seed: int, training: bool) -> list[str] | dict[str, nn.Module] | None:
    """``None`` for all, a list of standard names, or a user's component by its name.

    >>> chosen_components("relu, gelu", seed=0, training=False)
    ['relu', 'gelu']
    """
    if ":" in text:
        module = load_component(text.strip(), seed=seed)
        return {text.strip().rpartition(":")[2]: module.train() if training else module}
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"COMPONENT {text!r} names nothing; give all, a standard name, or package.module:Class")
    dotted = [n for n in names if "." in n]
    if dotted:
        package, _, attribute = dotted[0].rpartition(".")
        raise UsageError(f"COMPONENT {dotted[0]!r}: put a colon before the class or factory: {package}:{attribute}")
    if training:
        raise UsageError("--training is for a component of your own; a standard component has the mode in its name")
    return None if names == ["all"] else names


def load_component(path: str, *, seed: int = 0) -> nn.Module:
    """What ``package.module:Class``, ``module:factory`` or ``module:instance`` names, as a module.

    The current folder is importable, as with ``python -m``; classes and factories are called without arguments, under
    the seed.

    Raises
    ------
    UsageError
        When the path is none, or the module has no such name (the nearest is named).
    ModelError
        When the module cannot be imported, the call fails, or what it gives is no ``torch.nn.Module``.

    Examples
    --------
    >>> load_component("torch.nn:Softplus")
    Softplus(beta=1.0, threshold=20.0)
    """
    package, _, attribute = path.rpartition(":")
    if package.endswith(".py"):
        raise UsageError(
            f"COMPONENT {path!r} is a file; go to its folder and write {os.path.basename(package)[:-3]}:{attribute}"
        )
    if not all(part.isidentifier() for part in (*package.split("."), *attribute.split("."))):
        raise UsageError(f"COMPONENT {path!r} is no import path; write package.module:Class or package.module:factory")
    found: Any = _import(package)
    for part in attribute.split("."):
        if not hasattr(found, part):
            own = [n for n in vars(found) if not n.startswith("_")]
            raise UsageError(f"{package} has no {attribute!r}; {nearest(part, own)}")
        found = getattr(found, part)
    made = found if isinstance(found, nn.Module) else _call(found, path, seed)
    if not isinstance(made, nn.Module):
        raise ModelError(f"{path} gives a {type(made).__name__}; a component is a torch.nn.Module")
    return made


def _import(package: str) -> Any:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = f"there is no module {error.name!r}"
        if error.name is not None and f"{package}.".startswith(f"{error.name}."):
            raise ModelError(
                f"cannot import {package!r}: {missing} in {here} or on the Python path; go to the folder that holds "
                "it, or install it"
            ) from error
        raise ModelError(f"cannot import {package!r}: {missing}, which it imports; install it") from error
    except Exception as error:
        raise ModelError(f"cannot import {package!r}: {type_and_line(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _call(factory: Any, path: str, seed: int) -> Any:
    if not callable(factory):
        raise ModelError(f"{path} is a {type(factory).__name__}; name a class, a factory or a torch.nn.Module")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return factory()
    except Exception as error:
        raise ModelError(
            f"{path}() fails: {type_and_line(error)}; name a function without arguments that builds it"
        ) from error
