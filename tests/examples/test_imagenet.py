"""The page of the network trained on ImageNet: its tables and its figure are those of the CSVs beside it."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/imagenet.md"
SCRIPT = ROOT / "examples/imagenet/run.py"
MEASURE = ROOT / "examples/imagenet/measure.py"


def test_the_page_has_the_tables_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(re.sub(r"(<!-- begin [\w-]+ -->).*?(<!-- end)", r"\1\2", PAGE.read_text(), flags=re.DOTALL))
    assert "| `classifier` |" not in page.read_text()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--results", str(ROOT / "docs/imagenet"), "--out", str(tmp_path),
                                      "--page", str(page)])  # fmt: skip
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert page.read_text() == PAGE.read_text()
    assert (tmp_path / "imagenet.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "wrote imagenet.png" in capsys.readouterr().out


def test_the_results_hold_together() -> None:
    """Bounds enclose ranks, ranks fit their matrices, and a looser threshold counts no more."""
    ranks = pd.read_csv(ROOT / "docs/imagenet/ranks.csv")
    assert ((ranks["lower"] <= ranks["rank"]) & (ranks["rank"] <= ranks["upper"])).all()
    assert (ranks["upper"] <= ranks["possible"]).all()
    keys = ["network", "weights", "columns", "image", "layer"]
    one = ranks[ranks["columns"].str.startswith("patch")].pivot_table(index=keys, columns="tolerance", values="rank")
    assert (one["reference"] <= one["paper"]).all()


def test_numbers_of_the_text() -> None:
    """What the page's summary, the README and the front page say is in the results."""
    ranks = pd.read_csv(ROOT / "docs/imagenet/ranks.csv")
    chosen = ranks[(ranks["network"] == "efficientnet-lite0") & (ranks["columns"] == "patch 16 centre")]

    def series(tolerance: str, weights: str, image: str) -> pd.Series:
        """Rank by layer, in depth order."""
        rows = chosen[(chosen["tolerance"] == tolerance) & (chosen["weights"] == weights) & (chosen["image"] == image)]
        return rows.set_index("layer")["rank"]

    photographs = ("china.jpg", "flower.jpg")
    pooled = {w: [series("paper", w, i)["global_pool.flatten"] for i in photographs] for w in ("trained", "untrained")}
    assert pooled == {"trained": [311, 251], "untrained": [577, 508]}
    for file in (PAGE, ROOT / "README.md"):
        text = " ".join(file.read_text().replace("(china.jpg)", "").replace("(flower.jpg)", "").split())
        assert "311 and 251 are left at the pooled features" in text
        assert "577 and 508 of the untrained one" in text
    rises = []
    for image in photographs:
        for weights in ("trained", "untrained"):
            assert (series("paper", weights, image).diff().dropna() <= 0).all()  # "It falls or stays at every step"
        for tolerance in ("paper", "reference"):
            trained, untrained = (series(tolerance, weights, image) for weights in ("trained", "untrained"))
            assert (trained < untrained).loc["blocks.3.0":].all()  # "From `blocks.3.0` on"
        rises += series("reference", "trained", image).loc[["bn1.act", "blocks.0.0"]].diff().tolist()[1:]
    assert rises == [12, 42]


def test_a_measurement_is_kept_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Feature dimension over few copies of a photograph: on the device named, in the table that the page reads."""
    sys_argv = ["measure.py", "--only", "dimensions-untrained-0", "--device", "cpu", "--work", str(tmp_path / "work"),
                "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", sys_argv)
    code = MEASURE.read_text().replace("COPIES = 1e-3, 5000", "COPIES = 1e-3, 6")
    assert code != MEASURE.read_text()
    exec(compile(code, str(MEASURE), "exec"), {"__name__": "__main__", "__doc__": "Measure.\n"})
    found = pd.read_csv(tmp_path / "out/dimensions.csv")
    assert list(found["weights"]) == ["untrained"] * 2
    assert list(found["image"]) == ["china.jpg"] * 2
    assert list(found["name"]) == ["global_pool.flatten", "classifier"]
    assert list(found["width"]) == [1280, 1000]
    assert (found["pca_dimension"] <= 5).all()  # six copies about their mean
    assert "PCA dimension" in runpy.run_path(str(SCRIPT))["of_dimensions"](found)
    assert "wrote ranks.csv" in capsys.readouterr().out
