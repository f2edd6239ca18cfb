"""Fig. 1 (d–f) and Fig. 3 at small scale: golden numbers, seeds, both conventions, resuming."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rankscope._base.errors import OutputError, UsageError
from rankscope._base.facts import Fact, FactKind
from rankscope.reproduce import EXPERIMENTS, reproduce, reproduce_all
from rankscope.theory import deep_chain, predicted_rank

GOLDEN = Path(__file__).parent / "golden"


def files(folder: Path) -> dict[str, bytes]:
    """Everything but the kept parts, by name."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def golden(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((GOLDEN / f"{name}.csv").open()))


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chains")
    for name in ("fig1d", "fig1e", "fig1f"):
        reproduce(name, out=root / name, scale="small")
    return root


@pytest.mark.parametrize("name", ["fig1d", "fig1e", "fig1f"])
def test_chains_are_those_of_record(chains: Path, name: str) -> None:
    """A rank counts whole singular values: another BLAS may move one across the threshold, not two."""
    ours, record = list(csv.DictReader((chains / name / f"{name}.csv").open())), golden(name)
    assert [(r["seed"], r["depth"]) for r in ours] == [(r["seed"], r["depth"]) for r in record]
    for mine, theirs in zip(ours, record, strict=True):
        for column in ("jacobian_rank_paper", "jacobian_rank_reference", "feature_dimension"):
            assert abs(int(mine[column]) - int(theirs[column])) <= 1
        assert float(mine["log_sigma_max"]) == pytest.approx(float(theirs["log_sigma_max"]), abs=1e-6)


def test_a_chain_is_deep_chain(chains: Path) -> None:
    """Against the measurement that it wraps, under both tolerances."""
    rows = [r for r in csv.DictReader((chains / "fig1e" / "fig1e.csv").open()) if r["seed"] == "1"]
    for tolerance in ("paper", "reference"):
        plain = deep_chain(width=60, depth=24, init="kaiming_normal", seeds=1, samples=300, tolerance=tolerance)
        assert [int(r[f"jacobian_rank_{tolerance}"]) for r in rows] == plain.jacobian_ranks[0].tolist()
        assert [int(r["feature_dimension"]) for r in rows] == plain.feature_dimensions[0].tolist()
        expected = [predicted_rank(60, k, tolerance).value for k in range(1, 25)]
        np.testing.assert_allclose([float(r[f"predicted_{tolerance}"]) for r in rows], expected, rtol=1e-12)


def test_float32_stops_the_shrinking_chain_alone(chains: Path) -> None:
    """Entries shrink by 0.02·√60 = 0.155 a layer from 0.02·3.5: below 1.19e-7 near layer 8; others keep their scale."""
    stops = {
        n: json.loads((chains / n / f"{n}.json").read_text())["settings"]["stopped_at"] for n in ("fig1d", "fig1e")
    }
    assert all(8 <= s <= 10 for s in stops["fig1d"])
    assert stops["fig1e"] == [None, None]


def test_files_and_the_two_sentences(chains: Path) -> None:
    folder = chains / "fig1d"
    assert set(files(folder)) == {
        "fig1d.csv", "fig1d.json", "fig1d.pdf", "fig1d.png", "comparison.csv", "comparison.md",
    }  # fmt: skip
    assert (folder / "fig1d.pdf").read_bytes().startswith(b"%PDF")
    record = json.loads((folder / "fig1d.json").read_text())
    assert record["schema_version"] == 1
    assert record["settings"]["width"] == 60
    assert record["provenance"]["torch"]
    # the rank of both conventions at the layer named, as the CSV has it
    rows = [r for r in csv.DictReader((folder / "fig1d.csv").open()) if r["depth"] == "8"]
    means = [np.mean([int(r[f"jacobian_rank_{c}"]) for r in rows]) for c in ("paper", "reference")]
    assert (
        f"At layer 8 the text's rule gives rank {means[0]:.1f} here and the code's {means[1]:.1f}, of 60."
        in record["disagreement"]
    )
    assert record["disagreement"] in (folder / "comparison.md").read_text()


def test_as_reference_reads_the_same_parts(chains: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in (chains / "fig1d" / "parts").rglob("*.json")}
    found = reproduce("fig1d", out=chains / "fig1d", scale="small", as_printed="reference")
    assert {f: f.stat().st_mtime_ns for f in before} == before
    at_8 = found.values[found.values["depth"] == 8]
    assert found.comparison[2].quantity == "Jacobian rank at layer 8"
    assert found.comparison[2].ours == at_8["jacobian_rank_reference"].mean()
    reproduce("fig1d", out=chains / "fig1d", scale="small")


@pytest.mark.parametrize(("convention", "curves"), [("paper", 2), ("reference", 1)])
def test_one_theory_is_drawn_once(chains: Path, convention: str, curves: int) -> None:
    """Under the reference tolerance rank and feature dimension share their prediction."""
    ax = reproduce("fig1d", out=chains / "fig1d", scale="small", as_printed=convention).plot()
    assert len([line for line in ax.lines if line.get_gid() == "theory"]) == curves
    measured = [line for line in ax.lines if line.get_label() in ("Jacobian", "feature")]
    assert [line.get_color() for line in measured] == ["#808080", "#009E73"]
    assert not any(line.get_clip_on() for line in measured)
    ax.set_xlim(1, 3)
    assert all(tick == int(tick) for tick in ax.get_xticks())
    reproduce("fig1d", out=chains / "fig1d", scale="small")


