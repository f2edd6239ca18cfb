"""What counts as the same model or data set: all that changes what is computed, and nothing else."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from rankscope._base.identity import identity_of

BASE = """
import torch
from torch import nn
import helpers

SCALE = 2.0

def inner(x):
    return x * SCALE

def outer(x):
    return inner(x) + 1

class Plan:
    __slots__ = ("depth", "lock")
    def __init__(self):
        self.depth = 3

class Base(nn.Module):
    width = 4
    def pre(self, x):
        return outer(x)

class Net(Base):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.ones(4), persistent=False)
        self.k, self.plan, self.names = 6, Plan(), {"a": [1, 2], "b": {"x", "y", "z"}}
        self.act = lambda x: torch.relu(x)
        self.fixed = torch.arange(3)
    def forward(self, x):
        return helpers.last(self.act(self.layer(self.pre(x)))) * self.mask
"""
HELPERS = "def last(x):\n    return x\ndef unused(x):\n    return x\n"


def built(source=BASE, helpers=HELPERS):
    sys.modules["helpers"] = module = types.ModuleType("helpers")
    exec(compile(helpers, "helpers.py", "exec"), vars(module))
    made = types.ModuleType("net_of_a_user")
    sys.modules["net_of_a_user"] = made
    exec(compile(source, "/home/someone/net.py", "exec"), vars(made))
    return made.Net()


@pytest.fixture(scope="module")
def base():
    return identity_of(built())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* self.mask", "+ self.mask"),  # R1: forward edited
        ("SCALE = 2.0", "SCALE = 2.5"),  # a constant of the file
        ("return x * SCALE", "return x / SCALE"),  # a function that a function calls
        ("width = 4", "width = 5"),  # a class attribute of a base
        ("return outer(x)", "return outer(x) * 2"),  # a method of a base
        ("self.depth = 3", "self.depth = 2"),  # a slot of an object
        ("self.depth = 3", "self.depth = 3.0"),
        ("self.k, self.plan, self.names = 6", "self.k, self.plan, self.names = 2"),  # J7
        ("[1, 2]", "[2, 1]"),
        ('"z"', '"w"'),
        ("torch.relu(x)", "torch.tanh(x)"),
        ("torch.ones(4), persistent=False", "torch.zeros(4), persistent=False"),
        ("torch.arange(3)", "torch.arange(3.0)"),
        ("torch.manual_seed(0)", "torch.manual_seed(1)"),
    ],
)
def test_what_changes_the_function_changes_the_identity(base, old, new):
    assert old in BASE
    changed = identity_of(built(BASE.replace(old, new)))
    assert changed.digest != base.digest
    assert changed.unreadable == base.unreadable == ()


def test_a_module_of_the_users_own_counts_as_far_as_it_is_used(base):
    assert identity_of(built(helpers=HELPERS.replace("return x\n", "return x * 2\n", 1))) != base
    assert identity_of(built(helpers=HELPERS + "def more(x):\n    return 1\n")) == base


def test_the_smallest_change_of_any_weight_counts(base):
    net = built()
    for tensor in (net.layer.weight, net.layer.bias, net.mask, net.fixed):
        before, flat = tensor.detach().clone(), tensor.detach().view(-1)
        for place in {0, len(flat) - 1}:
            with torch.no_grad():
                flat[place] = math.nextafter(float(flat[place]), 9) if tensor.is_floating_point() else flat[place] + 1
                if tensor.is_floating_point():
                    flat[place] = torch.nextafter(flat[place], torch.tensor(9.0))
            assert identity_of(net) != base
            with torch.no_grad():
                tensor.copy_(before)
    assert identity_of(net) == base


def test_state_of_a_run_is_no_part_of_it(base):
    net = built("# another line\n" * 9 + BASE).train()
    net.layer.weight.requires_grad_(False)
    net.layer.weight.grad = torch.ones(4, 4)
    assert identity_of(net) == base
    for name, one, other in [
        ("generator", torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
        ("rng", np.random.default_rng(1), np.random.default_rng(2)),
        ("lock", threading.Lock(), threading.Lock()),
        ("device", torch.device("cpu"), torch.device("cuda")),
    ]:
        setattr(net, name, one)
        first = identity_of(net)
        setattr(net, name, other)
        assert identity_of(net) == first


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.n = 3

    @functools.cached_property
    def table(self):
        return torch.ones(self.n)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def other(self, n):
        return n


def test_caches_are_no_part_of_it():
    net = Cached()
    before = identity_of(net)
    assert len(net.table) == 3
    assert net.other(2) == 2
    assert identity_of(net) == before


def test_another_process_finds_the_same(tmp_path):
    """Addresses, the order of sets and of hashes differ there."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import net\n"
        "from rankscope._base.identity import identity_of; print(identity_of(net.Net(), net.Net).digest)"
    )
    (tmp_path / "net.py").write_text(BASE)
    (tmp_path / "helpers.py").write_text(HELPERS)
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_f4_a_lambda_is_its_code_its_defaults_and_what_it_closes_over():
    def made(k, scale=2):
        return lambda x, s=scale: x * k * s

    assert identity_of(made(1)) == identity_of(made(1))
    assert len({identity_of(made(*a)).digest for a in [(1,), (2,), (1.0,), (1, 3)]}) == 4
    partial = functools.partial(made, 1)
    assert identity_of(partial) == identity_of(functools.partial(made, 1)) != identity_of(functools.partial(made, 2))


