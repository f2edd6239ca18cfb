"""Codes (``origins``) of recurrent kernels: steps and states of each sample, whichever dimension counts samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankscope.slicing.origin_call import Called
from rankscope.slicing.origins import MIXED, NONE, merged, over

__all__ = ["cudnn_recurrent", "fused_cell", "packed", "recurrent", "unpacked"]


def recurrent(call: Called) -> list[Tensor]:
    """One direction of a kernel's recurrent layer: (steps, samples, width), and states (samples, width)."""
    samples = over(call.of("input"), [0, 2]).squeeze(0)
    states = [call.codes(call.given[k]) for k in ("hx_", "cx_", "hx", "cx") if call.given.get(k) is not None]
    weights = [call.codes(call.given[k]) for k in ("weight0", "weight1", "weight2", "weight3")]
    own = merged(samples, *(over(one.reshape(-1, one.shape[-1]), [1]) for one in states))
    own = merged(own, *(over(one, range(one.ndim)).reshape(1, 1) for one in weights))
    fits = [made.shape[-2:-1] == own.shape[:1] for made in call.made]
    return [own if fit else own.new_full((), MIXED) for fit in fits]


def cudnn_recurrent(call: Called) -> list[Tensor]:
    """All layers and directions in one kernel: states (layers and directions, samples, width).

    The input is (steps, samples, width), with ``batch_first`` (samples, steps, width), and with ``batch_sizes`` the
    rows of a packed sequence: of each step those of its first samples. Results are the output, laid out like the
    input, both states (that of a cell is empty where there is none) and what a backward pass takes.
    """
    given, x = call.given, call.of("input")
    sizes = list(given["batch_sizes"])
    states = [over(call.codes(given[k]), [0, 2]).reshape(-1) for k in ("hx", "cx") if given.get(k) is not None]
    weights = [call.codes(one) for one in (*given["weight"], given.get("weight_buf")) if one is not None]
    if sizes:
        present = _present(sizes).to(x.device)
        steps = x.new_full(present.shape, NONE)
        steps[present] = over(x, [1]).reshape(-1)
        samples = over(steps, [0]).reshape(-1)
    else:
        samples = over(x, [1 if given["batch_first"] else 0, 2]).reshape(-1)
    own = merged(samples, *states, *(over(one.reshape(-1), [0]) for one in weights if one.numel()))
    if sizes:
        output = own.expand(present.shape)[present][:, None]
    else:
        output = own[:, None, None] if given["batch_first"] else own[None, :, None]
    after = [own[None, :, None] if made.ndim == 3 else own.new_full((), MIXED) for made in call.made[1:3]]
    return [output, *after, *(own.new_full((), MIXED) for _ in call.made[3:])]


def fused_cell(call: Called) -> Tensor:
    return merged(*(over(code, [-1]) if code.ndim == 2 else over(code, [0])[None] for code in call.every()))


def packed(call: Called) -> list[Tensor]:
    """Rows by steps; how many a step has comes of the lengths alone, which no sample may decide here."""
    lengths = call.given["lengths"]
    if bool((call.codes(lengths) != NONE).any()):
        raise NotImplementedError("lengths of samples")
    rows, _ = torch._pack_padded_sequence(call.of("input") - NONE, lengths, call.given["batch_first"])
    return [rows + NONE, rows.new_full((), NONE)]


def unpacked(call: Called) -> list[Tensor]:
    given = call.given
    sizes = given["batch_sizes"]
    if bool((call.codes(sizes) != NONE).any()):
        raise NotImplementedError("steps of samples")
    codes = call.of("data") - NONE
    found, _ = torch._pad_packed_sequence(codes, sizes, given["batch_first"], 0, given["total_length"])
    return [found + NONE, found.new_full((), NONE)]


def _present(sizes: Sequence[int]) -> Tensor:
    """Which samples are there at each step.

    >>> _present([2, 1])
    tensor([[ True,  True],
            [ True, False]])
    """
    return torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
