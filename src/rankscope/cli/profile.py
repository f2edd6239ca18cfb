"""``rankscope profile``: load, measure, write, print; what is finished survives an interruption."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankscope._base.errors import UsageError
from rankscope._base.progress import Reporter, progress_for
from rankscope._base.text import counted as words
from rankscope.cli.columns import parse_columns
from rankscope.cli.interrupted import saying_what_is_kept
from rankscope.cli.memory import saves_memory
from rankscope.cli.method import parse_method
from rankscope.cli.options import (
    ClassesOption,
    ConfigOption,
    DebugOption,
    DeviceOption,
    ImageLimitOption,
    ImagesOption,
    JsonOption,
    LayersOption,
    ModelArgument,
    NetworkOutOption,
    NetworkWeightsOption,
    SeedOption,
    TextOption,
    ToleranceOption,
    WeightsKeyOption,
)
from rankscope.cli.parsing import default_folder, parse_cut_points, parse_tolerance, whole_number

if TYPE_CHECKING:
    from rankscope.cli.network import Network
    from rankscope.jacobian import JacobianProfile

__all__ = ["profile_command"]


@saves_memory("a smaller --memory-budget", "a smaller --patch", "fewer --probes")
def profile_command(
    model: ModelArgument,
    weights: NetworkWeightsOption = "pretrained",
    weights_key: WeightsKeyOption = None,
    seed: SeedOption = 0,
    num_classes: ClassesOption = None,
    images: ImagesOption = None,
    text: TextOption = None,
    limit: ImageLimitOption = None,
    patch: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Measure the partial rank of one patch. SIZE is 16, or HEIGHTxWIDTH."),
    ] = None,
    patch_offset: Annotated[
        str | None, typer.Option(metavar="ROW,COL", help="First pixel of the patch. Default: the patch is central.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="LIST", help="Channels of the patch, such as 0 or 0,2. Default: all of them.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the Jacobian: all, auto, sketch:K (K random directions), or position:N (all coordinates "
            "of "
            "token N). auto takes all columns of up to 1,024 inputs, else the central 16×16 patch."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How --columns all is measured: exact (all singular values), lanczos (random probes, with bounds), or "
            "auto (exact where the memory budget allows it)."
        ),
    ] = "auto",
    probes: Annotated[
        int | None, typer.Option(help="Number of random probes of --method lanczos. Default: 8.", show_default=False)
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            help="Lanczos steps of each probe, or auto: until --bracket is reached. Default: auto.", show_default=False
        ),
    ] = None,
    bracket: Annotated[
        float | None,
        typer.Option(
            help="Width of the quadrature bounds, as a share of all singular values, at which --steps auto stops. "
            "Default: 0.05.",
            show_default=False,
        ),
    ] = None,
    background: Annotated[str, typer.Option(help="What surrounds the patch: image or zero.")] = "image",
    tolerance: ToleranceOption = "paper",
    cut_points: LayersOption = "blocks",
    dtype: Annotated[str | None, typer.Option(help="float32 or float64. Default: the dtype of the model.")] = None,
    device: DeviceOption = "auto",
    chunk_size: Annotated[str, typer.Option(help="Number of tangents pushed at once, or auto.")] = "auto",
    memory_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory to work in, such as 2GB. Default: 4 GiB, or half of the free memory if that is less.",
        ),
    ] = None,
    certify: Annotated[bool, typer.Option(help="Bound the error of every rank with float64 probes.")] = True,
    theory: Annotated[
        bool,
        typer.Option(
            "--theory", help="Compare with random layers of the same widths, in the figure and in the output."
        ),
    ] = False,
    out: NetworkOutOption = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print neither the table nor progress.")] = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure the Jacobian rank from the input to every layer, print a table and write a report.

    Under torchrun --nproc-per-node=N -m rankscope profile, N processes share the images, each on a GPU of its own.
    """
    # everything that can be refused without the model is refused before it is loaded
    chosen = parse_columns(columns, patch, patch_offset, channels, seed)
    if background == "zero" and columns is not None and columns.startswith("sketch"):
        raise UsageError(f"--background zero needs a patch; --columns {columns} covers the whole image")
    way = parse_method(method, probes, steps, bracket, seed, columns=columns, patch=patch)
    names = parse_cut_points(cut_points)
    chunk = _chunk_size(chunk_size)

    from rankscope._base.checks import budget_of, choice_of, device_of, dtype_of
    from rankscope._base.lock import FolderLock
    from rankscope._base.processes import team
    from rankscope.cli.chosen_model import ChosenModel
    from rankscope.cli.network import Network
    from rankscope.cli.results import as_json_text

    where = device_of(device)
    if memory_budget is not None:
        budget_of(memory_budget, where)
    if dtype is not None:
        dtype_of(dtype)
    asked = {
        "cut_points": names,
        "columns": chosen,
        "method": way,
        "background": choice_of(background, "background", ("image", "zero")),
        "tolerance": parse_tolerance(tolerance),
        "dtype": dtype,
        "chunk_size": chunk,
        "memory_budget": memory_budget,
        "certify": certify,
        "device": where,
    }
    named = ChosenModel(model, weights, weights_key, seed, num_classes)
    network = Network(named, images, limit, tuple(text or ()))
    folder = out if out is not None else default_folder(model)
    # the whole run has the folder for itself: another model's results may not appear in between
    lock = FolderLock(folder, lend=True) if team().writes else contextlib.nullcontext()
    with lock, contextlib.redirect_stdout(sys.stderr):
        # what a model's own code prints must not mix with the result
        partial = folder / "partial"
        report = progress_for(team().writes and not quiet, "Jacobian rank")
        counted, earlier = _Counted(report), _images(partial)
        with saying_what_is_kept(lambda: _kept(partial, counted, earlier)):
            try:
                profile = _measure(network, asked, partial, counted)
            finally:
                report.close()
            if not team().writes:
                return
            theory = theory and profile.comparable  # else the profile's own facts say why
            _write(profile, folder, theory=theory)
        _discard(partial)
    if as_json:
        beside = {"against_random": profile.against_random().to_dict()} if theory else {}
        print(as_json_text(profile.to_dict() | beside))
    elif not quiet:
        print(profile)
        if theory:
            print(profile.against_random())
        print(f"report: {folder / 'report.html'}")


