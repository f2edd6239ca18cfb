"""The public names, and what importing them costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rankscope as rs


def test_names() -> None:
    assert rs.__all__ == sorted(rs.__all__)
    assert set(rs.__all__) == set(rs._HOME)
    assert set(rs.__all__) <= set(dir(rs))
    for name in rs.__all__:
        assert getattr(rs, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'rankscope' has no attribute 'spectrum'"):
        rs.spectrum  # noqa: B018


def test_one_name_is_one_thing() -> None:
    """A class that two packages hand on under one name is the same in both."""
    homes: dict[str, set[int]] = {}
    for home in [
        rs,
        *(importlib.import_module(m.name) for m in pkgutil.iter_modules(rs.__path__, "rankscope.") if m.ispkg),
    ]:
        for name in getattr(home, "__all__", ()):
            if inspect.isclass(getattr(home, name)):
                homes.setdefault(name, set()).add(id(getattr(home, name)))
    assert {name for name, found in homes.items() if len(found) > 1} == set()


def test_theory_is_a_package_of_its_own() -> None:
    script = (
        "import sys, rankscope as rs; assert 'rankscope.theory' not in sys.modules; "
        "print(callable(rs.theory.deep_chain), callable(rs.theory.predicted_rank), callable(rs.chain_exponents))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True"] * 3
    assert "theory" in dir(rs)


def test_one_exception_tree() -> None:
    errors = [n for n in rs.__all__ if n.endswith("Error")]
    assert all(issubclass(getattr(rs, n), rs.RankscopeError) for n in errors)
    assert rs.UsageError.exit_code == rs.CutPointError.exit_code == 2
    assert rs.ModelError.exit_code == 1


def test_every_promised_version_has_a_floor() -> None:
    """``make test-floor`` installs the lowest version of all that is required, extras included."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    promised = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lowest = dict(requirement.split(">=") for requirement in promised)
    lines = (root / "constraints-floor.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() - {"pyarrow"} == lowest.keys()  # the newest pyarrow, which datasets brings, needs NumPy 2
    for name, version in lowest.items():  # 2.2.0 is the 2.2 that is promised
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", pinned[name]), name


SCRIPT = """
import sys
import torch
before = set(sys.modules)
import rankscope
{use}
new = set(sys.modules) - before
heavy = "timm", "torchvision", "matplotlib", "pandas", "sklearn", "transformers", "scipy", "torchmetrics", "datasets"
print([m for m in heavy if m in sys.modules], len(new))
"""


@pytest.mark.parametrize(
    ("use", "most"),
    [("", 5), ("rankscope.Spectrum.of([[1.0]]).rank(), rankscope.jacobian_rank, rankscope.layers", 240)],
)
def test_import_is_cheap(use: str, most: int) -> None:
    """Counted in modules, since seconds depend on what else the machine does.

    They were 1 and 227 on Python 3.12 with torch 2.11; which other modules come along depends on both.
    """
    out = subprocess.run([sys.executable, "-c", SCRIPT.format(use=use)], capture_output=True, text=True, check=True)
    heavy, count = out.stdout.rsplit(maxsplit=1)
    assert heavy == "[]"
    assert int(count) <= most
