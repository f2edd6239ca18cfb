"""What continuous integration installs besides the package: tried with an ``apt-get`` of the test's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "chromium"
ABSENT = "Chromium is absent and could not be installed: the tests of pages in a browser are skipped.\n"
FAILS = "exit 100"
INSTALLS = 'case "$*" in *install*chromium*) printf "#!/bin/sh\n" > {bin}/chromium; chmod +x {bin}/chromium;; esac'
AFTER_UPDATE = 'case "$*" in *update*) touch {bin}/lists;; esac; [ -e {bin}/lists ] || exit 100; ' + INSTALLS


def run(folder: Path, programs: dict[str, str]) -> tuple[str, list[str]]:
    """What the script prints and the calls that it makes where only these programs exist."""
    programs = {name: f'echo "{name} $*" >> {{bin}}/calls\n{text}' for name, text in programs.items()}
    programs["sudo"] = programs.get("sudo", 'echo "sudo $*" >> {bin}/calls\nshift\n"$@"')
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text.replace('{bin}', str(folder))}\n")
        (folder / name).chmod(0o755)
    for name in ("bash", "sh", "env", "timeout", "touch", "chmod"):
        (folder / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [shutil.which("bash") or "bash", SCRIPT], env={"PATH": str(folder)}, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    calls = folder / "calls"
    return done.stdout, calls.read_text().splitlines() if calls.exists() else []


ROOT, USER = {"id": "echo 0"}, {"id": "echo 1000"}
INSTALL, UPDATE = "apt-get -qq install -y --no-install-recommends chromium", "apt-get -qq update"
SUDO = "sudo -n env DEBIAN_FRONTEND=noninteractive "


@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs the timeout of coreutils")
@pytest.mark.parametrize(
    ("programs", "said", "called"),
    [
        ({"google-chrome": ""}, "", []),
        (ROOT, ABSENT, []),
        (ROOT | {"apt-get": INSTALLS}, "", [INSTALL]),
        (ROOT | {"apt-get": AFTER_UPDATE}, "", [INSTALL, UPDATE, INSTALL]),
        (ROOT | {"apt-get": FAILS}, ABSENT, [INSTALL, UPDATE, INSTALL]),
        (USER | {"apt-get": INSTALLS}, "", [SUDO + INSTALL, INSTALL]),
        (USER | {"apt-get": INSTALLS, "sudo": FAILS}, ABSENT, [SUDO + INSTALL, SUDO + UPDATE, SUDO + INSTALL]),
    ],
)
def test_chromium_is_installed_or_a_line_says_that_it_is_absent(
    tmp_path: Path, programs: dict[str, str], said: str, called: list[str]
) -> None:
    printed, calls = run(tmp_path, programs)
    assert printed == said
    assert [call for call in calls if not call.startswith("id ")] == called


def test_the_steps_are_those_that_contributors_are_told() -> None:
    steps = re.findall(r"^make (.*)$", (SCRIPT.parent / "run").read_text(), re.MULTILINE)
    assert steps == ["lint", "test", "test-kernels", "docs", "dist"]
    told = " ".join((SCRIPT.parents[1] / "CONTRIBUTING.md").read_text().split())
    named = re.search(r"`\.ci/run` is (.*?);", told)
    assert named is not None
    assert re.findall(r"`([a-z-]+)`", named[1]) == steps
