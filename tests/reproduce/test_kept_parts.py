"""Kept parts belong to the pictures themselves, and both readings of Fig. 1 have as many images as they ask for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_world import World

from rankscope._base.errors import OutputError
from rankscope.reproduce import partial_rank, reproduce


def given(world: World) -> dict[str, Any]:
    own = {"imagenet": world.images, "weights": world.weights, "networks": [world.net], "only": []}
    return {**own, "scale": "small", "device": "cpu"}


def replace_pictures(root: Path) -> None:
    """Others of the same names and sizes."""
    rng = np.random.default_rng(9)
    for file in sorted(root.rglob("*.png")):
        Image.fromarray(rng.integers(0, 256, (72, 80, 3)).astype("uint8")).save(file)


def test_ranks_of_other_pictures_of_the_same_names_are_not_read_back(world: World, tmp_path: Path) -> None:
    mine = world.copy(tmp_path)
    reproduce("fig1a", out=tmp_path / "out", **given(mine))
    replace_pictures(mine.images)
    with pytest.raises(OutputError, match=r"rank-image was measured with pixels '.*now .*delete that folder"):
        reproduce("fig1a", out=tmp_path / "out", **given(mine))


@pytest.mark.parametrize(("name", "part"), [("table2", "clsdim"), ("fig4", "deficit-paper")])
def test_what_follows_from_a_pass_over_other_pictures_is_not_read_back(
    world: World, tmp_path: Path, name: str, part: str
) -> None:
    """The pass itself is refused first; who deletes its folder, as the message says, must not get the old numbers."""
    mine = world.copy(tmp_path)
    reproduce(name, out=tmp_path / "out", **given(mine))
    replace_pictures(mine.images)
    with pytest.raises(OutputError, match="collection was measured with data"):
        reproduce(name, out=tmp_path / "out", **given(mine))
    shutil.rmtree(tmp_path / "out" / "parts" / "small" / "collection")
    with pytest.raises(OutputError, match=f"{part} was measured with data"):
        reproduce(name, out=tmp_path / "out", **given(mine))


def test_the_code_takes_fewer_images_than_the_text(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default 16 images of the text and 10 of the code; here 2 and 1."""
    monkeypatch.setattr(partial_rank, "_CODE_IMAGES", 1)
    found = reproduce("fig1a", out=tmp_path, **given(world)).values
    assert found.groupby("as_printed")["images"].unique().map(list).to_dict() == {"paper": [2], "reference": [1]}
