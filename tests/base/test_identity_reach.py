"""An identity reaches code in other files, what hangs on modules and tensors, and the order of things."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from rankscope._base.identity import identity_of

ROOT = """
import torch
from torch import nn
{top}

class Net(nn.Module):
    def forward(self, x):
        {body}

def make():
    self = Net()
    {setup}
    return self
"""
LOW = "def f(x):\n    return x * 2\nC = 2\ndef unused(x):\n    return x + 2\n"


class World:
    """A package ``mine`` of the user's own, with ``mine.low``, and a file ``net_file`` beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, top="", body="return x", setup="pass", low=LOW, middle="", inside=False):
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "mine").mkdir(parents=True)
        net = ROOT.format(top=textwrap.dedent(top), body=body, setup=setup)
        files = {"mine/__init__.py": "", "mine/low.py": low, "mine/middle.py": middle}
        files["mine/net_file.py" if inside else "net_file.py"] = net
        for name, content in files.items():
            (self.folder / name).write_text(content)
        for name in [n for n in sys.modules if n.partition(".")[0] in ("mine", "net_file")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("mine.net_file" if inside else "net_file").make()


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield World(tmp_path / "code")
    for name in [n for n in sys.modules if n.partition(".")[0] in ("mine", "net_file")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "net",
    [
        {"top": "import mine.low", "body": "return mine.low.f(x)"},  # an attribute of a module of a module
        {"top": "import mine.low as low", "body": "return low.f(x)"},
        {"top": "from mine.low import *", "body": "return f(x)"},
        {"body": "import mine.low; return mine.low.f(x)"},  # imported when it runs
        {"body": "from mine.low import f; return f(x)"},
        {"body": "from mine import low as l; return l.f(x)"},
        {"body": "from mine import middle; return middle.g(x)", "middle": "from mine.low import f as g\n"},
        {"top": "def g(x):\n    import mine.low as m\n    return m.f(x)", "body": "return (lambda y: g(y))(x)"},
        {"body": "from . import low; return low.f(x)", "inside": True},
        {"body": "from .low import f; return f(x)", "inside": True},
        {"top": "import mine.low", "setup": "self.where = mine.low", "body": "return self.where.f(x)"},
        {"top": "import mine.low\nD = {'a': mine.low}", "body": "return D['a'].f(x)"},
        {"top": "import mine.low as low", "body": "return getattr(low, 'f')(x)"},
        {"top": "import mine.low as low", "body": "return vars(low)['f'](x)"},
        {"top": "from mine.low import f", "body": "return globals()['f'](x)"},
        {"top": "def maker():\n    import mine.low as low\n    return lambda x: low.f(x)",
         "setup": "self.f = maker()", "body": "return self.f(x)"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("loaded", [False, True])
def test_a_function_of_another_file_counts_however_it_is_reached(world, net, loaded):
    def identity(**more):
        made = world.make(**net, **more)
        if loaded:  # as after a first forward pass
            assert made(torch.ones(1)).item() == (3 if more else 2)
        return identity_of(made)

    first = identity()
    assert first == identity()
    assert first.unreadable == ()
    assert identity(low=LOW.replace("x * 2", "x * 3")) != first


def test_loading_a_module_that_is_imported_when_it_runs_changes_nothing(world):
    net = world.make(body="from mine import low; return low.f(x)")
    before = identity_of(net)
    assert "mine.low" not in sys.modules  # the user's code was read and not run
    net(torch.ones(1))
    assert "mine.low" in sys.modules
    assert identity_of(net) == before


def test_a_module_that_cannot_be_found_or_read_is_no_error(world):
    net = world.make(body="import not_there.at_all, mine.low; return x", low="this is no Python")
    assert identity_of(net) != identity_of(world.make(body="import mine.low; return x"))
    assert identity_of(net).unreadable == ()


KINDS = """
import enum, weakref
import numpy as np

class Enum(enum.Enum):
    A = 2
class Tensor(torch.Tensor):
    def f(self, x):
        return x * 2
class Array(np.ndarray):
    def f(self, x):
        return x * 2
class Plain:
    k = 2
PLAIN = Plain()
"""


@pytest.mark.parametrize(
    ("setup", "old", "new"),
    [
        ("self.register_forward_hook(lambda m, i, o: o * 2)", "o * 2", "o * 3"),
        ("self.register_forward_pre_hook(lambda m, i: (i[0] * 2,))", "* 2", "* 3"),
        ("self.register_full_backward_hook(lambda m, i, o: (i[0] * 2,))", "* 2", "* 3"),
        ("self.one = Enum.A", "A = 2", "A = 3"),
        ("self.one = torch.ones(2).as_subclass(Tensor)", "x * 2", "x * 3"),
        ("self.one = torch.ones(2); self.one.k = 2", "one.k = 2", "one.k = 3"),
        ("self.one = np.ones(2).view(Array)", "x * 2", "x * 3"),
        ("self.one = weakref.ref(PLAIN)", "k = 2", "k = 3"),
        ("self.one = {'a': torch.relu, 'b': torch.tanh}", "'a': torch.relu, 'b': torch.tanh",
         "'b': torch.tanh, 'a': torch.relu"),
        ("self.one = nn.ModuleDict({'a': nn.ReLU(), 'b': nn.Tanh()})", "'a': nn.ReLU(), 'b': nn.Tanh()",
         "'b': nn.Tanh(), 'a': nn.ReLU()"),
    ],
)  # fmt: skip
def test_what_hangs_on_a_module_or_an_attribute_counts(world, setup, old, new):
    first = identity_of(world.make(top=KINDS, setup=setup))
    assert first == identity_of(world.make(top=KINDS, setup=setup))
    assert first.unreadable == ()
    assert (old in setup) or (old in KINDS)
    assert identity_of(world.make(top=KINDS.replace(old, new), setup=setup.replace(old, new))) != first


def test_a_function_of_the_users_in_an_installed_module_counts(world, monkeypatch):
    nets = {"direct": world.make(top="import torch.nn.functional as F", body="return F.relu(x)"), "layer": nn.ReLU()}
    before = {name: identity_of(net) for name, net in nets.items()}
    true = F.relu

    def relu(x, inplace=False):
        return true(x) * 2

    monkeypatch.setattr(F, "relu", relu)
    for name, net in nets.items():
        assert float(net(torch.ones(1))) == 2
        assert identity_of(net) != before[name]
    monkeypatch.undo()
    assert {name: identity_of(net) for name, net in nets.items()} == before


def test_notes_that_torch_makes_on_a_tensor_do_not_count():
    net = nn.Linear(2, 2)
    before = identity_of(net)
    net.weight._dynamo_static_input_type = "unguarded"
    assert identity_of(net) == before


def test_a_palette_is_a_part_of_a_picture():
    from PIL import Image

    def picture(colour):
        made = Image.fromarray(np.zeros((2, 2), "uint8"), "L").convert("P")
        made.putpalette([colour, 0, 0] * 256)
        return made

    assert identity_of(picture(1)) == identity_of(picture(1))
    assert identity_of(picture(1)) != identity_of(picture(2))
    assert identity_of(picture(1)) != identity_of(picture(1).convert("L"))


def test_the_order_of_a_mapping_is_the_same_in_another_process(tmp_path):
    code = (
        "from rankscope._base.identity import identity_of\n"
        "import collections; print(identity_of({'b': 1, 'a': {'x', 'y'}}, collections.Counter('aabc')).digest)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("module", "name"),
    [(sys, "excepthook"), (sys, "displayhook"), (threading, "excepthook"), (warnings, "showwarning")],
)
def test_what_a_session_shows_is_no_part(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group, a notebook or a debugger puts hooks of its own there."""
    data = TensorDataset(torch.zeros(2, 3))
    before = identity_of(data)
    monkeypatch.setattr(module, name, lambda *_, **__: None)
    assert identity_of(data) == before


@pytest.mark.parametrize("root", ["__lt__", "__le__", "__gt__", "__ge__"])
def test_a_class_with_an_order_elsewhere_is_no_part(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``total_ordering`` sets ``__name__`` of functions that ``functools`` keeps for all classes."""
    for name, function in vars(functools).items():
        if "_from_" in name:
            monkeypatch.setattr(function, "__name__", name)  # as before any class had an order
    data = TensorDataset(torch.zeros(2, 3))
    before = identity_of(data)
    functools.total_ordering(type("Ordered", (), {root: lambda *_: True}))
    assert identity_of(data) == before
