"""Profiles on disk: readable JSON for everything, safetensors for the spectra. Files appear whole or not at all."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from rankscope._base.command import said
from rankscope._base.encoding import exact, read
from rankscope._base.errors import OutputError, RankscopeError
from rankscope._base.facts import kept_facts
from rankscope._base.files import read_arrays, write_arrays
from rankscope._base.json_files import read_json, write_json
from rankscope._base.lock import FolderLock
from rankscope.jacobian import earlier
from rankscope.jacobian.directions import Directions
from rankscope.jacobian.layer import Layer
from rankscope.jacobian.spectrum_files import arrays_of, density_of, plain_of, spectrum_of
from rankscope.slicing import Stretch
from rankscope.spectra import Spectrum, as_tolerance
from rankscope.spectra.density import AnySpectrum, SpectralDensity

__all__ = ["SCHEMA_VERSION", "load_fields", "save_fields"]

SCHEMA_VERSION = 1
_TIE = "spectra_checksum"  # that of profile.safetensors, so that the files of two runs are not read as one
_EXACT = ("adjoint_error", "provenance", "seconds")


def save_fields(record: dict[str, Any], values: dict[str, Any], path: Path) -> Path:
    """``profile.json`` and ``profile.safetensors`` in a folder: a profile's plain form, and its fields by name."""
    arrays: dict[str, Any] = {}
    # plain values lose what JSON has no word for: what does is kept a second time
    kept = {name: exact(values[name]) for name in _EXACT}
    record["exact"] = {name: value for name, value in kept.items() if value != record[name]}
    for k, layer in enumerate(values["layers"]):
        record["layers"][k] |= _others(layer, values["dtype"])
        probed = {str(i): plain_of(s) for i, s in enumerate(layer.spectra) if isinstance(s, SpectralDensity)}
        if probed:
            record["layers"][k]["densities"] = probed
        if layer.uncalled:
            record["layers"][k]["uncalled"] = list(layer.uncalled)
        for i, spectrum in enumerate(layer.spectra):
            if spectrum is not None:
                arrays |= {f"{k}.{i}.{name}": array for name, array in arrays_of(spectrum).items()}
    with FolderLock(path):
        made = write_arrays(path / "profile.safetensors", arrays, {"schema_version": str(SCHEMA_VERSION)})
        write_json(path / "profile.json", {**record, **said(), _TIE: made})
    return path


def _others(layer: Layer, dtype: str) -> dict[str, Any]:
    """Shape and dtype of the spectra that have not the cut point's own, as those of texts of several lengths."""
    usual = ((layer.rows, layer.columns), dtype)
    others = {
        str(i): {"shape": list(s.shape), "dtype": s.dtype}
        for i, s in enumerate(layer.spectra)
        if isinstance(s, Spectrum) and (s.shape, s.dtype) != usual
    }
    return {"other_spectra": others} if others else {}


def load_fields(path: Path) -> dict[str, Any]:
    """The fields of the profile that ``save_fields`` wrote.

    Raises
    ------
    OutputError
        When a file is missing, damaged, or of another schema version.
    """
    folder = path.parent if path.suffix == ".json" else path
    try:
        data = read_json(folder / "profile.json", version=SCHEMA_VERSION, kind="jacobian_profile")
        arrays, beside = read_arrays(folder / "profile.safetensors", unchecked=True)
    except OutputError as error:
        raise OutputError(f"cannot read a profile from {str(folder)!r}: {error}") from error
    if data.get(_TIE) != beside.get("checksum"):  # both are absent from files of earlier versions
        raise OutputError(
            f"profile.json and profile.safetensors in {str(folder)!r} were written by different runs; measure again"
        )
    try:
        return _fields({**data, **data.get("exact", {})}, arrays)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RankscopeError) as error:
        raise OutputError(f"the profile in {str(folder)!r} is damaged: {error}") from error


def _fields(data: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    layers = []
    names: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for full in arrays:
        layer_number, image, name = full.split(".")
        names[int(layer_number), int(image)].append(name)
    for k, entry in enumerate(data["layers"]):
        spectra: list[AnySpectrum | None] = []
        probed = entry.get("densities", {})  # absent in files of earlier versions
        for i in range(len(data["images"])):
            own = {name: arrays[f"{k}.{i}.{name}"] for name in names[k, i]}
            if not own:
                spectra.append(None)
                continue
            if str(i) in probed:
                spectra.append(density_of(own, probed[str(i)]))
                continue
            usual = {"shape": (entry["rows"], entry["columns"]), "dtype": data["dtype"]}
            about = entry.get("other_spectra", {}).get(str(i), usual)
            rows, columns = about["shape"]
            spectra.append(spectrum_of(own, (rows, columns), about["dtype"]))
        if sum(s is not None for s in spectra) != entry["images"]:
            raise ValueError(f"profile.safetensors lacks spectra of {entry['name']!r}")
        mixes: Stretch | bool = entry.get("mixes", True)  # absent in files of earlier versions, as is what follows
        if "mixing_operations" in entry:
            sizes = tuple((int(a), int(b)) for a, b in entry["mixing_sizes"])
            mixes = Stretch(int(entry["mixing_operations"]), sizes)
        uncalled = tuple(int(i) for i in entry.get("uncalled", ()))
        sizes_and_place = (entry["name"], entry["rows"], entry["columns"], entry["true_cut"])
        layers.append(Layer(*sizes_and_place, tuple(spectra), mixes, uncalled))
    return dict(
        **{k: data[k] for k in ("model", "weights", "background", "device", "dtype", "cut_points")},
        columns=_directions(data["columns"]),
        method=earlier.way(data["method"]),
        provenance=read(dict[str, Any], data.get("provenance", {})),
        layers=tuple(layers),
        images=tuple(data["images"]),
        tolerance=as_tolerance(data["tolerance"]),
        versions=data["versions"],
        input_shape=tuple(data["input_shape"]),
        input_shapes=tuple(tuple(shape) for shape in data.get("input_shapes", ())),
        failed_methods=earlier.failed(data["failed_methods"]),
        unmeasured=data["unmeasured"],
        output=data.get("output", ""),  # absent in files of earlier versions
        skipped=data["skipped"],
        adjoint_error=read(float | None, data["adjoint_error"]),
        kinks=tuple(data["kinks"]),
        certificate=earlier.certificate(data["certificate"]),
        facts=kept_facts(data),
        seconds=read(float, data["seconds"]),
        chunk_size=data["chunk_size"],
        peak_memory=data["peak_memory"],
    )


def _directions(data: dict[str, Any] | str) -> Directions:
    return Directions.of_earlier_file(data) if isinstance(data, str) else read(Directions, data)
