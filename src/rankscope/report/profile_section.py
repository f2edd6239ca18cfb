"""A Jacobian profile as a section of a page, and as a page of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rankscope._base.style import narrow_axes
from rankscope.report.figures import Figure, figure_of
from rankscope.report.page import Page, Section, Table
from rankscope.report.sentences import findings
from rankscope.report.table import Share
from rankscope.views.phrases import bounds, counted, gibibytes, shapes_of, span, with_values
from rankscope.views.profile_text import PROBED, flags
from rankscope.views.sentences import phrase, sentence

if TYPE_CHECKING:
    from rankscope.jacobian import JacobianProfile

__all__ = [
    "conventions_table",
    "image_table",
    "profile_page",
    "profile_section",
    "profiles_figure",
    "provenance",
    "rank_table",
]

_MOST_IMAGES = 200
_CONVENTIONS = ("paper", "reference", "torch")


def profile_page(profile: JacobianProfile) -> Page:
    """One profile, one page."""
    section = profile_section(profile)
    return Page.of(section, profile.versions)


def profile_section(profile: JacobianProfile, *, title: str | None = None, name: str = "profile") -> Section:
    """Sentences, the figure with the random layers laid over it, and every table of one profile."""
    theory = profile.comparable
    dotted = " Dotted: expected rank of a random Gaussian chain of the same widths." if theory else ""
    caption = (
        f"Function rank (line) and range over the images (band) of every layer; whiskers show certified bounds.{dotted}"
    )
    return Section(
        title=title or f"Jacobian rank of {profile.model}",
        lead=f"Weights: {profile.weights}. Columns: {profile.columns}. Background: {profile.background}.",
        findings=findings(profile),
        figures=(profiles_figure([(None, profile)], caption, name=name),),
        tables=(rank_table(profile), conventions_table(profile), image_table(profile)),
        provenance=provenance(profile),
    )


def profiles_figure(profiles: Iterable[tuple[str | None, JacobianProfile]], caption: str, *, name: str) -> Figure:
    """Profiles over one another under their labels, beside the prediction for random layers where there is one."""
    axes: list[Any] = [None, narrow_axes()]
    for label, profile in profiles:
        axes = [profile.plot(ax=ax, label=label, theory=profile.comparable) for ax in axes]
    return figure_of(axes[0], caption, name=name, narrow=axes[1])


def rank_table(profile: JacobianProfile, *, caption: str = "Rank of every layer") -> Table:
    """Rank over the images, the function rank's bounds, what is known of estimates, soft ranks, flags."""
    found = profile.reading.rows
    probed = any(row.get("bracket") is not None for row in found)
    rows = []
    for row in found:
        rank, function = row["rank"], row["function_rank"]
        certain = bounds(function["lower"], function["upper"]) if row["certified"] else "none"
        estimate = (row["standard_error"], _share(row["bracket"])) if probed else ()
        rows.append(
            (row["name"], *_sizes(row), rank["min"], rank["median"], rank["max"],
             certain, *estimate, row["effective_rank"], row["stable_rank"], flags(row))
        )  # fmt: skip
    more = ("std. error", "bracket") if probed else ()
    head = ("layer", "outputs", "possible", "min", "median", "max", "bounds", *more, "effective", "stable", "flags")
    meaning = (
        "min, median and max are over the images. max is the function rank; bounds are its certified bounds. Two "
        "measures need no threshold and are medians over the images: the effective rank, exp(−Σ p log p) with "
        "p = σ/Σσ, and the stable rank, Σσ²/σ₁². A value near τ is within its error bound of the threshold τ."
    )
    return Table(caption, head, rows, meaning=f"{meaning} {PROBED}" if probed else meaning)


def _share(value: float | None) -> Share | None:
    return None if value is None else Share(value)


