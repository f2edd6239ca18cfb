"""Stand-ins for what a checkpoint pickles beside its tensors: they hold what is put in and do nothing.

torch's restricted unpickler refuses every class that it does not know: ``argparse.Namespace`` (the arguments of a
training script), configurations, paths, whole models. Each is given an inert class here, under the name that the file
asks for, so that the unpickler never imports or calls anything of the file's choice and the tensors can be read.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

__all__ = ["Inert", "foreign_globals", "holds_pickle", "hostile", "inert_globals"]

# Nothing of these is data. They would stay inert too; a file that asks for them was made to run code.
_HOSTILE = frozenset((
    "os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy", "socket", "ctypes", "pty", "code", "pdb",
    "bdb", "webbrowser", "commands", "multiprocessing", "asyncio", "signal", "timeit", "cProfile", "profile", "urllib",
))  # fmt: skip
_BUILTINS = frozenset((
    "eval", "exec", "compile", "open", "input", "breakpoint", "getattr", "setattr", "delattr", "__import__", "globals",
))  # fmt: skip
# Asked for by checkpoints of torch's old format, which cannot be searched for names before it is read.
_USUAL = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "collections.defaultdict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


class Inert(dict[Any, Any]):
    """Takes any arguments and state. A pickled ``torch.nn.Module`` keeps its tensors and submodules in ``modules``."""

    modules: dict[str, Any] | None = None

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return dict.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict) and {"_parameters", "_buffers", "_modules"} <= state.keys():
            passing = state.get("_non_persistent_buffers_set") or ()
            buffers = {k: v for k, v in state["_buffers"].items() if k not in passing}
            self.modules = {**state["_parameters"], **buffers, **state["_modules"]}


def hostile(name: str) -> bool:
    """Whether a global is one that runs code, and no data.

    >>> hostile("posix.system"), hostile("builtins.eval"), hostile("argparse.Namespace")
    (True, True, False)
    """
    module, _, attribute = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return attribute in _BUILTINS
    return module.partition(".")[0] in _HOSTILE


def foreign_globals(path: Path) -> list[str]:
    """Names that the pickle in a file of torch asks for and torch does not know."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the old format, or no pickle at all: the reading itself tells which
        return list(_USUAL)


def holds_pickle(path: Path) -> bool:
    """Whether torch's file holds a pickle that is whole, by its opcodes alone: nothing of it is run.

    In a zip file it is ``data.pkl``; in the old format the first of several.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                names = [name for name in file.namelist() if name.rpartition("/")[2] == "data.pkl"]
                for _ in pickletools.genops(file.read(names[0])):
                    pass
        else:
            with open(path, "rb") as stream:
                for _ in pickletools.genops(stream):
                    pass
    except (OSError, ValueError, IndexError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False
    return True


def inert_globals(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """An inert class for each name, as ``torch.serialization.safe_globals`` takes them."""
    return [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in names]
