"""``rankscope collect``, ``features``, ``clsdim`` and ``deficit``: run, write, print."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankscope._base.checks import device_of
from rankscope._base.errors import DataError, UsageError
from rankscope._base.files import make_folder, write_whole
from rankscope._base.progress import progress_for
from rankscope.cli.class_names import class_cautions
from rankscope.cli.data import Data, calibrated, load_data
from rankscope.cli.interrupted import InterruptedRunError
from rankscope.cli.options import default_folder, parse_cut_points
from rankscope.cli.results import as_json_text, write_result
from rankscope.cli.run_data import read_run
from rankscope.features import Collection, classification_dimension, collect, feature_rank
from rankscope.features.feature_rank import measured_features
from rankscope.features.reduction import check_reduce
from rankscope.features.shards import ShardStore
from rankscope.features.sources import Skipped, batches, skipped_lines
from rankscope.loading import load_model
from rankscope.views.sentences import note, sentence

__all__ = ["Source", "run_clsdim", "run_collect", "run_deficit", "run_features"]


@dataclass(frozen=True)
class Source:
    """The model and the data of one command."""

    model: str
    data: str
    labels: Path | None
    weights: str
    weights_key: str | None
    seed: int
    num_classes: int | None
    limit: int | None
    device: str
    batch_size: int

    def load(self, *, labelled: bool = True) -> tuple[Any, Data, tuple[str, ...]]:
        """The loaded model on its device, the data, and notes on both; ``labelled`` as in ``load_data``."""
        if self.seed < 0:
            raise UsageError(f"--seed is {self.seed}; it must not be negative")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is {self.batch_size}; at least one sample is needed")
        where = device_of(self.device)
        loaded = load_model(
            self.model,
            weights=self.weights,
            weights_key=self.weights_key,
            seed=self.seed,
            num_classes=self.num_classes,
        )
        data = load_data(self.data, loaded, labels=self.labels, limit=self.limit, seed=self.seed, labelled=labelled)
        notes = (*loaded.notes, *data.notes, *calibrated(loaded, data.dataset))
        loaded.model.to(where)
        return loaded, data, notes


def run_collect(
    source: Source,
    *,
    cut_points: str | None,
    channels: Any,
    out: Path,
    num_workers: int,
    shard_size: int | None,
    as_json: bool,
) -> None:
    """Stream the data through the model, keep what the analyses need, and print what lies where."""
    make_folder(out)
    wanted = None if cut_points is None else parse_cut_points(cut_points)
    if shard_size is not None and shard_size < 1:
        raise UsageError(f"--shard-size is {shard_size}; at least one sample is needed")
    # what a model's own code prints must not mix with the result
    with contextlib.redirect_stdout(sys.stderr), _progress("collect") as report:
        loaded, data, notes = source.load()
        try:
            found = collect(
                loaded.model,
                data.dataset,
                cut_points=wanted,
                channels=channels,
                out=out,
                batch_size=source.batch_size,
                num_workers=num_workers,
                shard_size=_shard_size(len(data.dataset)) if shard_size is None else shard_size,
                progress=report,
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(_interrupted(out, len(data.dataset))) from None
        cautions = class_cautions(found.labels, found.logits, data.class_names, loaded.class_names)
        about = {
            **found.to_dict(),
            "model": loaded.name,
            "weights": loaded.weights,
            "data": source.data,
            "seed": source.seed,
            "limit": source.limit,
            "class_names": None if data.class_names is None else list(data.class_names),
            "accuracy": float((found.logits.argmax(1) == found.labels).double().mean()),
            "notes": [*map(sentence, cautions), *notes],
        }
        write_result(out, "collection", about, {"samples": _samples(found)}, None)
        profile = feature_rank(found, reduce="pool") if found.moments and len(found) > 1 else None
        if profile is not None:
            write_result(out, "features", profile.to_dict(), {"features": profile.table()}, profile.plot())
    if as_json:
        print(as_json_text(about))
        return
    for caution in cautions:
        print(note(caution))
    print(f"{loaded.name}, {loaded.weights}")
    print(found)
    print(f"accuracy {about['accuracy']:.2%}")
    _say_notes(notes)
    if profile is not None:
        print(profile)
    _say_where(out, ["collection.json", "samples.csv", *(_files("features") if profile is not None else [])])


def run_features(
    source: Source, *, cut_points: str, reduce: Any, channels: Any, out: Path | None, as_json: bool
) -> None:
    """Feature dimension of every layer."""
    folder = make_folder(out if out is not None else default_folder(source.model))
    wanted = parse_cut_points(cut_points)
    with contextlib.redirect_stdout(sys.stderr), _progress("features") as report:
        loaded, data, notes = source.load(labelled=False)
        dataset = data.dataset
        skipped: list[Skipped] = []

        def stream() -> Iterator[Any]:
            for batch in batches(loaded.model, dataset, 0, batch_size=source.batch_size, num_workers=0, options={}):
                report(batch.after, len(dataset), "measuring")
                skipped.extend(batch.skipped)
                if batch.call is not None:
                    yield batch.call
            if len(skipped) == len(dataset):
                first = f"; the first: {skipped[0].name}: {skipped[0].reason}" if skipped else ""
                raise DataError(f"the data hold no readable sample ({len(skipped)} skipped{first})")

        check_reduce(reduce, channels)
        profile = measured_features(
            loaded.model,
            stream(),
            cut_points=wanted,
            reduce=reduce,
            channels=channels,
            samples=lambda: len(dataset),
        )
        record = {
            **profile.to_dict(),
            "model": loaded.name,
            "weights": loaded.weights,
            "data": source.data,
            "skipped": [vars(one) for one in skipped],
            "notes": [*profile.notes, *notes],
        }
        write_result(folder, "features", record, {"features": profile.table()}, profile.plot())
    if as_json:
        print(as_json_text(record))
        return
    print(f"{loaded.name}, {loaded.weights}; features: {reduce}")
    print(profile)
    _say_notes(notes)
    for line in skipped_lines(skipped):
        print(line)
    _say_where(folder, _files("features"))


def run_clsdim(
    run: Path,
    *,
    labels: Path | None,
    head: Path | None,
    retain: float,
    projection: Any,
    accuracy: Any,
    allow_absent: bool,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Classification dimension of a collected run, or of arrays."""
    found = read_run(run, array="features", labels=labels, head=head)
    assert found.features is not None  # what it was asked for
    if found.head is None:
        raise DataError(f"{run.name} holds no head; add --head FILE, a .safetensors or .npz with weight and bias")
    folder = make_folder(out if out is not None else found.folder)
    result = classification_dimension(
        found.features,
        found.labels,
        found.head,
        logits=found.logits,
        retain=retain,
        projection=projection,
        accuracy=accuracy,
        allow_absent=allow_absent,
        device=device_of(device),
    )
    record = {**result.to_dict(), **found.about}
    tables = {"clsdim": result.table(), "clsdim-curve": result.curve_table()}
    write_result(folder, "clsdim", record, tables, result.plot())
    if as_json:
        print(as_json_text(record))
        return
    print(result)
    _say_where(folder, [*_files("clsdim"), "clsdim-curve.csv"])


