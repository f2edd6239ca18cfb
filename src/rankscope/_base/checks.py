"""What every public function accepts as a device, a dtype, a count, a choice or a memory budget: checked once, here.

Messages name parameters (``device="cpu"``); the command line turns them into its own options.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias

import psutil
import torch
from torch import Tensor, nn

from rankscope._base.errors import DeviceError, UsageError, nearest, parameter
from rankscope._base.text import counted, noun, own_verb
from rankscope._base.world import local_rank, local_size

__all__ = [
    "DeviceLike",
    "DtypeLike",
    "MemoryBudget",
    "Scale",
    "budget_of",
    "choice_of",
    "count_of",
    "device_of",
    "dtype_of",
    "module_of",
    "names_of",
    "number_of",
    "path_of",
    "refuse_unused",
    "seed_of",
    "shape_of",
]

DeviceLike: TypeAlias = torch.device | str | int | None
DtypeLike: TypeAlias = torch.dtype | str | None
MemoryBudget: TypeAlias = int | float | str | None
Scale: TypeAlias = Literal["full", "small"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_CPU = torch.device("cpu")
_WORD = 2**63 - 1
_MOST = 10**9  # of what is gone through one by one: more cannot be meant
_LARGEST = 2**31  # entries of one sample
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DEFAULT_BUDGET = 4 * 2**30  # measured: larger chunks gain nothing on the networks of the paper


def device_of(device: DeviceLike, model: object = None, *, float64: bool = True, name: str = "device") -> torch.device:
    """The device called ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``, and that is really there.

    ``None`` means where ``model`` is (a module's first parameter or buffer, or a tensor); without a model, the CPU.
    ``"auto"`` means the first GPU, else the CPU; it never takes MPS, which has no ``float64``. Of several processes
    that torchrun has started each takes the GPU of its number (``LOCAL_RANK``), also as ``"cuda"``.

    Raises
    ------
    UsageError
        For what names no device, a model that is no module, and where ``float64`` is needed and the device has none.
    DeviceError
        For a device that is absent.

    >>> device_of("cpu"), device_of(None, torch.nn.Linear(2, 2))
    (device(type='cpu'), device(type='cpu'))
    """
    if model is not None and not isinstance(model, Tensor):
        model = module_of(model)
    found = _home(model) if device is None else _named_device(device, name)
    if float64 and found.type == "mps":
        raise UsageError(
            f"{parameter(name)} 'mps' has no float64, which ranks need; use {parameter(name, 'cpu')} or "
            f"{parameter(name, 'cuda')}"
        )
    return found


def module_of(model: Any, name: str = "model") -> nn.Module:
    """``model`` where it is a module; what people hand over in place of one is refused with the way to it.

    >>> module_of(torch.nn.Linear(2, 3))
    Linear(in_features=2, out_features=3, bias=True)
    """
    if isinstance(model, nn.Module):
        return model
    given, remedy = _shown(model), "give a torch.nn.Module"
    if isinstance(model, type):
        given, remedy = f"the class {model.__name__}", "give an instance of it"
    elif isinstance(model, str):
        spec = model if ":" in model else f"timm:{model}"
        remedy = f"give a torch.nn.Module, such as rankscope.loading.load_model({spec!r}).model"
    elif isinstance(model, Mapping):
        given = f"a mapping ({type(model).__name__})"
        remedy = "build the network, call load_state_dict on it, and give the network"
    elif callable(model):
        given = f"a {type(model).__name__}"
        remedy = "give a torch.nn.Module whose forward calls it"
    raise UsageError(f"{parameter(name)} is {given}; {remedy}")


def _own_gpu(count: int) -> int:
    """The GPU of this process among those that a launcher's processes share; with fewer GPUs some take the same."""
    return local_rank() % max(count, 1)


def _home(model: nn.Module | Tensor | None) -> torch.device:
    if isinstance(model, Tensor):
        return model.device
    if model is None:
        return torch.device("cpu")
    tensors: Iterable[Tensor] = chain(model.parameters(), model.buffers())
    return next((t.device for t in tensors), torch.device("cpu"))


def _named_device(device: Any, name: str) -> torch.device:
    unknown = UsageError(f"{parameter(name)} {_shown(device)} is unknown; use 'cpu', 'cuda', 'cuda:1', 'mps' or 'auto'")
    if isinstance(device, bool) or not isinstance(device, str | int | torch.device):
        raise unknown
    text = f"cuda:{device}" if isinstance(device, int) else str(device).strip().lower()
    if text == "auto":
        return torch.device("cuda", _own_gpu(torch.cuda.device_count())) if torch.cuda.is_available() else _CPU
    try:
        found = torch.device(text)
    except RuntimeError:
        raise unknown from None
    if found.type not in ("cpu", "cuda", "mps"):
        raise unknown
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index: int | None = found.index
        if index is None:  # the caller's current device, as everywhere in torch
            index = torch.cuda.current_device() if count and torch.cuda.is_initialized() else _own_gpu(count)
        if index >= count:
            raise DeviceError(
                f"{parameter(name)} {text!r} was asked for, but {_present(count)}; use {_remedy(name, count)}"
            )
        return torch.device("cuda", index)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            f"{parameter(name)} 'mps' was asked for, but this machine or this torch ({torch.__version__}) has none"
        )
    return torch.device("cpu") if found.type == "cpu" else found


