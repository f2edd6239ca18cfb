"""The tensors in what a module returns, each by a dotted path: ``0``, ``logits``, ``aux.1``.

Tuples, lists, mappings, named tuples and dataclasses are looked into. A plain tensor has the empty path. Floating-point
and complex tensors can be differentiated; integers, booleans, ``None`` and plain values cannot and are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Path", "every_member", "every_tensor", "flat_rows", "members", "objects", "real", "with_member"]

Path = str
_DEEPEST = 16  # a list that holds itself ends here

# What Hugging Face's ModelOutput hands out beside the result: the loss, caches, and records of the inside
_RECORDS = ("loss", "past_key_values", "hidden_states", "attentions")


def members(output: Any) -> dict[Path, Tensor]:
    """Every tensor that can be differentiated, by path, in the order in which they are returned.

    Of a Hugging Face ``ModelOutput`` the fields ``loss``, ``past_key_values``, ``…hidden_states`` and ``…attentions``
    are left out where another field holds a tensor: they record the inside of the model.

    >>> import torch
    >>> list(members({"logits": torch.zeros(1), "aux": [torch.zeros(1), None, torch.tensor([1])]}))
    ['logits', 'aux.0']
    """
    found = every_member(output)
    if _is_model_output(output):
        results = {p: t for p, t in found.items() if not p.split(".")[0].endswith(_RECORDS)}
        return results or found
    return found


def every_member(output: Any) -> dict[Path, Tensor]:
    """The same with the records that a ``ModelOutput`` holds."""
    found: dict[Path, Tensor] = {}
    for path, member in _leaves(output, (), _DEEPEST):
        if isinstance(member, Tensor) and (member.is_floating_point() or member.is_complex()):
            name = ".".join(path)
            while name in found:  # {"a.b": …, "a": {"b": …}}
                name += "'"
            found[name] = member
    return found


def every_tensor(output: Any) -> list[Tensor]:
    """Every tensor of whatever dtype, in the order in which they are returned."""
    return [member for _, member in _leaves(output, (), _DEEPEST) if isinstance(member, Tensor)]


def objects(output: Any) -> dict[Path, str]:
    """The classes of what cannot be looked into, such as a cache or an object of the user's own."""
    plain = (Tensor, bool, int, float, complex, str, bytes, type(None))
    return {".".join(path): type(m).__name__ for path, m in _leaves(output, (), _DEEPEST) if not isinstance(m, plain)}


def _is_model_output(output: Any) -> bool:
    return isinstance(output, Mapping) and any(c.__name__ == "ModelOutput" for c in type(output).__mro__)


def _children(output: Any) -> Sequence[tuple[str, Any]] | None:
    """What a container holds, by name; ``None`` for anything else."""
    if isinstance(output, Tensor):
        return None
    if isinstance(output, Mapping):
        return [(str(key), member) for key, member in output.items()]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, list | tuple):
        return [(str(i), member) for i, member in enumerate(output)]
    if is_dataclass(output) and not isinstance(output, type):
        return [(f.name, getattr(output, f.name, None)) for f in fields(output)]
    return None


def _leaves(output: Any, path: tuple[str, ...], deepest: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    inside = _children(output)
    if inside is None or deepest == 0:
        yield path, output
        return
    for name, member in inside:
        yield from _leaves(member, (*path, name), deepest - 1)


def real(tensor: Tensor) -> Tensor:
    """As plain real numbers: of a complex tensor the real and imaginary parts (twice as many), of a sparse one all."""
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def flat_rows(tensors: Sequence[Tensor], samples: int) -> Tensor:
    """Tensors as one flat tensor, sample by sample, and within a sample in the order given.

    Where some tensor has no entries of its own for every sample they simply follow one another.
    """
    parts = [real(t) for t in tensors]
    if len(parts) == 1:
        return parts[0].reshape(-1)
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    parts = [part.to(parts[0].device, dtype) for part in parts]
    if samples > 1 and all(part.numel() % samples == 0 for part in parts):
        return torch.cat([part.reshape(samples, -1) for part in parts], 1).reshape(-1)
    return torch.cat([part.reshape(-1) for part in parts])


def with_member(output: Any, path: Path, tensor: Tensor) -> Any:
    """The same output with another tensor at one path.

    Raises
    ------
    KeyError
        When there is no tensor at that path.

    >>> import torch
    >>> with_member((torch.tensor([1]), {"x": torch.tensor([2.0])}), "1.x", torch.tensor([3.0]))
    (tensor([1]), {'x': tensor([3.])})
    """
    if path not in every_member(output):
        raise KeyError(path)
    return _replaced(output, path, tensor)


def _replaced(output: Any, path: Path, tensor: Tensor) -> Any:
    if path == "":
        return tensor
    inside = _children(output)
    assert inside is not None
    name = next(n for n, _ in inside if path == n or path.startswith(f"{n}."))
    made = {n: _replaced(m, path[len(n) + 1 :], tensor) if n == name else m for n, m in inside}
    if isinstance(output, Mapping):
        items = {key: made[str(key)] for key in output}
        return items if type(output) is dict else type(output)(**items)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*made.values())
    if isinstance(output, list | tuple):
        return type(output)(made.values())
    return replace(output, **{name: made[name]})