def _sizes(row: dict[str, Any]) -> tuple[Any, Any]:
    """Outputs, and the rank that is possible: a range where samples have several shapes."""
    if "room" not in row:
        return row["rows"], min(row["rows"], row["columns"])
    return span(row["least_rows"], row["rows"]), span(*row["room"])


def conventions_table(profile: JacobianProfile, *, caption: str = "The same spectra under each tolerance") -> Table:
    """Function rank and median under the named conventions, and under the profile's own where it is another."""
    own = profile.tolerance.name
    readings = [profile.with_tolerance(n) for n in _CONVENTIONS]
    if own not in _CONVENTIONS:
        readings.insert(0, profile)
    head = ["layer"]
    for reading in readings:
        mark = " (used)" if reading.tolerance.name == own else ""
        head += [f"{reading.tolerance.name}{mark}, median", "max", "τ/σ₁"]
    rows: list[list[Any]] = []
    for k, layer in enumerate(profile.layers):
        cells: list[Any] = [layer.name]
        for reading in readings:
            rank = reading.reading.rows[k]["rank"]
            shapes = {s.shape for s in layer.spectra if s is not None} or {(layer.rows, layer.columns)}
            relative = sorted(reading.tolerance.relative(shape, _torch_dtype(profile.dtype)) for shape in shapes)
            cells += [rank["median"], rank["max"], span(relative[0], relative[-1], ".1e") if relative[-1] else "–"]
        rows.append(cells)
    meaning = (
        "The tolerance torch grows with the number of outputs, so a rise under it may be an artefact. Use it for "
        "comparison only."
    )
    return Table(caption, head, rows, meaning=meaning)


def image_table(profile: JacobianProfile, *, caption: str = "Rank on every image") -> Table:
    """One row per image, one column per layer."""
    rows = []
    for i, image in enumerate(profile.images[:_MOST_IMAGES]):
        own = (profile.columns.counts[i],) if profile.columns.counts else ()
        rows.append((image, *own, *(int(n) if n >= 0 else None for n in profile.reading.rank[:, i])))
    more = len(profile.images) - _MOST_IMAGES
    note = f"The first {_MOST_IMAGES}; {more:,} more are in profile.safetensors." if more > 0 else ""
    sizes = ("columns",) if profile.columns.counts else ()
    return Table(caption, ("image", *sizes, *(x.name for x in profile.layers)), rows, folded=True, note=note)


def provenance(profile: JacobianProfile) -> dict[str, str]:
    """Everything that led to the numbers, in words."""
    made = {
        "model": profile.model,
        "weights": profile.weights,
        "input": shapes_of(dict.fromkeys(profile.input_shapes or (profile.input_shape,))),
        "images": f"{len(profile.images):,}",
        "cut points": profile.cut_points,
        "columns": str(profile.columns),
        "background": profile.background,
        "tolerance": profile.tolerance.name,
        "method": phrase(profile.method),
        "certificate": phrase(profile.certificate),
        "forward against reverse mode": (
            "not checked" if profile.adjoint_error is None else f"agree to {profile.adjoint_error:.1e}"
        ),
        "computed in": f"{profile.dtype}, {_ways(profile)}",
        "device": profile.device,
        "time": f"{profile.seconds:.1f} s, {counted(profile.chunk_size, 'tangent')} at once",
        "versions": with_values(profile.versions),
    }
    if profile.peak_memory is not None:
        made["peak memory"] = gibibytes(profile.peak_memory)
    for number, fact in enumerate(profile.failed_methods, 1):
        made[f"way not taken {number}"] = sentence(fact)
    for number, text in enumerate(profile.notes, 1):
        made[f"note {number}"] = text
    made |= {name: str(value) for name, value in profile.provenance.items() if name not in made}
    return made


def _ways(profile: JacobianProfile) -> str:
    """What the spectra are made with."""
    probed = profile.reading.probed
    ways = ["singular values from float64 Gram matrices"] if not probed.all() else []
    return " and ".join([*ways, *(["ranks estimated with Lanczos probes"] if probed.any() else [])])


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
