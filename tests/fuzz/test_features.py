"""A seeded part of the feature rooms' fuzzing: nothing answered wrongly, no error but the package's own."""

from __future__ import annotations

import pytest
from fuzzing import feature_calls


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_feature_calls(start: int) -> None:
    found = [feature_calls.run(seed) for seed in range(start, start + 50)]
    bad = [o for o in found if o.status in ("wrong", "raw error", "refused")]
    assert not bad, "\n".join(f"seed {o.seed}: {o.status}: {o.detail}" for o in bad)
