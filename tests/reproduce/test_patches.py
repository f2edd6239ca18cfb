"""Where the patch of Fig. 1 (a–c) lies: the paper's place, the corners, any pixel, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import World

from rankscope._base.errors import UsageError
from rankscope.loading import load_images, load_model
from rankscope.reproduce import reproduce
from rankscope.reproduce.patches import PATCHES, patch_at, patch_of


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ("centre", (104, 120), (88, 104)),
        ("top-left", (0, 16), (0, 16)),
        ("top-right", (0, 16), (176, 192)),
        ("bottom-left", (208, 224), (0, 16)),
        ("bottom-right", (208, 224), (176, 192)),
        ("96,104", (96, 112), (104, 120)),
    ],
)
def test_every_place_has_its_pixels(place: str, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    image = np.arange(3 * 224 * 192).reshape(3, 224, 192)
    expected = image[:, slice(*rows), slice(*columns)].ravel()
    found = patch_at(patch_of(place), 16, 224, 192).coordinates((3, 224, 192))
    assert sorted(found.tolist()) == sorted(expected.tolist())


@pytest.mark.parametrize("given", ["center", "top", "1,2,3", "-1,4", "a,b", "", 7, ["top-left"]])
def test_what_is_no_place_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match=r"patch is .*or give row and column of its first pixel, such as '96,104'"):
        patch_of(given)


def test_a_patch_outside_the_image_is_refused() -> None:
    with pytest.raises(UsageError, match="give a row up to 208 and a column up to 176"):
        patch_at("209,0", 16, 224, 192)
    assert len(PATCHES) == 5


def test_other_figures_have_no_use_for_a_patch(tmp_path: Path) -> None:
    for name in ("fig3", "fig1d"):
        with pytest.raises(UsageError, match=f"{name} has no use for patch: it needs neither images"):
            reproduce(name, out=tmp_path, patch="top-left", scale="small")
    with pytest.raises(UsageError, match="table1 has no use for patch: it measures whole images"):
        reproduce("table1", out=tmp_path, patch="top-left", scale="small")


def test_the_patch_moves_the_columns(world: World, tmp_path: Path) -> None:
    """Ranks at the last layer by plain autograd, over the pixels of the corner."""
    given = {"imagenet": world.images, "weights": world.weights, "networks": [world.net], "only": [], "scale": "small"}
    found = reproduce("fig1a", out=tmp_path, patch="top-right", device="cpu", **given)
    assert found.settings["patch_position"] == "top-right"
    assert (found.settings["networks"][0]["patch_rows"], found.settings["networks"][0]["patch_columns"]) == (
        (0, 8),
        (24, 32),
    )
    loaded = load_model(world.net, weights=world.weights / "small.safetensors", num_classes=10)
    images = load_images(world.images, preprocessing=loaded.preprocessing, limit=2, seed=0).tensor.double()
    model, ranks = loaded.model.double(), []
    for image in images:
        rows = torch.func.jacrev(model)(image[None])[0, :, 0][:, :, :8, 24:].flatten(1)
        sigma = torch.linalg.svdvals(rows.detach()).numpy()
        ranks.append(int((sigma >= 2.0**-23 * 10 * sigma[0]).sum()))
    last = found.values[found.values["as_printed"] == "paper"].iloc[-1]
    assert last["lower"] <= max(ranks) <= last["upper"]
    assert (last["min"], last["max"]) == (min(ranks), max(ranks))
