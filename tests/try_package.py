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
installed = Path(rankscope.__file__).resolve()
assert Path(sys.prefix).resolve() in installed.parents, f"{installed} is not of this environment"


def run(*words: str) -> str:
    return subprocess.run([bin_folder / "rankscope", *words], check=True, capture_output=True, text=True).stdout


assert run("--version").split() == ["rankscope", metadata.version("rankscope")]
with tempfile.TemporaryDirectory() as folder:
    found = json.loads(run("profile", "digits", "--columns", "all", "--limit", "2", "--json", "--out", f"{folder}/run"))
    assert (Path(folder) / "run" / "report.html").stat().st_size > 10_000
print(f"rankscope {metadata.version('rankscope')}: {len(found['layers'])} layers measured")
