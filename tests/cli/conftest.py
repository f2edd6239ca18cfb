"""A folder for commands that run in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import with_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with_network(tmp_path)
    return tmp_path
