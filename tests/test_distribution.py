"""What an index and a citing paper get: the README without dead links, the sources that `make` needs, one version."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import rankscope

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


def test_the_readme_of_an_index_has_no_relative_link(hook: ModuleType) -> None:
    relative = [target for target in targets(README) if not target.startswith("https://")]
    assert len(relative) > 20
    assert all(target.startswith("https://") for target in targets(hook.index_readme(README, "", "v1")))
    made = targets(hook.index_readme(README, "https://host/owner/rankscope/", "v1"))
    assert len(made) == len(targets(README))
    assert "https://host/owner/rankscope/raw/v1/docs/images/imagenet.png" in made
    assert "https://host/owner/rankscope/blob/v1/docs/start.md" in made
    assert {target.partition("/v1/")[2] for target in made if target.startswith("https://host")} == {*relative}


def test_addresses(hook: ModuleType) -> None:
    assert {*hook.urls("")} == {"Paper"}
    assert hook.urls("https://host/x/")["Issues"] == "https://host/x/issues"


def test_the_paper_is_cited() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert found["version"] == project["version"] == rankscope.__version__
    paper = found["references"][0]
    title = "Rank Diminishing in Deep Neural Networks"
    assert (paper["title"], paper["year"]) == (title, 2022)
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert f"author    = {{{authors}}}" in README
    for page in (README, (ROOT / "docs/index.md").read_text(encoding="utf-8")):
        assert title in page
        assert "https://arxiv.org/abs/2206.06072" in page


def test_pip_install_comes_first_and_the_cpu_build_is_named() -> None:
    block = README[README.index("```") :]
    assert block.splitlines()[1].startswith("pip install rankscope ")
    assert "--index-url https://download.pytorch.org/whl/cpu" in README


def test_wheel_and_sdist(tmp_path: Path) -> None:
    """``make dist`` installs them in a clean environment besides, which takes minutes."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"Makefile", "constraints.txt", "constraints-floor.txt", "hatch_build.py", "CITATION.cff", "LICENSE"}
    assert needed | {"README.md", "tests/conftest.py", "docs/images/imagenet.png", ".ci/run"} <= held
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        about = message_from_string(wheel.read(next(n for n in names if n.endswith("/METADATA"))).decode())
    assert {"rankscope/py.typed", "rankscope/demo/digits.safetensors"} <= {*names}
    assert {name.partition("/")[0] for name in names} == {"rankscope", f"rankscope-{rankscope.__version__}.dist-info"}
    assert about["Author"] == "The rankscope contributors"
    assert about["Description-Content-Type"] == "text/markdown"
    assert not [t for t in targets(str(about.get_payload())) if not t.startswith("https://")]
