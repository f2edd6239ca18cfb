"""A value named in ``shared`` is one value, of whatever kind, in every room; another one is refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rankscope as rs
from rankscope.slicing.batches import Batches, same_values
from rankscope.slicing.meaning import Meaning

# two values of one input for each kind, and how many of the four features each of them leaves
KINDS: dict[str, tuple[tuple[Any, Any], Callable[[Any], int]]] = {
    "text": (("four", "two"), lambda t: {"four": 4, "two": 2}[t]),
    "number": ((4.0, 2.0), int),
    "none": ((None, "two"), lambda t: 4 if t is None else 2),
    "bool": ((True, False), lambda t: 4 if t else 2),
    "tensor": ((torch.full((2,), 2.0), torch.ones(2)), lambda t: int(t.sum())),
    "array": ((np.full(2, 2.0), np.ones(2)), lambda t: int(t.sum())),
    "longer tensor": ((torch.ones(4), torch.ones(2)), lambda t: int(t.sum())),
    "list": (([1, 3], [1, 1]), lambda t: int(torch.as_tensor(t).sum())),
    "list of texts": ((["a", "b"], ["a"]), lambda t: 2 * len(t)),
    "dict": (({"k": 4}, {"k": 2}), lambda t: int(t["k"])),
    "dict of tensors": (({"k": torch.ones(4)}, {"k": torch.ones(2)}), lambda t: int(t["k"].sum())),
}
ROOMS: dict[str, Callable[..., Any]] = {
    "jacobian_rank": lambda m, d, _, **k: rs.jacobian_rank(m, d, cut_points=["end"], progress=False, **k),
    "feature_rank": lambda m, d, _, **k: rs.feature_rank(m, d, cut_points=["end"], **k),
    "collect": lambda m, d, out, **k: rs.collect(m, d, out=out / "run", cut_points=["end"], progress=False, **k),
}


class Switched(nn.Module):
    def __init__(self, kept: Callable[[Any], int]) -> None:
        super().__init__()
        self.kept, self.end, self.head = kept, nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor, t: Any = None) -> Tensor:
        keep: Tensor = torch.arange(4) < self.kept(t)
        out: Tensor = self.head(self.end(x * keep))
        return out


class Records(Dataset[dict[str, Any]]):
    def __init__(self, values: list[Any]) -> None:
        self.values, self.x = values, torch.randn(len(values), 4, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "t": self.values[index], "label": index % 3}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", KINDS)
def test_records_that_differ_in_what_is_shared_are_refused(kind: str, room: str, tmp_path: Path) -> None:
    (one, other), kept = KINDS[kind]
    net = Switched(kept).eval()
    with pytest.raises(rs.UsageError, match=r"shared names 't', which differs .*give per_sample=\(\"t\",\)"):
        ROOMS[room](net, Records([one, one, other, one]), tmp_path, shared="t")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_values_are_shared_and_others_are_each_samples_own(kind: str) -> None:
    (one, other), kept = KINDS[kind]
    net = Switched(kept).eval()

    def ranks(values: list[Any], **meaning: Any) -> tuple[list[Any], str]:
        found = rs.jacobian_rank(net, Records(values), cut_points=["end"], progress=False, **meaning)
        return [e.value for e in found["end"].estimates(found.tolerance)], " ".join(found.notes)

    counts, notes = ranks([one] * 3, shared="t")
    assert counts == [4, 4, 4]
    assert "All samples share t." in notes
    counts, notes = ranks([one, other, one], per_sample="t")
    assert counts == [4, 2, 4]
    assert "Each sample has its own t." in notes
    assert "share" not in notes


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"])
def test_batches_of_a_loader_that_differ_are_refused(kind: str) -> None:
    (one, other), kept = KINDS[kind]
    for size in (1, 2):
        loader = DataLoader(Records([one, one, other, other]), batch_size=size)
        with pytest.raises(rs.UsageError, match="shared names 't', which differs between the samples"):
            rs.jacobian_rank(Switched(kept).eval(), loader, cut_points=["end"], shared="t", progress=False)


def test_a_buffer_filled_again_and_again_is_compared_as_it_was() -> None:
    buffer = torch.ones(4)

    class Refilled(Records):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | {"t": buffer.fill_(1.0 + index / 4)}

    with pytest.raises(rs.UsageError, match=re.escape("(first in sample 1)")):
        rs.jacobian_rank(Switched(KINDS["tensor"][1]).eval(), Refilled([0] * 3), shared="t", progress=False)


def test_what_a_collate_fn_makes_is_shared_by_its_batch() -> None:
    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        return {"x": torch.stack([item["x"] for item in items]), "t": items[0]["t"]}

    values = [torch.ones(4), torch.ones(4), torch.ones(2), torch.ones(2)]
    loader = DataLoader(Records(values), batch_size=2, collate_fn=collate)
    net = Switched(KINDS["tensor"][1]).eval()
    found = rs.jacobian_rank(net, loader, cut_points=["end"], shared="t", progress=False)
    assert [e.value for e in found["end"].estimates(found.tolerance)] == [4, 4, 2, 2]
    assert "All samples of a batch share t." in " ".join(found.notes)
    assert "All samples of a batch share t." in " ".join(rs.feature_rank(net, loader, shared="t").notes)


def test_a_collection_taken_up_again_compares_with_its_first_sample(tmp_path: Path) -> None:
    """Shards of two samples: the third sample's value differs, and the run that starts there has to see it."""
    (one, other), kept = KINDS["text"]
    records, net = Records([one, one, other, other]), Switched(kept).eval()
    for _ in range(2):  # the second finds one shard of the first
        with pytest.raises(rs.UsageError, match="shared names 't', which differs between the samples"):
            rs.collect(
                net,
                records,
                out=tmp_path / "run",
                cut_points=["end"],
                shared="t",
                batch_size=2,
                shard_size=2,
                progress=False,
            )


@pytest.mark.parametrize("kind", KINDS)
def test_samples_with_equal_values_of_any_kind_share_a_batch(kind: str) -> None:
    (one, _), kept = KINDS[kind]
    data = Records([copy.deepcopy(one) for _ in range(5)])
    meaning = Meaning(shared=("t",), floating=False)
    assert [len(call) for call in Batches(Switched(kept).eval(), data, 4, meaning)] == [4, 1]
    data.x[0, 0] = torch.nan  # the same both times
    first, again = (next(Batches(Switched(kept).eval(), data, 5, meaning)) for _ in range(2))
    assert same_values(first, again)
