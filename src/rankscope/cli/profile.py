"""``rankscope profile``: load, measure, write, print; what is finished survives an interruption."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankscope._base.errors import DataError
from rankscope._base.files import FolderLock, write_whole
from rankscope._base.progress import Reporter, progress_for
from rankscope.cli.interrupted import InterruptedRunError
from rankscope.cli.options import Request
from rankscope.jacobian import JacobianProfile, jacobian_rank
from rankscope.loading import calibrate_batchnorm, load_images, load_model

if TYPE_CHECKING:
    from rankscope.loading import Images, LoadedModel

__all__ = ["load", "measure", "run", "write"]

_CALIBRATION = 32  # images a batch; BatchNorm statistics want at least 8
_NOISE = 16


def run(request: Request, *, as_json: bool, quiet: bool, theory: bool = False) -> None:
    """The whole command; ``theory`` lays random layers of the same widths over the figure and the output."""
    # the whole run has the folder for itself: another model's results may not appear in between
    with FolderLock(request.out), contextlib.redirect_stdout(sys.stderr):
        # what a model's own code prints must not mix with the result
        report = progress_for(False if quiet else None, "Jacobian rank")
        try:
            profile = measure(request, report)
        finally:
            report.close()
        write(profile, request.out, theory=theory)
        _discard(request.out / "partial")
    if as_json:
        beside = {"against_random": profile.against_random().to_dict()} if theory else {}
        print(json.dumps(profile.to_dict() | beside, indent=1, allow_nan=False))
    elif not quiet:
        print(profile)
        if theory:
            print(profile.against_random())
        print(f"report: {request.out / 'report.html'}")


def measure(request: Request, report: Reporter) -> JacobianProfile:
    """Load what the request names and measure it; on an interrupt say how much is kept."""
    loaded, inputs, images, notes = load(request, report)
    model = loaded.model.to(request.device)
    provenance: dict[str, Any] = {
        "model": loaded.name,
        "weights": loaded.weights,
        "notes": (*loaded.notes, *notes),
        "skipped": {} if images is None else dict(images.skipped),
    }
    partial = request.out / "partial"
    with _keeping(partial, report, None if images is None else len(images)) as counted:
        return jacobian_rank(
            model,
            inputs,
            cut_points=request.cut_points,
            columns=request.columns,
            background=request.background,
            tolerance=request.tolerance,
            dtype=request.dtype,
            chunk_size=request.chunk_size,
            memory_budget=request.memory_budget,
            certify=request.certify,
            device=request.device,
            progress=counted,
            checkpoint=partial,
            names=None if images is None else lambda i: images.names[i],
            provenance=provenance,
        )


def load(request: Request, report: Reporter | None = None) -> tuple[LoadedModel, Any, Images | None, list[str]]:
    """The model, what to measure it on, the images that this consists of (``None`` for other inputs), and notes.

    Random weights have seen the images, so that BatchNorm has statistics of them.
    """

    def say(text: str) -> None:
        if report is not None:
            report(0, None, text)

    say(f"loading {request.model}")
    loaded = load_model(
        request.model,
        weights=request.weights,
        weights_key=request.weights_key,
        seed=request.seed,
        num_classes=request.num_classes,
    )
    say("reading images")
    inputs, images, notes = _inputs(request, loaded)
    if loaded.random and images is not None:
        # on the CPU, where it repeats exactly: finished images are found again by the weights they belong to
        notes += _calibrate(loaded, images, request.seed)
    return loaded, inputs, images, notes


@contextlib.contextmanager
def _keeping(partial: Path, report: Reporter, total: int | None) -> Iterator[Any]:
    """Inside, call what is yielded as progress; an interrupt becomes one line that says what is kept."""
    kept = 0
    report(0, total, "preparing")

    def counted(done: int, total: int | None, text: str) -> None:
        nonlocal kept
        kept = done
        report(done, total, text)

    try:
        yield counted
    except KeyboardInterrupt:
        of = "" if total is None else f" of {total}"
        images = "image is" if kept == 1 and total is None else "images are"
        raise InterruptedRunError(
            f"interrupted: {kept}{of} {images} kept in {partial}; the same command continues from there"
            if kept
            else "interrupted: no image was finished; the same command starts again"
        ) from None


def _inputs(request: Request, loaded: LoadedModel) -> tuple[Any, Images | None, list[str]]:
    """What to measure on, the images it consists of (``None`` for other inputs), and notes."""
    if loaded.preprocessing is None and request.images in (None, "noise"):
        from rankscope.slicing import example_sample

        sample = example_sample(loaded.model)
        shape = "×".join(map(str, sample.x.shape[1:]))
        note = f"the model names no image size: measured on one random example input of shape {shape}"
        inputs = sample.x if sample.keyword is None else {sample.keyword: sample.x, **sample.extra}
        return inputs, None, [note]
    source, limit = request.images, request.limit
    if source is None:
        digits = loaded.input_size == (1, 8, 8)
        source, limit = ("digits", limit or 32) if digits else ("photos", limit)
    images = load_images(source, preprocessing=loaded.preprocessing, limit=limit, seed=request.seed)
    return images, images, [f"images: {source}, {images.preprocessing}"]


def _calibrate(loaded: LoadedModel, images: Images, seed: int) -> list[str]:
    try:
        note = calibrate_batchnorm(loaded.model, images.batches(_CALIBRATION))
    except DataError:
        # too few images for the statistics of a layer that sees one value a channel
        noise = load_images("noise", preprocessing=loaded.preprocessing, limit=_NOISE, seed=seed)
        note = calibrate_batchnorm(loaded.model, noise.batches(_NOISE))
        note = None if note is None else f"{note} of noise, since {len(images)} image(s) do not suffice"
    return [] if note is None else [note]


def write(profile: JacobianProfile, out: Path, *, theory: bool = False) -> None:
    """``profile.json``, ``profile.safetensors``, ``profile.png``, ``profile.svg`` and ``report.html``.

    With ``theory`` also ``against-random.json``, and the prediction in the figure.
    """
    from rankscope._base.style import figure_style
    from rankscope.report import profile_page

    profile.save(out)
    if theory:
        write_whole(out / "against-random.json", profile.against_random().to_json() + "\n")
    with figure_style():
        figure: Any = profile.plot(theory=theory).figure
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            # no date: the same profile gives the same file
            figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
            write_whole(out / f"profile.{kind}", buffer.getvalue())
    write_whole(out / "report.html", profile_page(profile).html())


def _discard(partial: Path) -> None:
    """Remove the finished images' own files, and the folder when nothing else lies in it."""
    for file in partial.glob("image-*.safetensors"):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        partial.rmdir()
