"""What ``make dist`` runs with the Python of a clean environment: the installed package, not the sources."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import rankscope

bin_folder = Path(sys.executable).parent


def run(*words: str) -> str:
    return subprocess.run([bin_folder / "rankscope", *words], check=True, capture_output=True, text=True).stdout


def main() -> None:
    installed = Path(rankscope.__file__).resolve()
    assert Path(sys.prefix).resolve() in installed.parents, f"{installed} is not of this environment"
    assert run("--version").split() == ["rankscope", metadata.version("rankscope")]
    with tempfile.TemporaryDirectory() as folder:
        words = ("profile", "digits", "--columns", "all", "--limit", "2", "--json", "--out", f"{folder}/run")
        found = json.loads(run(*words))
        assert (Path(folder) / "run" / "report.html").stat().st_size > 10_000
    print(f"rankscope {metadata.version('rankscope')}: {len(found['layers'])} layers measured")


if __name__ == "__main__":
    main()
