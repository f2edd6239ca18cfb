"""What a probe leaves: spectra before and after a component, with bounds, expectations and the sample limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError, nearest, parameter
from rankscope._base.facts import Fact, FactKind
from rankscope._base.records import Record
from rankscope.probes import earlier
from rankscope.spectra import RankEstimate, Spectrum, Tolerance, ToleranceLike, as_tolerance
from rankscope.views.noted import Noted
from rankscope.views.probe_figure import plot_probes
from rankscope.views.probe_text import probes_text
from rankscope.views.probes import Bounded, ProbeRow, ProbesView

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["SCHEMA_VERSION", "ProbeResult", "ProbeResults"]

SCHEMA_VERSION = 1
_UNITS = 1e240  # below 2^900, beyond which a covariance's eigenvalues are kept in other units
_UNKNOWN, _UNCERTIFIED = Fact(FactKind.PUSHED, {"name": "vmap(jvp)"}), Fact(FactKind.NOT_CERTIFIED)


@dataclass(frozen=True, eq=False)
class ProbeResult(Noted, Record):
    """Feature dimension and Jacobian rank before and after one component.

    Attributes
    ----------
    features_before, features_after : Spectrum
        Eigenvalues of the covariance of the features, as the spectrum of the d × d covariance matrix (paper, §6.1).
    jacobian_before : Spectrum
        Of the random layer alone.
    jacobian_after : tuple of Spectrum
        Of component∘layer, one a point.
    expected_exact, expected_numerical : tuple of (int or None)
        Rank of the component's own Jacobian at each point in real arithmetic, and without the directions that an ε
        shrinks; ``None`` where no exact value is known. The random layer is invertible, so the first is also the
        exact rank of component∘layer.
    method : Fact
        How tangents were pushed: kind ``PUSHED`` or ``LINEARISED``, the ``name`` of the way.
    certificate : Fact
        What bounds the rounding error: kind ``TWO_PRECISIONS``, ``NOT_IN_BOTH`` or ``IN_DOUBT``.
    facts : tuple of Fact
        How training mode was read where it couples samples or is random, and what puts the derivative in doubt;
        ``notes`` are their sentences.
    expectation : str
        Why the standard set expects these ranks; empty for a component of the user's.
    seconds : float
        For this component, without what it shares with others.
    peak_memory : int or None
        Most bytes allocated on a GPU while this component was measured; ``None`` on a CPU.
    """

    name: str
    label: str
    features_before: Spectrum
    features_after: Spectrum
    jacobian_before: Spectrum
    jacobian_after: tuple[Spectrum, ...]
    tolerance: Tolerance
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    samples: int
    seed: int
    front: str
    dtype: str
    device: str
    method: Fact = _UNKNOWN
    facts: tuple[Fact, ...] = ()
    expected_exact: tuple[int | None, ...] = ()
    expected_numerical: tuple[int | None, ...] = ()
    expectation: str = ""
    certificate: Fact = _UNCERTIFIED
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory: int | None = None

    @classmethod
    def from_earlier(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Earlier files say in words what are facts today, and have another name for the number of samples."""
        data = data if "mode" not in data else earlier.probe(data)
        return {**data, "samples": data["batch"]} if "batch" in data else data

    @property
    def sample_limit(self) -> int:
        """What this many samples can show at most: samples − 1 dimensions, since centring takes one."""
        return self.samples - 1

    @property
    def dimension_before(self) -> RankEstimate:
        """Feature (PCA) dimension of the component's input."""
        return self.features_before.rank(self._of_eigenvalues)

    @property
    def dimension_after(self) -> RankEstimate:
        """Feature (PCA) dimension of the component's output."""
        return self.features_after.rank(self._of_eigenvalues)

    @property
    def _of_eigenvalues(self) -> Tolerance:
        """PCA dimensions count λ ≥ eps32·d·λ₁ under every named rule; a constant is taken as it is.

        Raises
        ------
        UsageError
            For an ``atol`` among numbers so small or large that eigenvalues there are kept in other units.
        """
        atol = self.tolerance.atol
        if atol and not 1 / _UNITS <= atol <= _UNITS:
            raise UsageError(
                f"an atol of {atol:g} is not compared with eigenvalues of a covariance, only one from {1 / _UNITS:g} "
                f"to {_UNITS:g} is; choose {parameter('tolerance')} with an rtol"
            )
        return self.tolerance if self.tolerance.rule == "constant" else Tolerance.paper()

    @property
    def rank_before(self) -> RankEstimate:
        """Jacobian rank of the random layer."""
        return self.jacobian_before.rank(self.tolerance)

    @property
    def rank_after(self) -> RankEstimate:
        """Jacobian rank of component∘layer: the largest over the points (function rank, paper Eq. 3)."""
        return max((s.rank(self.tolerance) for s in self.jacobian_after), key=lambda e: e.value)

    @property
    def exact_rank_at_least(self) -> int:
        """Singular values that rounding cannot have made: a lower bound on the exact rank at some point.

        It reaches the exact rank where a float64 SVD was taken (sides up to 1,024); a Gram matrix resolves σ only down
        to about 1e-5·σ₁.
        """
        return max(int((s.singular_values**2 - s.square_error > s.error_bound**2).sum()) for s in self.jacobian_after)

    @property
    def at_sample_limit(self) -> bool:
        """Whether the number of samples, not the component, may have set the feature dimension."""
        return self.dimension_after.value >= self.sample_limit

    def with_tolerance(self, tolerance: ToleranceLike) -> ProbeResult:
        """The same spectra read with another tolerance."""
        return replace(self, tolerance=as_tolerance(tolerance))

    def summary(self) -> dict[str, Any]:
        """One row of the table: values, bounds, expectations."""
        before, after = self.rank_before, self.rank_after
        dim_before, dim_after = self.dimension_before, self.dimension_after
        ranks = [s.rank(self.tolerance).value for s in self.jacobian_after]
        exact = [v for v in self.expected_exact if v is not None]
        numerical = [v for v in self.expected_numerical if v is not None]
        return {
            "component": self.name,
            "outputs": self.jacobian_after[0].shape[0],
            "dimension_before": dim_before.value,
            "dimension_after": dim_after.value,
            "dimension_lower": dim_after.lower,
            "dimension_upper": dim_after.upper,
            "at_sample_limit": self.at_sample_limit,
            "rank_before": before.value,
            "rank_after": after.value,
            "rank_lower": after.lower,
            "rank_upper": after.upper,
            "rank_min": min(ranks),
            "certified": after.certified and dim_after.certified,
            "exact_rank_at_least": self.exact_rank_at_least,
            "expected_exact": max(exact) if exact else None,
            "expected_numerical": max(numerical) if numerical else None,
            "seconds": self.seconds,
        }

    def table(self) -> pd.DataFrame:
        """One row; see ``ProbeResults.table`` for several components."""
        import pandas as pd

        return pd.DataFrame([self.summary()])

    def to_dict(self, *, spectra: bool = False) -> dict[str, Any]:
        """Plain values for JSON; ``spectra`` adds every singular value and eigenvalue."""
        found: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": "probe",
            **self.summary(),
            "label": self.label,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape),
            "samples": self.samples,
            "sample_limit": self.sample_limit,
            "seed": self.seed,
            "front": self.front,
            "points": len(self.jacobian_after),
            "tolerance": self.tolerance.to_dict(),
            "expectation": self.expectation,
            "facts": [fact.to_dict() for fact in self.facts],
            "notes": list(self.notes),
            "method": self.method.to_dict(),
            "certificate": self.certificate.to_dict(),
            "dtype": self.dtype,
            "device": self.device,
            "versions": dict(self.versions),
            "peak_memory": self.peak_memory,
        }
        if spectra:
            found["spectra"] = {
                "features_before": self.features_before.singular_values.tolist(),
                "features_after": self.features_after.singular_values.tolist(),
                "jacobian_before": self.jacobian_before.singular_values.tolist(),
                "jacobian_after": [s.singular_values.tolist() for s in self.jacobian_after],
            }
        return found

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Bars of dimension and rank before and after, as in Fig. 3."""
        return plot_probes(_view([self]), ax=ax)

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        return str(ProbeResults((self,)))


@dataclass(frozen=True, eq=False)
class ProbeResults(Record):
    """Several components behind the same random layer and noise. Prints as a table; iterates over its results.

    Attributes
    ----------
    results : tuple of ProbeResult
    seconds : float
        In all, with what the components share.
    peak_memory : int or None
        Largest number of bytes allocated on a GPU; ``None`` on a CPU.
    """

    results: tuple[ProbeResult, ...]
    seconds: float = 0.0
    peak_memory: int | None = None

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[ProbeResult]:
        return iter(self.results)

    def __getitem__(self, name: str) -> ProbeResult:
        for result in self.results:
            if result.name == name:
                return result
        raise UsageError(f"{name!r} was not probed; {nearest(name, [r.name for r in self.results])}")

    def with_tolerance(self, tolerance: ToleranceLike) -> ProbeResults:
        """The same spectra read with another tolerance."""
        return replace(self, results=tuple(r.with_tolerance(tolerance) for r in self.results))

    def table(self) -> pd.DataFrame:
        """One row per component: dimension and rank before and after, bounds, expectation, seconds."""
        import pandas as pd

        return pd.DataFrame([r.summary() for r in self.results])

    def to_dict(self, *, spectra: bool = False) -> dict[str, Any]:
        """Plain values for JSON; ``spectra`` adds every singular value and eigenvalue."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "probe_all",
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "components": [r.to_dict(spectra=spectra) for r in self.results],
        }

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Grouped bars as in Fig. 3: PCA dimension and Jacobian rank before and after each component."""
        if not self.results:
            raise UsageError("there is no probe to draw; give at least one result")
        return plot_probes(_view(self.results), ax=ax)

    def __repr__(self) -> str:
        return str(self)  # a notebook shows the table, not the arrays

    def __str__(self) -> str:
        return probes_text(_view(self.results)) if self.results else "no component was probed"


def _bounded(found: RankEstimate) -> Bounded:
    return Bounded(found.value, found.lower, found.upper, found.certified)


def _view(results: Sequence[ProbeResult]) -> ProbesView:
    first = results[0]
    return ProbesView(
        rows=tuple(map(_row, results)),
        input_shape=first.input_shape,
        samples=first.samples,
        front=first.front,
        units=first.jacobian_before.shape[0],
        tolerance=first.tolerance.name,
        dtype=first.dtype,
        device=first.device,
        sample_limit=first.sample_limit,
    )


def _row(result: ProbeResult) -> ProbeRow:
    row = result.summary()
    return ProbeRow(
        name=result.name,
        label=result.label,
        outputs=row["outputs"],
        dimension_before=_bounded(result.dimension_before),
        dimension_after=_bounded(result.dimension_after),
        rank_before=_bounded(result.rank_before),
        rank_after=_bounded(result.rank_after),
        at_sample_limit=result.at_sample_limit,
        exact_rank_at_least=result.exact_rank_at_least,
        expected=(row["expected_exact"], row["expected_numerical"]),
        expectation=result.expectation,
        certificate=result.certificate,
        facts=result.facts,
    )