def run_deficit(
    run: Path,
    *,
    labels: Path | None,
    eta: float | None,
    samples_used: str,
    accuracy: str,
    classes: str | None,
    keep: float,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Independence deficit of a collected run or of arrays, with a page to search class by class."""
    from rankscope.deficit import independence_deficit
    from rankscope.report.deficit_page import deficit_page, most_dependent

    found = read_run(run, array="logits", labels=labels)
    assert found.logits is not None  # what it was asked for
    folder = make_folder(out if out is not None else found.folder)
    about = found.about
    names = about["class_names"]
    if names is not None and len(names) != found.logits.shape[1]:
        names = None
    table = independence_deficit(
        found.logits,
        found.labels,
        eta=eta,
        samples_used=samples_used,
        accuracy=accuracy,
        classes=None if classes is None else _classes(classes, names, found.logits.shape[1]),
        class_names=names,
        keep=keep,
        feature_dimension=None if found.features is None else found.features.shape[1],
        device=device_of(device),
    )
    record = {**table.to_dict(), **about}
    shown = most_dependent(table)
    write_result(folder, "deficit", record, {"deficit": table.table()}, table.plot(shown.index), index=True)
    page = deficit_page(table, model=about["model"], source=str(about["data"]))
    write_whole(folder / "deficit.html", page.html())
    if as_json:
        print(as_json_text(record))
        return
    print(table)
    _say_where(folder, [*_files("deficit"), "deficit.html"])
    print(f"figure: class {shown.name}; search all classes in {folder / 'deficit.html'}")


def _shard_size(samples: int) -> int:
    """About a tenth of the data, from 256 to 10,000 samples: so much at most is lost when a run is stopped."""
    return min(10_000, max(256, -(-samples // 10)))


def _interrupted(out: Path, total: int) -> str:
    """What a stopped collection has on disk, counted there."""
    after = ShardStore(out, {}).progress()[0]
    if not after:
        return (
            f"interrupted: no shard was whole, so 0 of {total:,} samples are kept; the same command starts again "
            "(--shard-size N writes after every N samples)"
        )
    return f"interrupted: {after:,} of {total:,} samples are kept in {out}; the same command goes on after them"


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Any]:
    report = progress_for(None, title)
    report(0, None, "loading")
    try:
        yield report
    finally:
        report.close()


def _files(name: str) -> list[str]:
    return [f"{name}.{kind}" for kind in ("json", "csv", "png", "svg")]


def _say_notes(notes: Iterable[str]) -> None:
    for text in notes:
        print(f"note: {text}")


def _say_where(folder: Path, files: list[str]) -> None:
    print(f"written: {', '.join(files)} in {folder}")


def _samples(found: Collection) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {
            "index": found.indices.numpy(),
            "label": found.labels.numpy(),
            "predicted": found.logits.argmax(1).numpy(),
        }
    )


def _classes(text: str, names: list[str] | None, count: int) -> list[int]:
    """Class indices from numbers, ranges (10-20) and names.

    >>> _classes("0,2-3,cat", ["dog", "cat", "cow", "hen"], 4)
    [0, 2, 3, 1]
    """
    chosen: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, dash, last = part.partition("-")
        if names is not None and part in names:
            chosen.append(names.index(part))
        elif part.isdigit():
            chosen.append(int(part))
        elif dash and first.isdigit() and last.isdigit():
            chosen += range(int(first), int(last) + 1)
        else:
            raise UsageError(f"--classes: {part!r} is no class; give numbers from 0 to {count - 1}, ranges or names")
    if not chosen:
        raise DataError(f"--classes {text!r} names no class")
    return list(dict.fromkeys(chosen))