def _present(count: int) -> str:
    if count:
        return f"torch {torch.__version__} sees {counted(count, 'CUDA device')} (cuda:0–cuda:{count - 1})"
    built = "was built without CUDA" if torch.version.cuda is None else "finds no usable NVIDIA GPU or driver"
    return f"torch {torch.__version__} {built}"


def _remedy(name: str, count: int) -> str:
    if count:
        return parameter(name, "cuda:0")
    return f"{parameter(name, 'cpu')}, or install a CUDA build of torch on a machine with an NVIDIA GPU"


def _shown(value: Any) -> str:
    """A value as an error names it: short, and one line."""
    if isinstance(value, int) and abs(value) > _WORD:  # Python itself refuses to print one of thousands of digits
        return f"a whole number of {value.bit_length()} bits"
    text = repr(str(value)) if isinstance(value, torch.device | torch.dtype) else repr(value)
    text = " ".join(text.split())
    if len(text) > 60 and isinstance(value, str):
        return f"{text[:57]}…{text[-1]}"
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def count_of(value: Any, name: str, *, least: int = 1, most: int | None = _MOST) -> int:
    """``value`` as a whole number of at least ``least``; a float such as ``5e3`` is taken where it is whole.

    By default at most a billion; what takes memory or a pass for each one has a lower limit at its place.

    >>> count_of(5e3, "batch_size")
    5000
    """
    number = None if _is_bool(value) else _whole(value)
    if number is None or number < least:
        raise UsageError(f"{parameter(name)} is {_shown(value)}; it must be a whole number of at least {least}")
    if most is not None and number > most:
        shown = f"{number:,}" if number <= _WORD else _shown(value)
        raise UsageError(f"{parameter(name)} is {shown}; it must be at most {most:,}")
    return number


def seed_of(value: Any, name: str = "seed") -> int:
    """``value`` as a seed of torch: a whole number from 0 to what 64 bits hold.

    >>> seed_of(2**40)
    1099511627776
    """
    return count_of(value, name, least=0, most=_WORD)


def _whole(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        pass
    real = float(value) if isinstance(value, Real) else math.nan
    return int(real) if real.is_integer() else None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, bool)


def number_of(
    value: Any, name: str, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """``value`` as a finite float within the bounds.

    >>> number_of(2, "std", above=0)
    2.0
    """
    number = math.nan
    if not _is_bool(value) and (isinstance(value, Real) or (hasattr(value, "__float__") and not _sized(value))):
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = math.nan
    inside = math.isfinite(number)
    inside = inside and (above is None or number > above)
    inside = inside and (least is None or number >= least)
    inside = inside and (most is None or number <= most)
    if not inside:
        bounds = [f"above {above:g}"] if above is not None else []
        bounds += [f"of at least {least:g}"] if least is not None else []
        bounds += [f"of at most {most:g}"] if most is not None else []
        raise UsageError(
            f"{parameter(name)} is {_shown(value)}; it must be a finite number {' and '.join(bounds)}".rstrip()
        )
    return number


def _sized(value: Any) -> bool:
    """A text, or an array or tensor of more than one value."""
    return isinstance(value, str | bytes) or getattr(value, "ndim", 0) > 0


def choice_of(value: Any, name: str, options: Iterable[str]) -> str:
    """``value`` where it is one of the texts ``options``.

    >>> choice_of("image", "background", ["image", "zero"])
    'image'
    """
    known = list(options)
    if isinstance(value, str) and value in known:
        return value
    if not isinstance(value, str):
        listed = ", ".join(map(repr, known))
        raise UsageError(f"{parameter(name)} is {_shown(value)}; give one of {listed}")
    raise UsageError(f"unknown {parameter(name)} {value!r}; {nearest(value, known)}")


def dtype_of(dtype: DtypeLike, *, name: str = "dtype") -> torch.dtype:
    """float32 or float64, by name or as torch's own object.

    >>> dtype_of("float64")
    torch.float64
    """
    text = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype | str) else None
    if text is None or text not in _DTYPES:
        raise UsageError(f"{parameter(name)} {_shown(dtype)} cannot be used to measure; give 'float32' or 'float64'")
    return _DTYPES[text]


