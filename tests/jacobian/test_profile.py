"""The record: on disk and back to the bit, as table, figure and text; and runs that go on where they stopped."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import CASES
from torch import Tensor, nn

import rankscope as rs
from rankscope._base.facts import Fact, FactKind, of_kind
from rankscope.jacobian import JacobianProfile, Layer
from rankscope.jacobian.directions import Directions
from rankscope.slicing import Stretch


def measure(model: nn.Module, inputs: Any, **options: Any) -> JacobianProfile:
    return rs.jacobian_rank(model, inputs, **{"cut_points": "all", "progress": False, **options})


@pytest.fixture(scope="module")
def profile() -> JacobianProfile:
    return measure(CASES["residual"].model(), CASES["residual"].sample(3), columns=rs.Patch(4))


def test_round_trip(profile: JacobianProfile, tmp_path: Path) -> None:
    folder = profile.save(tmp_path / "new" / "run")
    assert sorted(p.name for p in folder.iterdir()) == ["profile.json", "profile.safetensors"]
    for path in (folder, folder / "profile.json", str(folder)):
        found = JacobianProfile.load(path)
        for a, b in zip(profile.layers, found.layers, strict=True):
            assert (a.name, a.rows, a.columns, a.true_cut) == (b.name, b.rows, b.columns, b.true_cut)
            for s, t in zip(a.spectra, b.spectra, strict=True):
                assert s.singular_values.tobytes() == t.singular_values.tobytes()
                assert (s.shape, s.dtype, s.error_bound, s.square_error) == (
                    t.shape,
                    t.dtype,
                    t.error_bound,
                    t.square_error,
                )
        assert found.to_dict() == profile.to_dict()
        assert str(found) == str(profile)


EXAMPLE = JacobianProfile(
    model="a",
    layers=(
        Layer(
            "first",
            3,
            2,
            True,
            (
                rs.Spectrum(np.array([2.0, 1e-300]), (3, 2), "float32", 1e-7, 1e-9),
                None,  # not finite
                rs.Spectrum(np.array([1.0]), (1, 2), "float64", np.nan),  # not certified, a text of another length
            ),
        ),
        Layer("second", 1, 2, False, (None, None, rs.Spectrum(np.zeros(1), (1, 2), "float32")), mixes=False),
        Layer("third", 4, 2, True, (rs.Spectrum(np.ones(2), (4, 2), "float32"),) * 3, Stretch(2, ((2, 0), (0, 4)))),
    ),
    images=("é\ud800", "", "c"),
    tolerance=rs.Tolerance(rtol=np.float32(1e-3), atol=1e-30),
    columns=Directions("sketch", 2, "two"),
    background="image",
    device="cpu",
    dtype="float32",
    versions={"torch": "2"},
    weights="w",
    input_shape=(3, 4, 4),
    cut_points="all",
    method=Fact(FactKind.LINEARISED, {"name": "vmap(jvp)", "difference": 5e-7}),
    failed_methods=(Fact(FactKind.WAY_FAILED, {"name": "reverse", "reason": "why"}),),
    unmeasured={"fourth": "why"},
    output="third",
    skipped={"fifth": "why"},
    adjoint_error=float("inf"),
    kinks=(1, 0, 2),
    certificate=Fact(FactKind.PROBES, {"probes": 6, "failure": 1e-6}),
    facts=(Fact("note", {"text": "t", "number": float("nan"), "pair": [1, (2.5, None)]}, caution=True),),
    provenance={"run": 3, "nan": np.float64("nan"), "nested": {"$list": [1, [2]], "on": True}, "none": None},
    seconds=1 / 3,
    chunk_size=5,
    peak_memory=7,
)
OTHERWISE = {
    "layers": EXAMPLE.layers[:2], "tolerance": rs.Tolerance.paper(), "columns": Directions("sketch", 2, "2"),
    "method": Fact(FactKind.KEPT_IMAGES), "certificate": Fact(FactKind.NOT_CERTIFIED), "facts": (), "provenance": {},
    "versions": {}, "unmeasured": {}, "skipped": {"fifth": "?"}, "adjoint_error": None, "kinks": (1, 0, 3),
    "input_shape": (3, 4), "input_shapes": ((3, 4), (2, 4)), "images": ("", "", "c"), "failed_methods": (),
    "seconds": 1.0, "chunk_size": 6,
    "peak_memory": None,
}  # fmt: skip


def test_a_profile_is_equal_to_itself_after_a_file(profile: JacobianProfile, tmp_path: Path) -> None:
    for number, one in enumerate(
        (profile, EXAMPLE, replace(EXAMPLE, adjoint_error=None, tolerance=rs.Tolerance.paper()))
    ):
        found = JacobianProfile.load(one.save(tmp_path / str(number)))
        assert found == one
        assert hash(found) == hash(one)
        assert json.loads((tmp_path / str(number) / "profile.json").read_text())
    uncertified = measure(CASES["residual"].model(), CASES["residual"].sample(2), certify=False)
    assert JacobianProfile.load(uncertified.save(tmp_path / "uncertified")) == uncertified


def test_profiles_that_differ_anywhere_are_not_equal() -> None:
    assert {f.name for f in fields(JacobianProfile)} - {*OTHERWISE} == {
        "model", "background", "device", "dtype", "weights", "cut_points", "output"
    }  # fmt: skip
    for name in (f.name for f in fields(JacobianProfile)):
        assert replace(EXAMPLE, **{name: OTHERWISE.get(name, "?")}) != EXAMPLE, name
    first, *rest = EXAMPLE.layers
    assert isinstance(first.spectra[0], rs.Spectrum)
    for change in (
        {"mixes": Stretch(2)},
        {"true_cut": False},
        {"spectra": (None, *first.spectra[1:])},
        {"spectra": (replace(first.spectra[0], singular_values=np.array([2.0, 2e-300])), *first.spectra[1:])},
        {"spectra": (replace(first.spectra[0], error_bound=np.nan), *first.spectra[1:])},
    ):
        assert replace(EXAMPLE, layers=(replace(first, **change), *rest)) != EXAMPLE, change
    assert replace(EXAMPLE, layers=(replace(first), *rest)) == EXAMPLE


def test_json_holds_what_was_promised(profile: JacobianProfile, tmp_path: Path) -> None:
    text = (profile.save(tmp_path) / "profile.json").read_text()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    promised = {
        "schema_version",
        "model",
        "tolerance",
        "columns",
        "background",
        "device",
        "dtype",
        "versions",
        "layers",
    }
    assert promised <= set(data)
    assert data["schema_version"] == 1
    for entry, layer in zip(data["layers"], profile.layers, strict=True):
        assert {"name", "rows", "columns", "rank", "true_cut", "images"} <= set(entry)
        ranks = [s.rank("paper").value for s in layer.spectra]
        lower, upper = (
            f(getattr(s.rank("paper"), n) for s in layer.spectra) for n, f in (("lower", min), ("upper", max))
        )
        assert entry["rank"] == {
            "min": min(ranks), "median": sorted(ranks)[1], "max": max(ranks), "lower": lower, "upper": upper
        }  # fmt: skip
        assert (entry["rows"], entry["columns"], entry["images"]) == (layer.rows, 48 if layer.columns == 48 else 32, 3)
    odd = replace(profile, adjoint_error=float("nan"))
    assert json.loads((odd.save(tmp_path) / "profile.json").read_text())["adjoint_error"] is None


def test_uncertified_and_unmeasured_survive_the_disk(tmp_path: Path) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(torch.relu(x))

    net = nn.Sequential(nn.Identity(), Root()).eval()
    found = measure(net, torch.tensor([[0.0, 1.0], [1.0, 2.0]]), certify=False)
    again = JacobianProfile.load(found.save(tmp_path))
    assert again["1"].spectra[0] is None
    assert np.isnan(again["1"].spectra[1].error_bound)
    assert again.to_dict() == found.to_dict()
    frame = again.per_image()
    assert frame["rank"].isna().tolist() == [False, False, True, False]


def test_damaged_profiles(profile: JacobianProfile, tmp_path: Path) -> None:
    folder = profile.save(tmp_path / "a")
    good, spectra = (folder / "profile.json").read_text(), (folder / "profile.safetensors").read_bytes()
    data = json.loads(good)
    del data["checksum"]  # which a file of an earlier version has not
    cases = [
        ("{", "cannot read a profile"),
        ("[]", "has schema_version None"),
        (json.dumps({**data, "schema_version": 2}), "has schema_version 2 .* this version reads 1"),
        *((json.dumps({**data, "versions": {}, "schema_version": 2, **where}),
           r"this version reads 1 .* \(rankscope 9\.7 wrote it, this one is ")
          for made in [{"rankscope": "9.7"}]
          for where in ({"versions": made}, {"provenance": made}, {"provenance": {"versions": made}})),
        (json.dumps({**data, "kind": "other"}), "kind 'other'"),
        (json.dumps({k: v for k, v in data.items() if k != "images"}), "is damaged: 'images'"),
        (json.dumps({**data, "images": [*data["images"], "more"], "layers": [{**data["layers"][0], "images": 4}]}),
         "lacks spectra of 'stem.0'"),
    ]  # fmt: skip
    for text, message in cases:
        (folder / "profile.json").write_text(text)
        with pytest.raises(rs.OutputError, match=message):
            JacobianProfile.load(folder)
    (folder / "profile.json").write_text(good)
    (folder / "profile.safetensors").write_bytes(spectra[:100])
    with pytest.raises(rs.OutputError, match="cannot read a profile"):
        JacobianProfile.load(folder)
    with pytest.raises(rs.OutputError, match="cannot read a profile from"):
        JacobianProfile.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(rs.OutputError, match=r"cannot write into .*choose another output folder"):
        profile.save(tmp_path / "file" / "below")


def test_tables(profile: JacobianProfile) -> None:
    frame = profile.table()
    assert list(frame.layer) == [x.name for x in profile.layers]
    assert tuple(frame.function_rank) == profile.function_rank == tuple(frame["max"])
    # sums of the same terms in another order
    middle = [sorted(s.effective_rank for s in x.spectra)[1] for x in profile.layers]
    assert list(frame["effective_rank"]) == pytest.approx(middle, rel=1e-13)
    per_image = profile.per_image("reference")
    assert len(per_image) == 3 * len(profile.layers)
    assert per_image["rank"].tolist() == [s.rank("reference").value for x in profile.layers for s in x.spectra]
    assert profile.table("reference")["max"].tolist() == list(profile.with_tolerance("reference").function_rank)
    assert profile["pool"].name == "pool"
    with pytest.raises(rs.UsageError, match="'pol' is not in this profile; did you mean 'pool'"):
        profile["pol"]


def test_rises_are_counted_from_the_smallest_before(profile: JacobianProfile) -> None:
    def layer(name: str, rank: int, true_cut: bool = True) -> Layer:
        return Layer(name, 6, 6, true_cut, (rs.Spectrum(np.array([1.0] * rank + [0.0] * (6 - rank)), (6, 6)),))

    layers = (layer("a", 5), layer("b", 2), layer("c", 6, False), layer("d", 4), layer("e", 3), layer("f", 2))
    made = replace(profile, layers=layers, images=("one",))
    assert made.function_rank == (5, 2, 6, 4, 3, 2)
    assert made.rises() == {"d": 2, "e": 1}


def test_text(profile: JacobianProfile) -> None:
    text = str(profile)
    for layer in profile.layers:
        (line,) = [x for x in text.splitlines() if x.startswith(f"{layer.name} ")]
        assert ("in a branch" in line) == (not layer.true_cut)
    assert "Jacobian rank of ResidualCNN on 3 images, 4×4 patch at the centre (K = 32)" in text
    assert "tolerance: paper, background: image, float32 on cpu" in text
    assert repr(profile).startswith("JacobianProfile(ResidualCNN, 3 images, paper: ")


def test_plot(profile: JacobianProfile) -> None:
    ax = profile.plot()
    line = ax.lines[0]
    assert tuple(line.get_ydata()) == profile.function_rank
    assert [t.get_text() for t in ax.get_xticklabels()] == [x.name for x in profile.layers]
    assert profile.with_tolerance("reference").plot(ax=ax, label="other") is ax
    assert [x.get_gid() for x in ax.lines].count("function rank") == 2
    assert "other" in ax.get_legend_handles_labels()[1]
    assert ax.get_ylim()[0] == 0


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class Counted(nn.Module):
    """Images of one batch change each other, so each is measured by itself; may be stopped at an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.calls = 0
        self.stop_at: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.stop_at is not None and bool((x.detach() == self.stop_at).any()):
            raise KeyboardInterrupt("stopped here")
        return self.layer(x - x.mean(0, keepdim=True) * (len(x) - 1))


