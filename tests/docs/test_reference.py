"""The references are complete: every public name, every command, every option; every picture shown exists."""

from __future__ import annotations

import importlib
import inspect
import re
from enum import Enum
from typing import Any

import pytest
from docs_extensions import DOCS, extension


def test_every_public_name_has_its_place_and_nothing_else_is_there() -> None:
    import rankscope

    page = (DOCS / "reference/index.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\.\. auto\w+:: (rankscope\.[\w.]+)$", page, re.MULTILINE))
    public = {f"rankscope.{name}" for name in rankscope.__all__}
    assert public <= described
    for name in described - public:  # kinds that a room's record has, under the room's name
        room, _, kind = name.rpartition(".")
        assert kind in importlib.import_module(room).__all__, name
        assert issubclass(getattr(importlib.import_module(room), kind), Enum), f"export {name} from rankscope"


def test_public_packages_are_listed_whole() -> None:
    names = extension("public_names")
    import rankscope

    assert names.MARKER in (DOCS / "reference/packages.md").read_text(encoding="utf-8")
    made = names.packages()
    for package in rankscope._PACKAGES:
        assert f".. automodule:: rankscope.{package}\n   :members:" in made
    assert {"rankscope.jacobian_rank", "rankscope.theory.deep_chain"} <= set(names.public_names())


def test_constants_of_a_public_package_are_listed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import rankscope

    monkeypatch.setattr(rankscope, "_PACKAGES", ("spectra",))
    made = extension("public_names").packages()
    assert ".. autodata:: rankscope.spectra.EPS32" in made
    assert "autodata:: rankscope.spectra.Spectrum" not in made


def test_a_missing_name_stops_the_build() -> None:
    errors = pytest.importorskip("sphinx.errors")
    names = extension("public_names")

    class Domain:
        objects = dict.fromkeys(names.public_names())

    class Environment:
        def get_domain(self, name: str) -> Domain:
            assert name == "py"
            return Domain()

    names._complete(None, Environment())
    del Domain.objects["rankscope.collect"]
    with pytest.raises(errors.ExtensionError, match=r"not in the API reference: rankscope\.collect;"):
        names._complete(None, Environment())


def test_bars_are_escaped_outside_literals_only() -> None:
    lines = ["order by |λ|, see ``a | b`` and ‖λ‖"]
    extension("public_names")._prepare(None, "function", "f", None, None, lines)
    assert lines == [r"order by \|λ\|, see ``a | b`` and ‖λ‖"]


def test_an_attribute_that_names_several_is_told_for_each() -> None:
    lines = [
        "A record.",
        "",
        "Attributes",
        "----------",
        "low, high : int",
        "    Bounds.",
        "    Two lines.",
        "name",
        "    Of it.",
    ]
    lines += ["", "Notes", "-----", "one, two"]
    extension("public_names")._prepare(None, "class", "f", None, None, lines)
    assert lines[4:12] == [
        "low : int",
        "    Bounds.",
        "    Two lines.",
        "high : int",
        "    Bounds.",
        "    Two lines.",
        "name",
        "    Of it.",
    ]
    assert lines[-1] == "one, two"


def test_a_constant_is_not_told_what_its_type_is() -> None:
    for doc, kept in ((dict.__doc__ or "", []), ("Scales by name.", ["Scales by name."])):
        lines = doc.splitlines()
        extension("public_names")._prepare(None, "data", "f", {"a": 1}, None, lines)
        assert lines == kept


def test_a_colon_in_a_property_sets_no_type_apart() -> None:
    lines = ["(seed, depth): where it rose"]
    extension("public_names")._prepare(None, "property", "f", None, None, lines)
    assert lines == ["", "(seed, depth): where it rose"]


def every_command(command: Any, path: str = "rankscope") -> list[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    return [(path, command), *(pair for n, c in children.items() for pair in every_command(c, f"{path} {n}"))]


def test_the_command_reference_holds_every_option() -> None:
    import typer

    from rankscope.cli.app import app

    commands = extension("commands")
    assert commands.MARKER in (DOCS / "commands.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", commands.reference(), re.MULTILINE | re.DOTALL))
    known = every_command(typer.main.get_command(app))
    assert list(sections) == [path for path, _ in known]
    for path, command in known:
        rows = [line for line in sections[path].splitlines() if line.startswith("| `")]
        shown = [p for p in command.params if not getattr(p, "hidden", False)]
        assert len(rows) == len(shown), path
        for parameter in shown:
            if parameter.param_type_name == "option":
                wanted = [*parameter.opts, *parameter.secondary_opts]
                assert any(all(re.search(rf"`{form}[ `]", row) for form in wanted) for row in rows), (path, wanted)


def test_defaults_and_calls_are_told() -> None:
    made = extension("commands").reference()
    words = "Threshold of the rank: paper, reference, torch, or a number (a constant rtol)."
    assert f"| `--tolerance TOLERANCE` | {words} | `paper` |" in made
    assert "| `--certify`, `--no-certify` | Bound the error of every rank with float64 probes. | `--certify` |" in made
    assert r"| `--data DIR\|digits\|FILE` |" in made
    assert "rankscope collect MODEL --out RUN [OPTIONS]" in made


def test_links_and_pictures_exist() -> None:
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize(
    ("name", "title"), [("jacobian-cuda", "The Jacobian sweep on a GPU"), ("speed", "speed"), ("a-b", "a-b")]
)
def test_tables_without_a_title_get_one(name: str, title: str) -> None:
    assert extension("titles").title(name) == title


def test_every_formula_can_be_drawn() -> None:
    pytest.importorskip("sphinx")
    mathml = extension("mathml").mathml
    text = (DOCS / "mathematics.md").read_text(encoding="utf-8")
    formulas = re.findall(r"\$\$\n(.*?)\n\$\$|\$([^$]+)\$", text, re.DOTALL)
    assert len(formulas) > 100
    for block, inline in formulas:
        assert "<math" in mathml(block or inline, block=bool(block))


def test_a_formula_that_cannot_be_read_is_named() -> None:
    errors = pytest.importorskip("sphinx.errors")
    with pytest.raises(errors.ExtensionError, match=r"nosuchcommand.* cannot be read"):
        extension("mathml").mathml(r"a \nosuchcommand b")


def test_every_parameter_of_a_public_function_is_told() -> None:
    import rankscope

    missing = []
    for name in rankscope.__all__:
        function = getattr(rankscope, name)
        if inspect.isfunction(function):
            told = function.__doc__ or ""
            missing += [(name, p) for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", told)]
    assert missing == []