def test_another_seed_is_refused_over_the_parts_and_differs_elsewhere(chains: Path, tmp_path: Path) -> None:
    # seeds are parts of their own: what clashes is a folder whose settings were changed
    settings = chains / "fig1f" / "parts" / "fig1f" / "seed-0" / "settings.json"
    kept = settings.read_text()
    settings.write_text(kept.replace('"width": 60', '"width": 61'))
    with pytest.raises(OutputError, match=r"seed-0 was measured with width 61, now 60; give another out, or delete"):
        reproduce("fig1f", out=chains / "fig1f", scale="small")
    settings.write_text(kept)
    other = reproduce("fig1f", out=tmp_path, scale="small", seed=7)
    assert sorted(set(other.values["seed"])) == [7, 8]


def test_interrupted_and_started_again_gives_the_same_bytes(chains: Path, tmp_path: Path) -> None:
    def stop(_: int, __: int | None, text: str) -> None:
        if text == "chain 2 of 2":
            raise KeyboardInterrupt("stopped here")

    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        reproduce("fig1e", out=tmp_path, scale="small", progress=stop)
    first = tmp_path / "parts" / "fig1e" / "seed-0" / "result.json"
    made = first.stat().st_mtime_ns
    assert not (tmp_path / "fig1e.csv").exists()
    reproduce("fig1e", out=tmp_path, scale="small")
    assert first.stat().st_mtime_ns == made
    assert files(tmp_path) == files(chains / "fig1e")


def test_one_chain_is_no_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the last layer too, where float32 may have ended the others."""
    from rankscope.reproduce import chains

    for count, words in ((1, "one chain"), (2, "mean of 2 chains")):
        monkeypatch.setitem(chains._SIZES, "small", (30, 4, 40, count))
        found = reproduce("fig1e", out=tmp_path / str(count), scale="small")
        assert found.comparison[0].how == f"tolerance paper, {words}"


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    reproduce("fig1d", out=tmp_path, scale="small")
    (tmp_path / "parts" / "fig1d" / "seed-1" / "result.json").write_text("{")
    with pytest.raises(OutputError, match=r"seed-1/result.json' cannot be read .* delete its folder"):
        reproduce("fig1d", out=tmp_path, scale="small")


def test_components(tmp_path: Path) -> None:
    found = reproduce("fig3", out=tmp_path, scale="small")
    record = {r["component"]: r for r in golden("fig3")}
    assert set(found.values["component"]) == set(record)
    for row in found.values.to_dict("records"):
        theirs = record[row["component"]]
        for column in ("dimension_after", "rank_after_paper", "rank_after_reference"):
            # a float64 spectrum of 256 values: rounding may move two across a threshold
            assert abs(row[column] - int(theirs[column])) <= 2
        if row["expected_exact"] == row["expected_exact"]:
            assert row["rank_after_paper"] <= row["expected_exact"]
    assert "note: " in str(found)
    assert any("components kept the Jacobian rank" in note for note in found.notes)


def test_unknown_names_and_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no 'fig5' to reproduce; did you mean 'fig"):
        reproduce("fig5", out=tmp_path)
    with pytest.raises(UsageError, match="there is no 'FIG1D' to reproduce; did you mean 'fig1d'"):
        reproduce("FIG1D", out=tmp_path)
    with pytest.raises(UsageError, match="limit is 0; it must be a whole number of at least 1"):
        reproduce_all(out=tmp_path, limit=0)
    with pytest.raises(UsageError, match="unknown as_printed 'papr'; did you mean 'paper'"):
        reproduce("fig1d", out=tmp_path, as_printed="papr")
    with pytest.raises(UsageError, match="unknown scale 'smal'; did you mean 'small'"):
        reproduce("fig1d", out=tmp_path, scale="smal")
    with pytest.raises(UsageError, match="seed is -1; it must be a whole number of at least 0"):
        reproduce("fig1d", out=tmp_path, seed=-1)
    with pytest.raises(UsageError, match="reproduce_all has no option 'sed'; did you mean 'seed'"):
        reproduce_all(out=tmp_path, sed=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n, e in EXPERIMENTS.items() if e.data])
def test_without_data_one_line_says_what_to_fetch(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{name}: imagenet=DIR is needed: fetch .* fig1d, fig1e, fig1f, fig3 "):
        reproduce(name, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_without_data_does_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all: imagenet=DIR is needed"):
        reproduce_all(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_notes_of_an_earlier_version_become_facts(tmp_path: Path) -> None:
    """Files from before had sentences; they load, and say the same."""
    found = reproduce("fig1e", out=tmp_path, scale="small", progress=False)
    file = found.save(tmp_path / "earlier") / "fig1e.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data.pop("checksum")
    del data["record"]["facts"]
    text = "small scale: width 60, 24 layers; not the paper's size"
    data["record"]["notes"] = [text]
    file.write_text(json.dumps(data), encoding="utf-8")
    old = type(found).load(file)
    assert old.facts == (Fact(FactKind.EARLIER_NOTE, {"text": text}),)
    assert replace(old, facts=found.facts) == found
    assert found.facts == (Fact(FactKind.SMALL_SCALE, {"sizes": (("width", 60), ("depth", 24))}),)
    assert found.notes == ("The scale is small: width 60 and 24 layers, not the paper's.",)