def run(model: Counted, x: Tensor, folder: Path | None, **options: Any) -> tuple[JacobianProfile, int]:
    model.calls = 0
    return measure(model.eval(), x, checkpoint=folder, **options), model.calls


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rankscope.jacobian.batch import BatchMeasurer

    torch.manual_seed(0)
    model, x = Counted(), torch.randn(5, 6)
    plain = BatchMeasurer.measure
    measured: list[str] = []

    def counted(self: BatchMeasurer, samples: Any) -> Any:
        if len(measured) == 2 and not (tmp_path / "resumed").exists():
            raise KeyboardInterrupt("stopped here")
        measured.extend(sample.name for sample in samples)
        return plain(self, samples)

    monkeypatch.setattr(BatchMeasurer, "measure", counted)
    monkeypatch.setattr(BatchMeasurer, "_shared", lambda *_: 1)
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        run(model, x, tmp_path)
    assert measured == ["sample 0", "sample 1"]
    assert len(list(tmp_path.glob("image-*.safetensors"))) == 2
    (tmp_path / "resumed").touch()
    measured.clear()
    seen: list[int] = []
    found, _ = run(model, x, tmp_path, progress=lambda done, *_: seen.append(done))
    assert measured == ["sample 0", "sample 2", "sample 3", "sample 4"], "one kept image is measured again"
    assert seen == [1, 2, 3, 4, 5]
    measured.clear()
    again, _ = run(model, x, tmp_path)
    assert measured == ["sample 0"]
    assert (again.method, again.certificate) == (found.method, found.certificate)
    whole, _ = run(model, x, None)
    for other in (found, again):
        for a, b in zip(whole["layer"].spectra, other["layer"].spectra, strict=True):
            np.testing.assert_array_equal(a.singular_values, b.singular_values)
            assert a.error_bound == b.error_bound
        assert other.kinks == whole.kinks


