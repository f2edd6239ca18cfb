"""``rankscope theory``: random deep chains measured beside the theory, and the theory alone."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import UsageError
from rankscope._base.facts import as_facts
from rankscope._base.files import make_folder, write_whole

if TYPE_CHECKING:
    from rankscope.cli.options import Request
    from rankscope.theory import ChainProfile

__all__ = ["predict", "run_chain", "run_exponents", "write_chain"]


def run_chain(*, seeds: str, tolerance: str, residual: str | None, out: Path, as_json: bool, **options: Any) -> None:
    """Measure a chain for every seed, write the files and print the table or the JSON."""
    from rankscope.theory import deep_chain

    parsed: dict[str, Any] = {"seeds": _seeds(seeds), "tolerance": tolerance, "residual": _residual(residual)}
    make_folder(out)
    profile = deep_chain(**parsed, **options)
    write_chain(profile, out)
    if as_json:
        print(json.dumps(profile.to_dict(), indent=1, allow_nan=False))
    else:
        print(profile)
        print(f"written: {', '.join(f'chain.{kind}' for kind in ('json', 'csv', 'png', 'svg'))} in {out}")


def write_chain(profile: ChainProfile, out: Path) -> None:
    """``chain.json``, ``chain.csv``, ``chain.png`` and ``chain.svg``."""
    from rankscope._base.style import figure_style

    write_whole(out / "chain.json", json.dumps(profile.to_dict(), indent=1, allow_nan=False))
    write_whole(out / "chain.csv", profile.table().to_csv(index=False))
    with figure_style():
        figure: Any = profile.plot().figure
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            # no date: the same profile gives the same file
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
            write_whole(out / f"chain.{kind}", buffer.getvalue())


def predict(width: int, depth: int, *, tolerance: str, law: str, as_json: bool) -> None:
    """Print the predicted rank of a Gaussian chain and the law that gave it."""
    from rankscope.theory import predicted_rank

    # an unknown law is refused there, with the known ones named
    found = predicted_rank(width, depth, tolerance, law=law)  # type: ignore[arg-type]
    print(json.dumps(found.to_dict(), indent=1, allow_nan=False) if as_json else found)


def run_exponents(request: Request, *, top: int, as_json: bool) -> None:
    """Load the model and its images, measure, write ``exponents.json``, CSV and figures, print the table or JSON."""
    from dataclasses import replace

    from rankscope.cli.profile import load
    from rankscope.cli.results import as_json_text, write_result
    from rankscope.jacobian import chain_exponents

    if top < 1:
        raise UsageError(f"--top is {top}; at least one exponent is needed")
    make_folder(request.out)
    # what a model's own code prints must not mix with the result
    with contextlib.redirect_stdout(sys.stderr):
        loaded, inputs, images, notes = load(request)
        found = chain_exponents(
            loaded.model.to(request.device),
            inputs,
            cut_points=request.cut_points,
            top=top,
            dtype=request.dtype,
            seed=request.seed,
            name=loaded.name,
        )
        found = replace(
            found,
            images=found.images if images is None else tuple(images.names[: len(found.images)]),
            facts=(*as_facts([f"weights: {loaded.weights}", *loaded.notes, *notes]), *found.facts),
        )
        tables = {"exponents": found.table(), "exponents-by-image": found.frame()}
        figure: Any = found.plot().figure
        write_result(request.out, "exponents", found.to_dict(), tables, figure)
    print(as_json_text(found.to_dict()) if as_json else found)
    if not as_json:
        print(f"written: exponents.json, .csv, .png and .svg, exponents-by-image.csv in {request.out}")


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text!r} is not a list of whole numbers; write 0 or 0,1,2") from None


def _residual(text: str | None) -> float | bool:
    if text is None:
        return False
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--residual {text!r} is not a number; give the branch's scale, such as 1 or 0.14") from None
