"""Codes (``origins``) where numbers change places: indices, copies, padding. Places that values decide may be any."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rankscope.slicing.origin_call import Called
from rankscope.slicing.origins import MIXED, NONE, merged, over

__all__ = [
    "copied",
    "embedding",
    "filled",
    "gather",
    "indexed",
    "like",
    "moved",
    "padded",
    "put",
    "scattered",
]


def embedding(call: Called) -> Tensor:
    weight = over(call.of("weight"), [0]).squeeze(0)
    return merged(call.of("indices")[..., None], weight)


def gather(call: Called) -> Tensor:
    """Numbers of some places: where the places come of samples, of all that could have been taken."""
    codes, index, dim = call.of("self"), call.of("index"), int(call.given["dim"])
    if bool((index != NONE).any()):
        whole = over(codes, [dim]) if codes.ndim else codes
        if call.func is torch.ops.aten.index_select.default:
            return merged(whole, over(index, range(index.ndim)).reshape(-1)[0])
        narrow = [slice(0, size) for size in call.made[0].shape]
        narrow[dim] = slice(None)
        return merged(whole[tuple(narrow)], index)
    found: Tensor = call.func(codes, dim, call.given["index"])
    return found


def scattered(call: Called) -> Tensor:
    """Numbers of the source at places of the target that only values tell: anywhere along the dimension."""
    codes, dim = call.of("self"), int(call.given["dim"])
    found = codes
    for name in ("index", "src", "source", "value"):
        value = call.given.get(name)
        if isinstance(value, Tensor):
            part = call.codes(value)
            beside = part.ndim == codes.ndim > 0 and all(
                a == b for d, (a, b) in enumerate(zip(part.shape, codes.shape, strict=True)) if d != dim % codes.ndim
            )
            found = merged(found, over(part, [dim]) if beside else over(part, range(part.ndim)).reshape(()))
    return found


def indexed(call: Called) -> Tensor:
    codes, indices = call.of("self"), list(call.given["indices"])
    places, owned = [], []
    dim = 0
    for index in indices:
        if index is None:
            dim += 1
            continue
        wide = index.ndim if index.dtype in (torch.bool, torch.uint8) else 1
        places.append((range(dim, dim + wide), index))
        dim += wide
    for dims, index in places:
        if bool((call.codes(index) != NONE).any()):
            owned.append(index)
            codes = over(codes, list(dims)).expand(codes.shape)
    found = codes[tuple(slice(None) if i is None else i for i in indices)]
    if not owned:
        return found
    if any(index.dtype in (torch.bool, torch.uint8) for index in owned):  # sizes come of values
        return torch.full_like(found, MIXED)
    # where one stands without a dimension between, broadcast indices take the place of the first
    shape = torch.broadcast_shapes(*(index.shape for _, index in places))
    first = next(k for k, index in enumerate(indices) if index is not None)
    last = max(k for k, index in enumerate(indices) if index is not None)
    together = all(index is not None for index in indices[first : last + 1])
    by = merged(*(call.codes(index).expand(shape) for index in owned))
    behind = found.ndim - len(shape) - (first if together else 0)
    return merged(found, by.reshape(*shape, *[1] * behind))


def put(call: Called) -> Tensor:
    codes, indices, values = call.of("self"), list(call.given["indices"]), call.codes(call.given["values"])
    own = [call.codes(index) for index in indices if index is not None]
    if all(not bool((one != NONE).any()) for one in own):
        if call.given.get("accumulate"):  # several may come to one place
            return merged(codes, over(values, range(values.ndim)).reshape(()))
        found = codes.clone()
        found[tuple(slice(None) if i is None else i for i in indices)] = values
        return found
    index = indices[0]
    if len(indices) == 1 and index.dtype is torch.bool and values.numel() == 1 and index.ndim <= codes.ndim:
        return merged(codes, own[0].reshape(*index.shape, *[1] * (codes.ndim - index.ndim)), values.reshape(()))
    return torch.full_like(codes, MIXED)


def moved(call: Called) -> Any:
    """Numbers change places: codes go the same way. What is new beside them is 0, which stands for ``NONE`` here."""
    given = [_with_codes(call, value) for value in call.given.values()]
    made = call.func(*given)
    return [one + NONE for one in made] if isinstance(made, list | tuple) else made + NONE


def _with_codes(call: Called, value: Any) -> Any:
    if isinstance(value, Tensor):
        return call.codes(value) - NONE
    if isinstance(value, list | tuple) and value and all(isinstance(one, Tensor) for one in value):
        return [call.codes(one) - NONE for one in value]
    return value


def padded(call: Called) -> Tensor:
    found: Tensor = torch.constant_pad_nd(call.of("self"), call.given["pad"], NONE)
    return found


def copied(call: Called) -> Tensor:
    return call.of("src", "self")


def filled(call: Called) -> Tensor:
    value = call.given.get("value")
    return call.codes(value).reshape(()) if isinstance(value, Tensor) else call.of("self").new_full((), NONE)


def like(call: Called) -> Tensor:
    """Numbers that no sample decides, as many as it has: what counts them counts samples."""
    codes, made = call.of("self"), call.made[0]
    return codes if codes.shape == made.shape else codes.new_full((), NONE)
