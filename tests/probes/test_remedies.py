"""Remedies against the same chains written out in torch, differentiated in reverse and decomposed by numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import jacrev

import rankscope as rs
from rankscope.probes import REMEDIES

N, DEPTH, SAMPLES, SEED = 12, 7, 50, 4
EPS32 = 2.0**-23
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
}


def haar(rng: np.random.Generator, gain: float) -> Tensor:
    """Gram–Schmidt on Gaussian columns with positive diagonal: Haar-distributed by construction."""
    columns = rng.standard_normal((N, N))
    basis: list[np.ndarray] = []
    for column in columns.T:
        for _ in range(2):
            for b in basis:
                column = column - (b @ column) * b
        basis.append(column / np.linalg.norm(column))
    return gain * torch.from_numpy(np.array(basis).T)


def chain(name: str, activation: str) -> tuple[list[int], list[int]]:
    """Jacobian rank and feature dimension at every depth."""
    rng = np.random.default_rng(SEED)
    units = 3 * N if name == "width" else N
    gain = 2**0.5 if activation == "relu" else 1.0
    batch, point = torch.zeros(SAMPLES, units).double(), torch.zeros(units).double()
    batch[:, :N] = torch.from_numpy(rng.standard_normal((SAMPLES, N)))
    point[:N] = torch.from_numpy(rng.standard_normal(N))
    jacobian = torch.eye(units, N).double()
    act, ranks, dimensions = ACTIVATIONS[activation], [], []
    for _ in range(DEPTH):
        if name == "orthogonal":
            weights = haar(rng, gain)
        else:
            weights = torch.from_numpy(rng.standard_normal((units, units)) * gain / units**0.5)
        seen = batch @ weights.T  # BatchNorm: statistics held fixed
        mean, std = seen.mean(0), (seen.var(0, correction=0) + 1e-5).sqrt()

        def layer(h: Tensor, weights: Tensor = weights, mean: Tensor = mean, std: Tensor = std) -> Tensor:
            y = h @ weights.T
            if name == "batchnorm":
                y = (y - mean) / std
            if name == "layernorm":
                y = torch.nn.functional.layer_norm(y, (units,))
            y = act(y)
            return {"skip": h + y, "skip_scaled": h + y / DEPTH**0.5}.get(name, y)

        jacobian = jacrev(layer)(point) @ jacobian
        point, batch = layer(point), layer(batch)
        sigma = np.linalg.svd(jacobian.numpy(), compute_uv=False)
        ranks.append(int((sigma >= EPS32 * N * sigma[0]).sum()))
        values = np.linalg.eigvalsh(np.cov(batch.numpy().T))
        dimensions.append(int((values >= EPS32 * units * values[-1]).sum()))
    return ranks, dimensions


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", REMEDIES)
def test_against_the_chain_written_out(name: str, activation: Any) -> None:
    found = rs.probe_remedies(
        [name], width=N, depth=DEPTH, samples=SAMPLES, seeds=SEED, activation=activation, width_factor=3
    )
    ranks, dimensions = chain(name, activation)
    assert found[name].ranks.tolist() == [ranks]
    assert found[name].dimensions.tolist() == [dimensions]


@pytest.fixture(scope="module")
def result() -> rs.RemedyResult:
    return rs.probe_remedies(width=24, depth=30, seeds=(0, 1))


def test_what_the_remedies_do(result: rs.RemedyResult) -> None:
    final = {c.name: np.median(c.ranks, axis=0)[-1] for c in result}
    assert list(final) == list(REMEDIES)
    assert final["skip_scaled"] == 24  # exponents stay together: nothing is lost
    assert final["width"] > final["plain"]
    # a fixed-statistics BatchNorm rescales units, which the next random layer mixes: no gain for the Jacobian
    assert final["batchnorm"] < 24 / 2
    assert final["plain"] < 24 / 2
    linear = rs.probe_remedies(["plain", "orthogonal"], width=24, depth=30, activation=None, seeds=0)
    assert (linear["orthogonal"].ranks == 24).all()
    assert linear["plain"].ranks[0, -1] < 24
    # scale: orthogonal layers keep lengths, behind ReLU √2 of them
    assert linear["orthogonal"].chain.runs[0].steps[-1].log_sigma_max == pytest.approx(0, abs=1e-10)
    assert result["orthogonal"].chain.runs[0].steps[0].log_sigma_max == pytest.approx(np.log(2) / 2, abs=1e-10)


def test_the_wide_chain_has_as_many_inputs(result: rs.RemedyResult) -> None:
    step = result["width"].chain.runs[0].steps[0]
    assert step.jacobian.shape == (48, 24)
    assert (result["width"].ranks <= 24).all()
    assert result["width"].chain.prediction.startswith("none: the input has fewer")
    assert result["width"].label == "2 × width"


def test_record(result: rs.RemedyResult) -> None:
    table = result.table()
    assert len(table) == 7 * 30
    last = table[(table.remedy == "plain") & (table.depth == 30)].iloc[0]
    assert last["rank_min"] == result["plain"].ranks[:, -1].min()
    assert last["rank_max"] == result["plain"].ranks[:, -1].max()
    assert last["dimension"] == np.median(result["plain"].dimensions[:, -1])
    record = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert record["schema_version"] == 1
    assert record["kind"] == "probe_remedies"
    assert record["seeds"] == [0, 1]
    assert record["samples"] == 120
    assert record["remedies"][1]["residual"] == 1.0
    assert record["remedies"][5]["init"] == "orthogonal"
    assert record["remedies"][6]["units"] == 48
    assert record["remedies"][0]["jacobian_ranks"] == result["plain"].ranks.tolist()
    text = str(result)
    assert "relu chain of 30 layers, 24 inputs, 2 seeds" in text
    assert "which the Jacobian holds fixed" in text
    assert all(label in text for label in ("skip, branch/√depth", "2 × width"))
    assert all(curve.certain for curve in result)
    assert "rounding could change" not in text
    # a threshold at one singular value of one chain: what lies on it may be counted or not
    sigma = result["skip"].chain.runs[1].steps[4].jacobian.singular_values
    close = result.with_tolerance(float(sigma[9] / sigma[0]))
    assert [curve.name for curve in close if not curve.certain] == ["skip"]
    assert f"rounding could change some of these ranks: {result['skip'].label}\n" in str(close)
    loose = result.with_tolerance("reference")
    assert loose.tolerance.name == "reference"
    assert loose["plain"].ranks[0, -1] <= result["plain"].ranks[0, -1]
    assert (loose["plain"].dimensions == result["plain"].dimensions).all()
    with pytest.raises(rs.UsageError, match="'widht' was not measured; did you mean 'width'"):
        result["widht"]


def test_figures(result: rs.RemedyResult) -> None:
    ax = result.plot()
    assert len(ax.lines) == 7
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.median(result["plain"].ranks, axis=0))
    assert ax.figure.get_size_inches()[0] <= 3.5
    dimension = result.plot(quantity="dimension")
    np.testing.assert_array_equal(dimension.lines[1].get_ydata(), np.median(result["skip"].dimensions, axis=0))
    assert result.side_by_side().shape == (2,)
    assert not any(line.get_clip_on() for line in ax.lines)
    ax.set_xlim(1, 3)
    assert all(tick == int(tick) for tick in ax.get_xticks())
    with pytest.raises(rs.UsageError, match="quantity is 'ranks'"):
        result.plot(quantity="ranks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remedies": ["skp"]}, "no remedy 'skp'; did you mean 'skip'"),
        ({"remedies": []}, "remedies is empty"),
        ({"scale": "tiny"}, "unknown scale 'tiny'"),
        ({"width": 1}, "width is 1"),
        ({"depth": 0}, "depth is 0"),
        ({"width_factor": 1}, "width_factor is 1"),
        ({"samples": 1}, "samples is 1"),
        ({"activation": "rel", "scale": "small"}, "unknown activation 'rel'; did you mean 'relu'"),
        ({"seeds": [-1], "scale": "small"}, r"seeds is -1; it must be a whole number"),
        ({"tolerance": "papr"}, "papr"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rs.UsageError, match=message):
        rs.probe_remedies(**options)