def _chunk_size(text: str) -> int | str:
    number = whole_number(text)
    if text != "auto" and not number:
        raise UsageError(f"--chunk-size is {text!r}; give a positive number or auto")
    return number or text


class _Counted(Reporter):
    """Progress that remembers how many images are done, and of how many once that is known."""

    def __init__(self, report: Reporter) -> None:
        super().__init__(report)
        self.say = report.say  # type: ignore[method-assign]
        self.done = 0
        self.total: int | None = None

    def __call__(self, done: int, total: int | None, text: str) -> None:
        self.done, self.total = done, total
        super().__call__(done, total, text)


def _measure(network: Network, asked: dict[str, Any], partial: Path, counted: Reporter) -> JacobianProfile:
    """Load the network and measure it."""
    from rankscope.jacobian import jacobian_rank

    loaded, inputs, images, facts = network.load(counted)
    provenance: dict[str, Any] = {
        "model": loaded.name,
        "weights": loaded.weights,
        "notes": facts,
        "skipped": {} if images is None else dict(images.skipped),
    }
    counted(0, None if images is None else len(images), "preparing")
    return jacobian_rank(
        loaded.model.to(asked["device"]),
        inputs,
        progress=counted,
        checkpoint=partial,
        names=(lambda i: f"text {i}") if network.texts else None if images is None else lambda i: images.names[i],
        provenance=provenance,
        **asked,
    )


def _images(partial: Path) -> dict[str, int]:
    """When each image that is kept was written."""
    return {file.name: file.stat().st_mtime_ns for file in partial.glob("image-*.safetensors")}


def _kept(partial: Path, counted: _Counted, earlier: dict[str, int]) -> str:
    """What a run that was stopped leaves behind, also what was not counted yet; ``earlier`` lay there before."""
    cuts, total = len(list(partial.glob("cut-*.safetensors"))), counted.total
    images, found = 0, _images(partial)
    if found:  # else nothing heavy is imported in order to stop
        from rankscope.jacobian.checkpoint import kept_images

        images = kept_images(partial)
    if images and not counted.done and found == earlier:
        those = f"{words(images, 'image')} of an earlier run {'is' if images == 1 else 'are'}"
        return f"no image was finished; {those} kept in {partial}"
    if cuts:
        points = words(cuts, "cut point")
        before = f"{words(images, 'image')} and {points} of the next" if images else f"{points} of the first image"
        verb = "is" if cuts == 1 and not images else "are"
        return f"{before} {verb} kept in {partial}; the same command continues from there"
    if images:
        which = words(images, "image") if total is None else f"{images} of {words(total, 'image')}"
        return f"{which} {'is' if images == 1 else 'are'} kept in {partial}; the same command continues from there"
    return "no image was finished; the same command starts again"


def _write(profile: JacobianProfile, out: Path, *, theory: bool) -> None:
    """``profile.json``, ``profile.safetensors``, ``profile.png``, ``profile.svg`` and ``report.html``.

    With ``theory`` also ``against-random.json``, and the prediction in the figure.
    """
    from rankscope._base.command import said
    from rankscope._base.files import write_whole
    from rankscope._base.json_files import write_json
    from rankscope.cli.results import write_figure
    from rankscope.report import profile_page

    profile.save(out)
    if theory:
        write_json(out / "against-random.json", profile.against_random().to_dict() | said())
    write_figure(out, "profile", lambda: profile.plot(theory=theory))
    write_whole(out / "report.html", profile_page(profile).html())


def _discard(partial: Path) -> None:
    """Remove the finished images' own files, and the folder when nothing else lies in it."""
    for pattern in ("image-*.safetensors", "cut-*.safetensors"):
        for file in partial.glob(pattern):
            file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        partial.rmdir()
