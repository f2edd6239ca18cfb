"""The small world of these tests, made once."""

from __future__ import annotations

import pytest
from small_world import NET, World, fitted, write_images


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    write_images(root / "val")
    (root / "net.py").write_text(NET)
    (root / "weights").mkdir()
    made = World(root / "val", f"{root / 'net.py'}:small", root / "weights")
    fitted(made.net, made.images, made.weights / "small.safetensors")
    fitted("timm:test_vit", made.images, made.weights / "test_vit.safetensors")
    return made