def budget_of(
    memory_budget: MemoryBudget,
    device: torch.device,
    *,
    share: float = 0.5,
    most: int | None = _DEFAULT_BUDGET,
    name: str = "memory_budget",
) -> int:
    """Bytes from a number or a text such as ``"6GB"``.

    ``None`` means ``share`` of what is free on the device, and at most ``most`` bytes; processes of one launcher that
    use the same device divide that among them.

    >>> budget_of("1.5 GB", torch.device("cpu"))
    1610612736
    """
    if memory_budget is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        users = local_size() if device.type != "cuda" else -(-local_size() // max(torch.cuda.device_count(), 1))
        found = int(share * free) // users
        return found if most is None else min(most, found)
    if isinstance(memory_budget, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)i?B?\s*", memory_budget, re.IGNORECASE)
        if match is None:
            raise UsageError(f"{parameter(name)} {memory_budget!r} is not a size; write for instance '4GB'")
        number = float(match[1]) * _UNITS[match[2].upper()]
        if not 1 <= number < math.inf:
            raise UsageError(f"{parameter(name)} is {memory_budget!r}; it must be at least one byte, and finite")
        return int(number)
    return int(number_of(memory_budget, name, least=1))


def path_of(value: Any, name: str) -> Path:
    """``value`` as a path.

    >>> path_of("runs/first", "out").name
    'first'
    """
    if isinstance(value, str) and not value.strip():  # it would stand for the folder that the user happens to be in
        raise UsageError(f"{parameter(name)} is empty; give the path of a file or folder ('.' for this folder)")
    if not isinstance(value, str | os.PathLike) or "\0" in str(value) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{parameter(name)} is {_shown(value)}; give the path of a file or folder as text or Path")
    return Path(value)


def refuse_unused(given: Iterable[str], where: str) -> None:
    """Refuse options that were given and that nothing would look at; ``where`` says why not.

    >>> refuse_unused([], "for arrays")
    """
    names = list(given)
    if names:
        listed = ", ".join(map(parameter, names))
        verb, them = own_verb(len(names), "have"), noun(len(names), "it", "them")
        raise UsageError(f"{listed} {verb} no meaning {where}; leave {them} out")


def shape_of(sizes: Any, name: str) -> tuple[int, ...]:
    """The sizes of one sample, each at least one; a single number is one size.

    >>> shape_of([128, 8, 8], "input_shape")
    (128, 8, 8)
    """
    single = isinstance(sizes, str) or not isinstance(sizes, Sequence)
    listed = (sizes,) if single else tuple(sizes)
    try:
        found = tuple(count_of(size, name) for size in listed)
    except UsageError:
        found = ()
    if not found or math.prod(found) > _LARGEST:
        raise UsageError(
            f"{parameter(name)} is {_shown(sizes)}; give the sizes of one sample, for instance (128, 8, 8)"
        )
    return found


def names_of(value: Any, name: str) -> tuple[str, ...]:
    """Names: one text, or several, each once and in the order given. ``None`` and an empty list are none.

    >>> names_of("mask", "shared"), names_of(["a", "b", "a"], "shared")
    (('mask',), ('a', 'b'))
    """
    if value is None:
        return ()
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, Iterable) or isinstance(listed, bytes | Tensor):
        raise UsageError(f'{parameter(name)} is {_shown(value)}; give names, as {name}=("mask",)')
    found = tuple(listed)
    if not all(isinstance(one, str) and one for one in found):
        raise UsageError(f'{parameter(name)} is {_shown(value)}; give names, as {name}=("mask",)')
    return tuple(dict.fromkeys(found))
