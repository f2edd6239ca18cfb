"""The findings about the checkpoints of a run: what is said of the layer that lost most."""

from __future__ import annotations

import numpy as np
import pytest

from rankscope.views.watch_text import watched_findings, watched_text

NAN = float("nan")
MOST = ", more than that of any other layer"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([[4, 2]], ""),  # there is no other layer
        ([[4, 2], [4, 2]], ""),  # another lost as much
        ([[8, 4], [4, 2], [4, 4]], ""),
        ([[4, 2], [NAN, NAN]], ""),  # what another lost is unknown
        ([[4, 2], [NAN, 4]], ""),
        ([[4, 2], [4, 3]], MOST),
        ([[4, 2], [4, 5]], MOST),
    ],
)
def test_a_layer_lost_more_than_others_only_where_each_lost_less(rows: list[list[float]], said: str) -> None:
    layers = [f"l{i}" for i in range(len(rows))]
    found = watched_findings({"pca_dimension": np.array(rows, float)}, layers, [1, 2], "step")
    first, last = rows[0]
    wanted = f"The PCA dimension of 'l0' fell by 50%{said}: from {first:g} at step 1 to {last:g} at step 2."
    assert found[1:] == [wanted]


def test_a_run_without_checkpoints_has_a_text() -> None:
    assert watched_text({}, [], [], "step", []) == "0 checkpoints."