class Cifar(Dataset):
    def __init__(self, data, targets, transform=None, target_transform=None):
        self.data, self.targets, self.transform, self.target_transform = data, targets, transform, target_transform

    def __getitem__(self, i):
        return self.data[i], self.targets[i]


def test_f3_labels_transforms_and_every_pixel_of_a_data_set_count():
    data, targets = np.zeros((300, 4, 4), np.uint8), list(range(300))
    base = identity_of(Cifar(data, targets, lambda x: x))
    assert identity_of(Cifar(data.copy(), list(targets), lambda x: x)) == base
    one = data.copy()
    one[271, 1, 2] = 1
    variants = [
        Cifar(one, targets, lambda x: x),
        Cifar(data, [*targets[:-2], 299, 298], lambda x: x),
        Cifar(data, targets, lambda x: x, lambda y: y),
        Cifar(data, targets, lambda x: x + 1),
        Cifar(data, np.array(targets), lambda x: x),
        Subset(Cifar(data, targets, lambda x: x), range(300)),
    ]
    assert len({identity_of(v).digest for v in [*variants]} | {base.digest}) == 7
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert identity_of(frame) == identity_of(frame.copy()) != identity_of(frame.assign(a=[1, 3]))
    assert identity_of(frame).unreadable == ()


@pytest.mark.parametrize("count", [1, 100])
def test_f3_the_content_of_listed_files_counts(tmp_path, count):
    files = [tmp_path / f"{i}.bin" for i in range(count)]
    for file in files:
        file.write_bytes(b"abc")
    listed = [(str(file), 0) for file in files]
    base = identity_of(listed, files=True)
    assert identity_of(list(listed), files=True) == base
    times = os.stat(files[-1])
    files[-1].write_bytes(b"abd")
    os.utime(files[-1], ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time do not tell
    assert identity_of(listed, files=True) != base
    files[-1].unlink()
    assert identity_of(listed, files=True).unreadable == ()


class Holds(nn.Module):
    def __init__(self, it):
        super().__init__()
        self.it = it


def test_what_cannot_be_read_is_named_and_equals_nothing(tmp_path):
    for value in ((i for i in range(3)), os.scandir(tmp_path), sys._getframe()):
        found = identity_of(Holds(value))
        assert found.unreadable == (f"{type(value).__module__}.{type(value).__qualname__}",)
        assert found.key != found.key
    for value in (object(), iter([1]), math.sin, torch.ops.aten.relu.default, torch.finfo(torch.float32), range(3)):
        assert identity_of(Holds(value)).unreadable == ()
    loop = [1]
    loop.append(loop)
    assert identity_of(loop).digest


def test_a_patched_method_of_an_installed_class_counts(monkeypatch):
    before = identity_of(nn.ReLU())

    def forward(self, x):
        return x * 2

    assert identity_of(nn.ReLU6()) != before
    own = nn.ReLU()
    own.forward = types.MethodType(forward, own)
    assert identity_of(own) != before
    monkeypatch.setattr(nn.ReLU, "forward", forward)
    assert identity_of(nn.ReLU()) != before


def test_preprocessing_that_was_used_is_the_same():
    from PIL import Image

    from rankscope.loading import load_model

    preprocessing = load_model("timm:test_vit", weights="random").preprocessing
    before = identity_of(preprocessing)
    preprocessing(Image.new("RGB", (200, 180)))
    assert identity_of(preprocessing) == before


def test_networks_of_the_libraries_are_read_whole():
    import timm
    import torchvision

    for make in (
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
    ):
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            found.append(identity_of(make()))
        assert found[0] == found[1]
        assert found[0].unreadable == ()
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    other = torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.ReLU()))
    assert identity_of(graph) != identity_of(other)
