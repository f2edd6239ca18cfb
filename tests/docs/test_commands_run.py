"""Every command of README, CONTRIBUTING and documentation runs, or is parsed as far as its work, which the table says.

A command is run as the page has it, in a folder that holds a small one of everything that it names. What is replaced is
listed here; a command that is not listed and fails, fails the test of its page.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from documented import ROOT, Typed, pages, typed

from rankscope import probes
from rankscope.cli.app import root
from rankscope.cli.main import main
from rankscope.loading.packaged import has_weights

# the reader's own networks and files, which a page writes in capitals or by a name that has to be downloaded
STANDS_FOR = {
    "timm:resnet50": "nets/small.py:resnet",
    "timm:resnet18": "nets/small.py:resnet",
    "timm:vit_tiny_patch16_224": "nets/small.py:vit",
    "64x8x8": "4x4x4",
    "MODEL": "digits",
    "FILE": "texts.txt",
    "RUN": "runs/mine",
}
# what would take longer than a second or two, and with what it does not
SHORTER = {
    r"profile efficientnet-lite0 (.*)--patch (8|16)$": r"profile efficientnet-lite0 \1--patch 2 --limit 1",
    r"profile efficientnet-lite0 --weights random$": "profile efficientnet-lite0 --weights random --patch 2 --limit 1",
    r"theory chain --width \d+ --depth 50": "theory chain --width 30 --depth 5",
    r"watch (.*) --follow$": r"watch \1 --follow --every 0.1 --patience 0.3",
    r"watch digits-run (.*) --limit 200": r"watch digits-run \1 --limit 40",
    r"profile digits --columns all": "profile digits --columns all --limit 1",
    r"reproduce fig1d$": "reproduce fig1d --scale small",
    r"reproduce table2 ": "reproduce table2 --scale small --only none --networks nets/small.py:resnet ",
    r"probe$": "probe --input-shape 4x4x4 --samples 20",
}
# what is parsed, but not begun
PARSED = {
    r"^rankscope demo( |$)": "a minute; tests/demo runs it on smaller patches",
    r"--device cuda": "needs a GPU",
    r"^torchrun ": "several processes; tests/jacobian and tests/features run them",
    r"--install-completion": "changes the settings of the reader's shell",
    r"^rankscope reproduce NAME$": "a name to put in; the examples beside it run",
    r"^python (benchmarks|examples)/": "minutes to hours; tests/examples and tests/benchmarks run them at a small size",
}
LITE = "efficientnet-lite0"
_measured: set[str] = set()  # in this process
# what the page says to have done before
BEFORE = {"docs/guides/features.md": ["collect nets/small.py:resnet --data IMAGEFOLDER --out runs/resnet50"]}


def why_parsed(command: Typed) -> str | None:
    return next((why for pattern, why in PARSED.items() if re.search(pattern, command.line)), None)


def small(command: Typed) -> list[str]:
    """The words of the command with the tables' replacements, as a shell hands them on."""
    line = "\0".join(command.words[1:])
    for pattern, shorter in SHORTER.items():
        line = re.sub(pattern.replace(" ", "\0"), shorter.replace(" ", "\0"), line)
    found = [os.path.expanduser(word) for word in line.split("\0")]
    return [STANDS_FOR.get(word, word) for word in found]


def own(page: Path) -> list[Typed]:
    """The page's commands that are rankscope's own, each once; a name alone within a sentence is none."""
    found = {c.line: c for c in typed(page) if c.words[0] == "rankscope" and not (c.mentioned and is_name(c))}
    return [*found.values()]


def is_name(command: Typed) -> bool:
    group = root()
    for word in command.words[1:]:
        group = getattr(group, "commands", {}).get(word)
        if group is None:
            return False
    return True


def configuration(page: Path, folder: Path) -> None:
    """Write the files of options that the page shows: their first line is their name."""
    for name, text in re.findall(r"^```toml\n# (\S+\.toml)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        keys = tomllib.loads(text)
        for key, value in keys.items():
            text = text.replace(f'{key} = "{value}"', f'{key} = "{STANDS_FOR.get(value, value)}"')
        (folder / name).write_text(text)


PAGES = [page for page in pages() if own(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page(
    page: Path, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the remedies have no option for their size
    monkeypatch.setattr(probes, "probe_remedies", partial(probes.probe_remedies, width=12, depth=3, seeds=0))
    configuration(page, here)
    for before in BEFORE.get(str(page.relative_to(ROOT)), []):
        assert main(before.split()) == 0
    for command in own(page):
        # five seconds, and nearly the same on every page
        again = LITE in command.words and (LITE in _measured or not has_weights(LITE))
        if again or why_parsed(command):
            parse(small(command))
            continue
        capfd.readouterr()
        code = main(small(command))
        _measured.update({LITE} & {*command.words})
        assert code == 0, f"{command}\n{capfd.readouterr().err}"


def parse(words: list[str]) -> None:
    """Through the command's own parser, up to where its work starts."""
    group = root()
    while words and words[0] in getattr(group, "commands", {}):
        group, words = group.commands[words[0]], words[1:]
    if words[:1] and words[0].startswith("--") and hasattr(group, "commands"):
        assert words[0] in {form for param in group.params for form in param.opts}  # acts while it is parsed
    elif words != ["…"]:
        group.make_context("rankscope", [word for word in words if word != "…"])


class ParsedError(Exception):
    """The script has read its options."""


WITH_SCRIPTS = [page for page in pages() if any(command.words[0] == "python" for command in typed(page))]


@pytest.mark.parametrize("page", WITH_SCRIPTS, ids=lambda page: page.stem)
def test_the_scripts_of_a_page_take_these_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = argparse.ArgumentParser.parse_args

    def parse_args(self: Any, args: Any = None, namespace: Any = None) -> None:
        read(self, args, namespace)
        raise ParsedError("options read")

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    for command in typed(page):
        if command.words[0] != "python":
            continue
        script = ROOT / command.words[1]
        monkeypatch.syspath_prepend(script.parent)
        monkeypatch.setattr(sys, "argv", command.words[1:])
        with pytest.raises(ParsedError, match="options read"):
            runpy.run_path(str(script), run_name="__main__")


def test_the_targets_and_extras_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    seen = 0
    for command in (c for page in pages() for c in typed(page)):
        if command.words[0] == "make":
            assert set(command.words[1:]) <= targets, command
            seen += 1
        for extra in re.findall(r"rankscope\[(\w+)\]", command.text):
            assert extra in extras, command
            seen += 1
    assert seen > 10


def test_the_tables_have_no_row_too_many() -> None:
    commands = [command for page in pages() for command in typed(page)]
    lines = [" ".join(command.words[1:]) for command in commands]
    for pattern in SHORTER:
        assert any(re.search(pattern, line) for line in lines), pattern
    for pattern in PARSED:
        assert any(re.search(pattern, command.line) for command in commands), pattern
    for word in STANDS_FOR:
        assert any(word in command.words for command in commands), word
