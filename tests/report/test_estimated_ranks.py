"""Ranks read off Lanczos probes: a page says that they are estimates, and claims no fall within their errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankscope as rs
from rankscope.report import profile_page
from rankscope.report.sentences import findings

N, TOLERANCE = 200, 0.5


def chain(second: torch.Tensor) -> nn.Sequential:
    """Gaussian, then ``second``."""
    layers = [nn.Linear(N, N), nn.Linear(N, len(second))]
    first = torch.randn(N, N, generator=torch.Generator().manual_seed(0)) / N**0.5
    for layer, weight in zip(layers, (first, second), strict=True):
        layer.weight.data = weight.clone()
    return nn.Sequential(*layers).eval()


def nearly_one() -> torch.Tensor:
    return torch.eye(N) + 0.02 * torch.randn(N, N, generator=torch.Generator().manual_seed(1)) / N**0.5


def measured(model: nn.Module, method: rs.Lanczos | str, images: int = 1) -> rs.JacobianProfile:
    x = torch.randn(images, N, generator=torch.Generator().manual_seed(2))
    return rs.jacobian_rank(model, x, columns="all", method=method, tolerance=TOLERANCE, progress=False)


@pytest.fixture(scope="module")
def both() -> tuple[rs.JacobianProfile, rs.JacobianProfile]:
    """Exact and estimated, of a network whose rank does not fall."""
    model = chain(nearly_one())
    return measured(model, "exact"), measured(model, rs.Lanczos(probes=2, steps=8))


def said(profile: rs.JacobianProfile) -> str:
    return " ".join(f.text for f in findings(profile) if f.kind == "finding")


def test_a_fall_within_the_errors_of_the_estimates_is_not_claimed(both):
    exact, estimated = both
    first, second = estimated.function_rank
    assert 0 < first - second < 10  # what a sentence would make a fall of
    assert abs(exact.function_rank[0] - exact.function_rank[1]) <= 1
    assert "Most rank is lost" not in said(estimated)
    assert "estimate from Lanczos probes" in said(estimated)
    assert "estimate" not in said(exact)


def test_a_fall_beyond_them_is():
    few = torch.diag((torch.arange(N) < N // 10).float()) + 1e-3 * nearly_one()
    assert "Most rank is lost between 0 and 1" in said(measured(chain(few), rs.Lanczos(probes=2, steps=8)))


@pytest.mark.parametrize(("method", "claimed"), [("exact", True), (rs.Lanczos(probes=2, steps=8), False)])
def test_an_estimate_of_all_is_no_proof_of_it(method: rs.Lanczos | str, claimed: bool):
    model = nn.Sequential(nn.Linear(N, N))
    model[0].weight.data = torch.diag(torch.linspace(0.3, 1, N))
    profile = measured(model, method).with_tolerance(0.1)
    assert profile.function_rank[0] == N
    assert (profile.reading.rows[0]["function_rank"]["lower"] == N) == claimed
    assert ("keeps all the rank" in said(profile)) == claimed


def test_images_of_which_only_the_estimates_differ_do_not_vary():
    model = nn.Sequential(nn.Linear(N, N), nn.Softplus(beta=50), nn.Linear(N, N)).eval()
    profile = measured(model, rs.Lanczos(probes=2, steps=8), images=2)
    assert any(row["rank"]["max"] > row["rank"]["min"] for row in profile.reading.rows)
    assert "Rank varies most" not in said(profile)
    assert "differ by more than the errors of the estimates" in said(profile)


def test_the_table_has_the_errors_of_estimates_and_the_page_says_how_they_were_made(both):
    page = profile_page(both[1])
    table = page.sections[0].tables[0]
    row = dict(zip(table.head, table.cells()[0], strict=True))
    assert float(row["std. error"][0]) > 0
    assert row["bracket"][0].endswith("%")
    assert "bounds fail with probability 1e-6" in table.meaning
    assert "Gram" not in page.sections[0].provenance["computed in"]
    exact = profile_page(both[0]).sections[0]
    assert "bracket" not in exact.tables[0].head
    assert "Gram" in exact.provenance["computed in"]
