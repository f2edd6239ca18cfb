"""Patches, sketches, all coordinates: geometry, independence of chunks, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import rankscope as rs
from rankscope.slicing import All, Columns, as_columns

CPU = torch.device("cpu")


def rectangle(shape: tuple[int, int, int], channels: list[int], rows: range, columns: range) -> list[int]:
    _, h, w = shape
    return sorted(c * h * w + i * w + j for c in channels for i in rows for j in columns)


GEOMETRY = [
    (rs.Patch(), (3, 224, 224), [0, 1, 2], range(104, 120), range(104, 120)),
    (rs.Patch(4), (3, 9, 8), [0, 1, 2], range(2, 6), range(2, 6)),
    (rs.Patch(3), (1, 8, 8), [0], range(3, 6), range(3, 6)),
    (rs.Patch((2, 5), centre=(3, 4)), (2, 8, 9), [0, 1], range(2, 4), range(2, 7)),
    (rs.Patch(2, offset=(0, 6)), (2, 8, 8), [0, 1], range(2), range(6, 8)),
    (rs.Patch(2, offset=(1, 3), channels=[2, 0]), (3, 8, 8), [0, 2], range(1, 3), range(3, 5)),
    (rs.Patch(np.int64(2), offset=np.array([1, 3])), (1, 8, 8), [0], range(1, 3), range(3, 5)),
]


@pytest.mark.parametrize(("patch", "shape", "channels", "rows", "columns"), GEOMETRY)
def test_patch(patch: rs.Patch, shape: tuple[int, int, int], channels: list[int], rows: range, columns: range) -> None:
    expected = rectangle(shape, channels, rows, columns)
    assert patch.coordinates(shape).tolist() == expected
    assert patch.count(shape) == len(expected)
    tangents = patch.tangents(shape, 0, len(expected), CPU, torch.float64)
    assert tangents.dtype == torch.float64
    assert tangents.flatten(1).argmax(1).tolist() == expected
    assert torch.equal(tangents.flatten(1).sum(1), torch.ones(len(expected), dtype=torch.float64))


def test_explicit_coordinates() -> None:
    flat = rs.Patch(coordinates=[7, 1, 30])
    tuples = rs.Patch(coordinates=[(0, 1, 3), (0, 0, 1), (1, 3, 2)])
    assert flat.coordinates((2, 4, 4)).tolist() == tuples.coordinates((2, 4, 4)).tolist() == [1, 7, 30]
    assert rs.Patch(coordinates=torch.tensor([7, 1, 30])) == rs.Patch(coordinates=[np.int64(i) for i in (7, 1, 30)])
    assert flat.coordinates((32,)).tolist() == [1, 7, 30]
    assert flat.describe() == "3 chosen coordinates"


def test_describe() -> None:
    assert rs.Patch(16).describe() == "16×16 patch at the centre"
    assert rs.Patch((2, 3), centre=(5, 6)).describe() == "2×3 patch centred at (5, 6)"
    assert rs.Patch(4, offset=(1, 2), channels=[0]).describe() == "4×4 patch at offset (1, 2), channels [0]"
    assert rs.Sketch(5, seed=3).describe() == "5 random directions (seed 3)"
    assert rs.Sketch(1).describe() == "1 random direction (seed 0)"
    assert rs.Patch(coordinates=[3]).describe() == "1 chosen coordinate"
    assert rs.Positions([2]).describe() == "all coordinates of position 2"
    assert rs.Positions([0, 2]).describe() == "all coordinates of positions 0, 2"
    assert All().describe() == "all input coordinates"


WRONG = [
    (lambda: rs.Patch(16), (3, 8, 8), r"covers rows -4…11 and columns -4…11, outside the 8×8 image"),
    (lambda: rs.Patch(4, offset=(5, 0)), (3, 8, 8), "covers rows 5…8"),
    (lambda: rs.Patch(4, offset=(0, 5)), (3, 8, 8), "columns 5…8"),
    (lambda: rs.Patch(4, offset=(-1, 0)), (3, 8, 8), "covers rows -1…2"),
    (lambda: rs.Patch(4, offset=(0, -1)), (3, 8, 8), "columns -1…2"),
    (lambda: rs.Patch(2, channels=[3]), (3, 8, 8), r"channels \[3\] of an input with 3 channels"),
    (lambda: rs.Patch(2, channels=[0, 0]), (3, 8, 8), "give distinct 0…2"),
    (lambda: rs.Patch(2, channels=[]), (3, 8, 8), r"channels \[\] of an input"),
    (lambda: rs.Patch(0), (3, 8, 8), "a patch of 0×0 pixels is empty"),
    (lambda: rs.Patch(2, centre=(1, 1), offset=(0, 0)), (3, 8, 8), "not both"),
    (lambda: rs.Patch(2), (12,), r"a patch needs inputs of shape \(channels, height, width\); these are \(12,\)"),
    (lambda: rs.Patch(coordinates=[192]), (3, 8, 8), "coordinate 192 is outside"),
    (lambda: rs.Patch(coordinates=[-1]), (3, 8, 8), "coordinate -1 is outside"),
    (lambda: rs.Patch(coordinates=[(0, 8, 0)]), (3, 8, 8), "is outside an input of shape"),
    (lambda: rs.Patch(coordinates=[(0, 0)]), (3, 8, 8), "is outside an input of shape"),
    (lambda: rs.Patch(coordinates=[1, 1]), (3, 8, 8), "2 coordinates with 1 repeats"),
    (lambda: rs.Patch(coordinates=[]), (3, 8, 8), "0 coordinates"),
    (lambda: rs.Sketch(0), (3, 8, 8), "a sketch of 0 directions is empty"),
    (lambda: rs.Sketch(193), (3, 8, 8), "a sketch of 193 directions exceeds the input's 192 dimensions"),
    (lambda: "al", (3, 8, 8), r"unknown columns 'al' \(did you mean 'all'"),
    (lambda: 16, (3, 8, 8), r"columns is 16; give Patch\(16\), Positions, a Sketch"),
    (lambda: None, (3, 8, 8), "columns is None"),
]


@pytest.mark.parametrize(("make", "shape", "message"), WRONG)
def test_what_does_not_fit(make: object, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        as_columns(make(), shape)


AUTO = [
    ((64,), All()),
    ((1, 32, 32), All()),
    ((3, 32, 32), rs.Patch(16)),
    ((16, 16, 16), rs.Patch(16)),
    ((17, 16, 16), rs.Sketch(768)),
    ((3, 15, 300), rs.Sketch(768)),
    ((5, 300), rs.Sketch(768)),
]


@pytest.mark.parametrize(("shape", "expected"), AUTO)
def test_auto(shape: tuple[int, ...], expected: Columns) -> None:
    assert as_columns("auto", shape) == expected


def test_all() -> None:
    shape = (2, 3)
    assert All().coordinates(shape).tolist() == list(range(6))
    assert torch.equal(All().tangents(shape, 2, 5, CPU, torch.float32).flatten(1), torch.eye(6)[2:5])


def test_sketch_does_not_depend_on_chunks_or_k() -> None:
    shape = (3, 5, 5)
    whole = rs.Sketch(20, seed=4).tangents(shape, 0, 20, CPU, torch.float64)
    parts = [rs.Sketch(75, seed=4).tangents(shape, i, i + 5, CPU, torch.float64) for i in range(0, 20, 5)]
    assert torch.equal(whole, torch.cat(parts))
    other = rs.Sketch(20, seed=5).tangents(shape, 0, 20, CPU, torch.float64)
    assert not (whole == other).any()
    assert not (whole[1:] == other[:-1]).any(), "neighbouring seeds share no direction"
    # independent standard normals: rows nearly orthogonal, mean square 1
    assert 0.9 < float((whole**2).mean()) < 1.1
    gram = whole.flatten(1) @ whole.flatten(1).T / 75
    assert float((gram - torch.diag(gram.diagonal())).abs().max()) < 0.6


def test_state_of_the_callers_generator_is_not_used() -> None:
    before = torch.random.get_rng_state()
    rs.Sketch(3).tangents((4,), 0, 3, CPU, torch.float32)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("offset", [(0, 0), (2, 3), (4, 1)])
def test_moving_the_patch_moves_the_columns(offset: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    patch = rs.Patch(3, offset=offset)
    profile = rs.jacobian_rank(net, torch.randn(1, 1, 8, 8), columns=patch, cut_points=["1"], progress=False)
    expected = net[1].weight[:, patch.coordinates((1, 8, 8))].detach().double()
    torch.testing.assert_close(
        torch.tensor(profile["1"].spectra[0].singular_values), torch.linalg.svdvals(expected), rtol=1e-6, atol=1e-7
    )


def test_positions_take_whole_rows() -> None:
    shape = (5, 3)
    assert rs.Positions([3]).coordinates(shape).tolist() == [9, 10, 11]
    assert rs.Positions([-1, 0]).coordinates(shape).tolist() == [0, 1, 2, 12, 13, 14]
    assert rs.Positions(2).count((4, 2, 2)) == 4
    tangents = rs.Positions([1]).tangents(shape, 1, 3, torch.device("cpu"), torch.float32)
    expected = torch.zeros(2, 5, 3)
    expected[0, 1, 1] = expected[1, 1, 2] = 1
    assert torch.equal(tangents, expected)
    assert rs.Positions([3, 5]).describe() == "all coordinates of positions 3, 5"


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([5], r"position 5 is outside an input of 5 positions \(shape \(5, 3\)\); give 0…4, or -1…-5 from the end"),
        ([-6], "position -6 is outside an input of 5 positions"),
        ([1, -4], "repeat in an input of 5"),
    ],
)
def test_positions_that_do_not_fit(positions: list[int], message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        rs.Positions(positions).coordinates((5, 3))


@pytest.mark.parametrize("positions", [[], [True], [1.5], ["a"]])
def test_what_are_no_positions(positions: list[Any]) -> None:
    with pytest.raises(rs.UsageError, match=r"positions is .*; give whole numbers"):
        rs.Positions(positions)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rs.Sketch(1.5), "k is 1.5; it must be a whole number"),
        (lambda: rs.Sketch(True), "k is True; it must be a whole number"),
        (lambda: rs.Sketch(3, seed=-1), "seed is -1; it must be a whole number of at least 0"),
        (lambda: rs.Sketch(3, seed=2**70), "seed is a whole number of 71 bits; it must be at most"),
        (lambda: rs.Sketch(3, seed="a"), "seed is 'a'; it must be a whole number"),
        (lambda: rs.Patch(2.5), "size is 2.5; give 1 or 2 whole numbers"),
        (lambda: rs.Patch((2, 3, 4)), r"size is \(2, 3, 4\); give 1 or 2 whole numbers"),
        (lambda: rs.Patch(2, offset=(0, 1.5)), r"offset is \(0, 1.5\); give 2 whole numbers"),
        (lambda: rs.Patch(2, centre=3), "centre is 3; give 2 whole numbers"),
        (lambda: rs.Patch(2, channels=[True]), r"channels is \[True\]; give whole numbers"),
        (lambda: rs.Patch(2, channels="01"), "channels is '01'; give whole numbers"),
        (lambda: rs.Patch(coordinates=[1.5]), "coordinates is 1.5; give whole numbers"),
        (lambda: rs.Positions(1.5), "positions is 1.5; give whole numbers"),
        (lambda: rs.Positions("0"), "positions is '0'; give whole numbers"),
    ],
)
def test_what_counts_nothing(make: Any, message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        make()


def test_numbers_of_numpy_are_plain_in_the_record() -> None:
    assert repr(rs.Sketch(np.int64(3))) == "Sketch(k=3, seed=0)"
    assert rs.Patch(torch.tensor([2, 5]), channels=np.array([0])) == rs.Patch((2, 5), channels=[0])
    assert rs.Sketch(2, seed=2**40 - 1).tangents((4,), 0, 2, CPU, torch.float32).shape == (2, 4)


@pytest.mark.parametrize("columns", ["al", 16])
def test_what_chooses_no_columns_of_any_input_names_no_sample(columns: object) -> None:
    with pytest.raises(rs.UsageError, match=r"^(unknown columns|columns is)"):
        rs.jacobian_rank(torch.nn.Linear(3, 2), torch.zeros(1, 3), columns=columns)
