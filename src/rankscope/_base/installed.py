"""Which code belongs to an installed package, and to which version of it."""

from __future__ import annotations

import os
import platform
import site
import sys
import sysconfig
import types
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankscope._base.distributions import distribution_of
from rankscope._base.files import digest_of_file

__all__ = ["code_is_installed", "installed_name", "module_version"]


@lru_cache(maxsize=1)
def _roots() -> tuple[str, ...]:
    """Folders of Python itself, of what it has installed, and of torch and NumPy, however these two came here."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [os.path.dirname(str(module.__file__)) for module in (torch, np)]
    paths += [*site.getsitepackages(), site.getusersitepackages(), *ours]
    return tuple({os.path.join(str(Path(p)), "") for p in paths if p})


@lru_cache(maxsize=65536)
def code_is_installed(file: str) -> bool:
    """Whether a file with code belongs to Python or to an installed package."""
    return file.startswith(("<frozen ", *_roots())) or (not file.startswith("<") and distribution_of(file) is not None)


@lru_cache(maxsize=1024)
def module_version(name: str) -> str | None:
    """Name and version of the installed package that a module belongs to; ``None`` for the user's own modules."""
    if name in ("__main__", "__mp_main__", ""):
        return None
    top = name.partition(".")[0]
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if top == "rankscope":
        return f"rankscope {_version(top)}"
    if top in sys.stdlib_module_names or (module is not None and file is None and name in sys.builtin_module_names):
        return f"python {platform.python_version()}"
    if file is None:  # an extension module within a package, a namespace package, or a module made at run time
        parent = sys.modules.get(top)
        file = getattr(parent, "__file__", None)
        if parent is module or file is None:
            return None
    if not code_is_installed(str(file)):
        return None
    version = _version(top)
    return f"{top} {version}" if version else f"{name} {digest_of_file(str(file))}"


def _version(top: str) -> str:
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        return ""


def installed_name(value: Any) -> str | None:
    """Package, version and name of a class or function that an installed package defines under that very name.

    >>> import collections
    >>> installed_name(collections.OrderedDict) is None, installed_name(lambda: 0) is None
    (False, True)
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    version = module_version(module)
    if version is None:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    same = found is value or isinstance(value, types.BuiltinFunctionType)
    return f"{version} {module}.{name}" if same else None