def test_an_interrupt_inside_the_model(tmp_path: Path) -> None:
    model, x = Counted(), torch.randn(5, 6)
    x[3, 0] = model_stop = 77.0
    run(model, x[:3], tmp_path)
    model.stop_at = model_stop
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        measure(model.eval(), x[3:], checkpoint=tmp_path)
    assert len(list(tmp_path.glob("image-*.safetensors"))) == 3
    assert not list(tmp_path.glob("*.part"))


def test_images_are_written_alike_every_time(tmp_path: Path) -> None:
    """Six runs: three keys of metadata have six orders, and the library that writes the file takes any of them."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh()).eval(), torch.randn(2, 6)
    for k in range(6):
        measure(net, x, checkpoint=tmp_path / str(k))
    for k in range(1, 6):
        for name in ("image-000000.safetensors", "image-000001.safetensors"):
            assert (tmp_path / str(k) / name).read_bytes() == (tmp_path / "0" / name).read_bytes()


def test_a_checkpoint_is_used_for_the_same_question_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).eval()
    x = torch.randn(2, 6)

    def used(found: JacobianProfile) -> bool:
        return bool(of_kind(found.facts, FactKind.READ_BACK))

    assert not used(measure(net, x, checkpoint=tmp_path))
    assert used(measure(net, x, checkpoint=tmp_path))
    assert used(measure(net, x, checkpoint=tmp_path, tolerance="reference", chunk_size=1))
    other = nn.Sequential(net[0], nn.Sigmoid(), net[2]).eval()  # the same names and weights
    changes: list[tuple[nn.Module, Tensor, dict[str, Any]]] = [
        (other, x, {}),
        (net, x + 1, {}),
        (net, x, {"columns": rs.Sketch(3)}),
        (net, x, {"columns": rs.Sketch(3, seed=1)}),
        (net, x, {"dtype": "float64"}),
        (net, x, {"certify": False}),
        (net, x, {"cut_points": ["0"]}),
        (net, x, {"background": "zero"}),
    ]
    for model, inputs, options in changes:
        folder = tmp_path / "fresh"
        measure(net, x, checkpoint=folder, columns="all")
        assert not used(measure(model, inputs, checkpoint=folder, **{"columns": "all", **options})), options
    with torch.no_grad():
        net[0].weight[0, 0] += 1
    assert not used(measure(net, x, checkpoint=tmp_path))


def test_a_checkpoint_knows_the_other_inputs(tmp_path: Path) -> None:
    case = CASES["masked"]
    inputs = case.sample(2)
    measure(case.model(), inputs, checkpoint=tmp_path, per_sample="mask")
    inputs["mask"] = torch.flip(inputs["mask"], [1])
    expected = measure(case.model(), inputs, per_sample="mask")
    found = measure(case.model(), inputs, checkpoint=tmp_path, per_sample="mask")
    for a, b in zip(expected["layer"].spectra, found["layer"].spectra, strict=True):
        np.testing.assert_array_equal(a.singular_values, b.singular_values)


def test_a_checkpoint_that_is_a_file(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(1, 4)
    measure(net, x, checkpoint=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(rs.OutputError, match="cannot write into"):
        measure(net, x, checkpoint=tmp_path / "file")
