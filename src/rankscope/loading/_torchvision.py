"""Make torchvision importable beside a torch it was not compiled for.

torchvision's compiled part is built for one variant of torch. Beside another one (a CPU build of torch with a CUDA
build of torchvision is what package mirrors easily give) the library does not load, its operators stay undeclared,
and ``import torchvision`` dies on ``operator torchvision::nms does not exist`` because it attaches a shape rule to
them without asking. ``import timm`` dies with it. Nothing that rankscope does needs these operators: they are box
suppression for detectors. Declaring their signatures, without an implementation, lets the import pass; calling them
still fails with torch's own message.
"""

from __future__ import annotations

import importlib
import sys
import traceback

import torch

from rankscope._base.errors import ModelError, first_line

__all__ = ["ensure_torchvision", "misses_operator"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A Library takes its declarations back when it is collected: this list keeps it for the life of the process.
_declared: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Import torchvision, declaring the operators it misses when that is what stops it; does nothing otherwise.

    Call it before every import of timm, torchvision or a part of transformers that reads images. Raises ``ModelError``
    when torchvision cannot be imported for another reason.

    >>> ensure_torchvision()
    >>> import torchvision.models
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if not _absent():
            raise ModelError(_message(error)) from error
        _declare_missing()
        _forget("torchvision")
        _forget("timm")
        try:
            importlib.import_module("torchvision")
        except Exception as again:
            raise ModelError(_message(again)) from again
    except ImportError as error:
        raise ModelError(_message(error)) from error


def misses_operator(error: BaseException | None) -> bool:
    """Whether this is the failure that ``ensure_torchvision`` mends, when it met another importer first.

    It was raised by torchvision's own code, and operators that its import needs are not there.
    """
    if not isinstance(error, RuntimeError) or not _absent():
        return False
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).partition(".")[0] == "torchvision" for frame in frames)


def _absent() -> list[str]:
    return [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]


def _declare_missing() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _absent():
        library.define(_SCHEMAS[name])
    _declared.append(library)


def _forget(package: str) -> None:
    """Drop what a failed import left behind, or the next one meets half-made modules."""
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]


def _message(error: Exception) -> str:
    return (
        f"torchvision cannot be imported: {first_line(error)}. Install a torchvision that fits torch "
        f"{torch.__version__} (the same release and the same index: https://pytorch.org/get-started)"
    )
