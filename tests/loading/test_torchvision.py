"""torchvision beside a torch it was not compiled for."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from rankscope._base.errors import ModelError
from rankscope.loading import _torchvision, ensure_torchvision


def test_timm_and_torchvision_work_after_it() -> None:
    ensure_torchvision()
    import timm
    from torchvision import models

    with torch.no_grad():
        assert timm.create_model("test_resnet").eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
        assert models.squeezenet1_1().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


class Imports:
    """Stands for ``importlib.import_module``: raises the errors in turn, then imports an empty module."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, name: str) -> ModuleType:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return ModuleType(name)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would be declared and forgotten, without touching the real torchvision of this process."""
    done: list[str] = []
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(_torchvision, "_declare_missing", lambda: done.append("declared"))
    monkeypatch.setattr(_torchvision, "_forget", done.append)
    return done


def attempt(monkeypatch: pytest.MonkeyPatch, *errors: Exception, absent: bool) -> Imports:
    imports = Imports(*errors)
    monkeypatch.setattr(_torchvision, "_absent", lambda: ["nms"] if absent else [])
    monkeypatch.setattr(_torchvision.importlib, "import_module", imports)
    try:
        ensure_torchvision()
    finally:
        monkeypatch.undo()
    return imports


MISSING = RuntimeError("operator torchvision::nms does not exist")


def test_nothing_is_done_where_it_imports(monkeypatch: pytest.MonkeyPatch, declared: list[str]) -> None:
    assert attempt(monkeypatch, absent=False).calls == 1
    assert declared == []


def test_missing_operator_is_declared_once(monkeypatch: pytest.MonkeyPatch, declared: list[str]) -> None:
    assert attempt(monkeypatch, MISSING, absent=True).calls == 2
    assert declared == ["declared", "torchvision", "timm"]


@pytest.mark.parametrize(
    ("errors", "absent"),
    [
        ((RuntimeError("something else"),), False),
        ((MISSING,), False),  # what it says is not what decides
        ((ImportError("No module named 'torchvision'"),), True),
        ((MISSING, RuntimeError("operator torchvision::another does not exist")), True),
    ],
)
def test_other_failures_are_not_hidden(
    monkeypatch: pytest.MonkeyPatch, declared: list[str], errors: tuple[Exception, ...], absent: bool
) -> None:
    with pytest.raises(ModelError, match=r"torchvision cannot be imported: .*Install a torchvision that fits torch"):
        attempt(monkeypatch, *errors, absent=absent)


def test_the_failure_counts_where_torchvision_raised_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def raised(module: str, error: type[Exception]) -> Exception:
        space = {"__name__": module, "error": error}
        exec("def fail():\n    raise error('no such operator')", space)
        with pytest.raises(error, match="no such operator") as caught:
            space["fail"]()  # type: ignore[operator]
        return caught.value

    theirs = raised("torchvision._meta_registrations", RuntimeError)
    monkeypatch.setattr(_torchvision, "_absent", lambda: ["nms"])
    assert _torchvision.misses_operator(theirs)
    assert not _torchvision.misses_operator(raised("torchvisions.net", RuntimeError))
    assert not _torchvision.misses_operator(raised("torchvision.ops", TypeError))
    assert not _torchvision.misses_operator(RuntimeError("operator torchvision::nms does not exist"))
    monkeypatch.setattr(_torchvision, "_absent", list)
    assert not _torchvision.misses_operator(theirs)
