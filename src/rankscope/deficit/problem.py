"""The two choices of samples as Lasso problems: all samples with an intercept, or the positive samples without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from rankscope.deficit.exact import exactly_dependent
from rankscope.deficit.lasso import LassoSolution, eta_max, solve_lasso
from rankscope.deficit.moments import Moments, moments, permuted_cross
from rankscope.deficit.null import arrangements, permutation
from rankscope.deficit.operators import FactorGram, Quadratic, SharedGram
from rankscope.deficit.sample import Sample

__all__ = ["SAMPLES_USED", "AllSamples", "PositiveSamples", "Problem", "problems"]

SAMPLES_USED = ("all", "reference")
_FACTOR_BYTES = 2**28


class Problem(Protocol):
    """One batch of classes; every method works on ``rows``, positions within the batch."""

    classes: torch.Tensor
    eta_max: torch.Tensor
    counts: torch.Tensor  # fitted samples of each class's own problem

    def solve(self, rows: torch.Tensor, eta: torch.Tensor, *, start: torch.Tensor | None, tol: float) -> LassoSolution:
        """Exact solutions at ``eta``."""

    def intercept(self, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """The constant that belongs to the coefficients."""

    def r2(self, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred and uncentred R² from residual mean squares."""

    def exact(self) -> torch.Tensor:
        """Whether each class of the batch is an exact combination of the others, up to rounding of the logits."""

    def movable(self, kind: str) -> torch.Tensor:
        """Logarithm of how many arrangements a permutation of the target can reach, for each class of the batch."""

    def r2_held_out(self, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Centred R² on the held-out samples; NaN where they do not vary."""

    def null(
        self, rows: torch.Tensor, eta: torch.Tensor, kind: str, generator: torch.Generator, *, tol: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Centred and uncentred fitted R² after one permutation of the target, at the same η."""


def _ratio(residual: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """1 − residual/total, NaN where the total is zero up to rounding of the residual."""
    return torch.where(total > 0, 1 - residual / total, torch.nan)


class AllSamples:
    """Every class on all fitted samples, centred: one Gram matrix for all."""

    def __init__(self, sample: Sample, fitted: Moments) -> None:
        self.sample, self.moments, self.classes = sample, fitted, sample.classes
        self.form: Quadratic = SharedGram(fitted.gram, fitted.mean)
        self.level = (1 + fitted.mean.square() / fitted.gram.diagonal().clamp_min(1e-300)).sqrt()
        self.cross = fitted.gram[self.classes]
        self.square = fitted.gram.diagonal()[self.classes]
        self.eta_max = eta_max(self.cross, self.classes)
        self.counts = torch.full_like(self.classes, fitted.count)
        self.uncentred = self.square + fitted.mean[self.classes] ** 2
        self.test = moments(sample.test_logits, sample.test) if len(sample.test) > 1 else None

    def solve(self, rows: torch.Tensor, eta: torch.Tensor, *, start: torch.Tensor | None, tol: float) -> LassoSolution:
        return solve_lasso(
            self.form, self.cross[rows], self.square[rows], eta, self.classes[rows], start=start, tol=tol
        )

    def intercept(self, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        return self.moments.mean[self.classes[rows]] - coefficients @ self.moments.mean

    def r2(self, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _ratio(residual, self.square[rows]), _ratio(residual, self.uncentred[rows])

    def exact(self) -> torch.Tensor:
        form = self.form
        assert isinstance(form, SharedGram)
        roundoff = torch.finfo(self.sample.logits.dtype).eps / 2
        return exactly_dependent(form.eigenvalues, form.basis.T.square(), self.level, roundoff)[self.classes]

    def movable(self, kind: str) -> torch.Tensor:
        labels = self.sample.labels[self.sample.fit]
        target = self.sample.logits[self.sample.fit][:, self.classes]
        return arrangements(target, labels if kind == "within_class" else torch.zeros_like(labels))

    def r2_held_out(self, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        if self.test is None:
            return torch.full_like(self.eta_max[rows], torch.nan)
        own = self.classes[rows]
        error = -coefficients.scatter(1, own[:, None], -1.0)  # λ with λ_i = −1, as in Eq. 11
        offset = error @ self.test.mean - self.intercept(rows, coefficients)
        square = ((error @ self.test.gram) * error).sum(1) + offset**2
        return _ratio(square, self.test.gram.diagonal()[own])

    def null(
        self, rows: torch.Tensor, eta: torch.Tensor, kind: str, generator: torch.Generator, *, tol: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fit, own = self.sample.fit, self.classes[rows]
        order = permutation(self.sample.labels[fit], kind, generator)
        cross = permuted_cross(self.sample.logits, fit, order, self.moments.mean, own)
        return self.r2(rows, solve_lasso(self.form, cross, self.square[rows], eta, own, tol=tol).residual)


class PositiveSamples:
    """Each class on its own positive samples, no intercept (as in the authors' code): one small factor per class."""

    def __init__(self, sample: Sample, classes: torch.Tensor) -> None:
        self.sample, self.classes = sample, classes
        positives = [sample.fit[sample.labels[sample.fit] == i] for i in classes]
        self.counts = torch.tensor([len(p) for p in positives], device=classes.device)
        most = int(self.counts.max())
        self.samples = torch.zeros(len(classes), most, sample.width, dtype=torch.float64, device=classes.device)
        for b, rows in enumerate(positives):
            self.samples[b, : len(rows)] = sample.logits[rows].to(torch.float64)
        own = classes[:, None, None].expand(-1, most, 1)
        self.target = self.samples.gather(2, own)[:, :, 0]  # (B, n), zero beyond the count
        self.form = FactorGram.of(self.samples, self.counts)
        self.cross = self._cross(torch.arange(len(classes), device=classes.device), self.target)
        square = self.target.square().sum(1) / self.counts
        self.square = torch.where(square > 0, square, 1.0)
        mean = self.target.sum(1) / self.counts
        there = torch.arange(most, device=classes.device) < self.counts[:, None]
        # not square − mean²: with a large mean that is rounding
        centred = torch.where(there, self.target - mean[:, None], 0.0)
        self.variance = torch.where(self.counts > 1, centred.square().sum(1) / self.counts, 0.0)
        self.variance[self.variance < 1e-14 * square] = 0.0
        self.eta_max = eta_max(self.cross, classes)

    def _cross(self, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (target[:, None, :] @ self.samples[rows])[:, 0] / self.counts[rows, None]

    def solve(self, rows: torch.Tensor, eta: torch.Tensor, *, start: torch.Tensor | None, tol: float) -> LassoSolution:
        form = self.form.select(rows)
        return solve_lasso(form, self.cross[rows], self.square[rows], eta, self.classes[rows], start=start, tol=tol)

    def intercept(self, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(self.eta_max[rows])

    def r2(self, rows: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _ratio(residual, self.variance[rows]), _ratio(residual, self.square[rows])

    def exact(self) -> torch.Tensor:
        roundoff = torch.finfo(self.sample.logits.dtype).eps / 2
        out = torch.zeros(len(self.classes), dtype=torch.bool, device=self.classes.device)
        ones = torch.ones(self.sample.width, dtype=torch.float64, device=self.classes.device)
        for b, i in enumerate(self.classes.tolist()):
            factor, values = self.form.factor[b], self.form.eigenvalues[b]
            # right singular vectors of the factor; those of (nearly) zero length are the null space
            root = values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()[:, None]
            touch = (self.form.basis[b].T @ factor / root).square()
            out[b] = exactly_dependent(values, touch, ones, roundoff)[i]
        return out

    def movable(self, kind: str) -> torch.Tensor:
        return torch.stack(
            [
                arrangements(self.target[b, :n, None], torch.zeros(n, dtype=torch.int64, device=self.target.device))[0]
                for b, n in enumerate(self.counts.tolist())
            ]
        )

    def r2_held_out(self, rows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(self.eta_max[rows], torch.nan)
        test, labels = self.sample.test, self.sample.test_labels
        for b, i in enumerate(self.classes[rows].tolist()):
            z = self.sample.test_logits[test[labels[test] == i]].to(torch.float64)
            if len(z) > 1:
                error = (z[:, i] - z @ coefficients[b]).square().mean()
                out[b] = _ratio(error, z[:, i].var(correction=0))
        return out

    def null(
        self, rows: torch.Tensor, eta: torch.Tensor, kind: str, generator: torch.Generator, *, tol: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # all positive samples carry one label, so both kinds of permutation are the same here
        target = self.target[rows].clone()
        for b, count in enumerate(self.counts[rows].tolist()):
            target[b, :count] = target[b, torch.randperm(count, generator=generator).to(target.device)]
        form, cross = self.form.select(rows), self._cross(rows, target)
        return self.r2(rows, solve_lasso(form, cross, self.square[rows], eta, self.classes[rows], tol=tol).residual)


def problems(sample: Sample, samples_used: str, fitted: Moments) -> Iterator[Problem]:
    """The batches of a choice of samples: one for ``all``; as many as memory asks for ``reference``."""
    if samples_used == "all":
        yield AllSamples(sample, fitted)
        return
    most = int(torch.bincount(sample.labels[sample.fit]).max())
    for part in sample.classes.split(max(1, _FACTOR_BYTES // (most * sample.width * 8))):
        yield PositiveSamples(sample, part)
