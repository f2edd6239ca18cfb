"""``rankscope probe``: what components and remedies do to dimension and rank."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankscope._base.errors import UsageError
from rankscope._base.lock import FolderLock
from rankscope.cli.memory import saves_memory
from rankscope.cli.options import ConfigOption, DebugOption, DeviceOption, JsonOption, SeedOption, ToleranceOption
from rankscope.cli.parsing import parse_tolerance, whole_number

if TYPE_CHECKING:
    from rankscope.probes import ProbeResults, RemedyResult

__all__ = ["probe_command"]

_OPTIONS = ("data", "limit", "scale", "input_shape", "samples", "points", "front", "dtype", "training", "device")
_OF_THE_REMEDIES = ("scale",)


@saves_memory("--scale small", "fewer --samples")
def probe_command(
    context: typer.Context,
    component: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMPONENT|all]",
            help="all, names of the standard set separated by commas (conv3x3, fc, relu, gelu, silu, maxpool, avgpool, "
            "batchnorm_train, batchnorm_eval, instancenorm, layernorm, groupnorm, rmsnorm, attention, dropout, "
            "upsample, downsample), or your own as package.module:Class or package.module:factory. Default: all, "
            "or none with --remedies.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|digits|DIR",
            help="Samples of the component's input, in place of noise behind a random layer: a .npy, .npz or "
            ".safetensors of arrays, digits, photos, or a folder of images (with --input-shape).",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="With --data: at most this many samples, drawn at random from the seed.")
    ] = None,
    scale: Annotated[str, typer.Option(help="small, or full (the size of the paper, for a GPU).")] = "small",
    input_shape: Annotated[
        str | None,
        typer.Option(metavar="CxHxW", help="Shape of one sample, such as 128x8x8. Default: that of --scale."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Number of samples for the feature dimension. Default: that of --scale.")
    ] = None,
    points: Annotated[int, typer.Option(help="Number of samples at which the Jacobian is measured.")] = 1,
    tolerance: ToleranceOption = "paper",
    front: Annotated[str, typer.Option(help="Random layer before the component: gaussian or orthogonal.")] = "gaussian",
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    training: Annotated[bool, typer.Option("--training", help="Measure your own component in training mode.")] = False,
    remedies: Annotated[
        bool, typer.Option("--remedies", help="Compare remedies on one deep chain (skip, normalisation, width, …).")
    ] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("runs/probe"),
    as_json: JsonOption = False,
    config: ConfigOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure how single components change feature dimension and Jacobian rank (the paper's Fig. 3)."""
    shape = None if input_shape is None else _shape(input_shape)
    given = [n for n in _OPTIONS if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
    _check_used(given, alone=remedies and component is None, remedies=remedies, data=data)

    from rankscope._base.checks import choice_of, count_of, device_of, dtype_of, seed_of
    from rankscope.cli.components import chosen_components
    from rankscope.cli.probe_data import probe_samples
    from rankscope.cli.results import print_result, write_result
    from rankscope.probes import SCALES, probe_all, probe_remedies

    size: Any = choice_of(scale, "scale", SCALES)
    threshold = parse_tolerance(tolerance)
    where = device_of(device)
    dtype_of(dtype)
    seed_of(seed)
    count_of(points, "points")
    inputs = None if data is None else probe_samples(data, shape=shape, limit=limit, seed=seed)
    results: ProbeResults | None = None
    found: RemedyResult | None = None
    # what a component's own code prints must not mix with the result
    with FolderLock(out), contextlib.redirect_stdout(sys.stderr):
        if component is not None or not remedies:
            chosen = chosen_components(component or "all", seed=seed, training=training)
            results = probe_all(
                chosen,
                inputs=inputs,
                scale=size,
                input_shape=shape if inputs is None else None,
                samples=samples,
                jacobian_points=points,
                tolerance=threshold,
                front=front,
                training=training,
                dtype=dtype,
                seed=seed,
                device=where,
                progress=True,
            )
            write_result(out, "probe", results.to_dict(), {"probe": results.table()}, results.plot())
        if remedies:
            seeds = (seed, seed + 1, seed + 2)
            found = probe_remedies(scale=size, seeds=seeds, tolerance=threshold, progress=True)
            write_result(out, "remedies", found.to_dict(), {"remedies": found.table()}, found.side_by_side())
    parts = {name: part for name, part in (("probe", results), ("remedies", found)) if part is not None}
    print_result("\n\n".join(map(str, parts.values())), _record(results, found), out, *parts, as_json=as_json)


def _check_used(given: list[str], *, alone: bool, remedies: bool, data: str | None) -> None:
    """Refuse options that nothing would look at."""
    from rankscope._base.checks import refuse_unused

    if alone:
        refuse_unused([name for name in given if name not in _OF_THE_REMEDIES], "for the remedies alone")
    elif data is None:
        refuse_unused([name for name in given if name == "limit"], "without samples (--data)")
    else:
        unused = ("samples", "front") if remedies else ("scale", "samples", "front")
        refuse_unused([name for name in given if name in unused], "with --data")


def _record(results: ProbeResults | None, found: RemedyResult | None) -> dict[str, Any]:
    if results is not None and found is not None:
        parts = {"components": results.to_dict(), "remedies": found.to_dict()}
        return {"schema_version": 1, "kind": "probe_and_remedies", **parts}
    if results is not None:
        return results.to_dict()
    assert found is not None
    return found.to_dict()


def _shape(text: str) -> tuple[int, ...]:
    """Sizes of one sample from text.

    >>> _shape("128x8x8"), _shape("512")
    ((128, 8, 8), (512,))
    """
    parts = re.split(r"\s*[x×,]\s*", text.strip())
    sizes = [whole_number(part) or 0 for part in parts]
    if not all(sizes):
        raise UsageError(f"--input-shape {text!r} is not a shape; write the sizes of one sample, such as 128x8x8")
    return tuple(sizes)
