"""Labels of the validation folder are those of a network that knows its classes by name, in whatever order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import CLASSES, World

from rankscope._base.errors import DataError
from rankscope._base.facts import FactKind, of_kind
from rankscope.features import find_head
from rankscope.loading import LoadedModel
from rankscope.reproduce import measured, reproduce
from rankscope.reproduce.data import read_class_folders

ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


def with_names(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """The network with the rows of its head in another order, and its classes' names in that."""
    load = measured.load

    def renamed(*given: Any) -> LoadedModel:
        found = load(*given)
        head: Any = find_head(found.model)[1]
        with torch.no_grad():
            head.weight.copy_(head.weight[ORDER].clone())
            head.bias.copy_(head.bias[ORDER].clone())
        return replace(found, class_names=names)

    monkeypatch.setattr(measured, "load", renamed)


@pytest.mark.parametrize("name", ["table2", "fig4"])
def test_classes_in_another_order_give_the_same_numbers(
    name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"imagenet": world.images, "weights": world.weights, "networks": [world.net], "only": []}
    given |= {"scale": "small", "device": "cpu"}
    plain = reproduce(name, out=tmp_path / "plain", **given)
    with_names(monkeypatch, tuple(f"Class{k}" for k in ORDER))
    found = reproduce(name, out=tmp_path / "named", **given)
    if name == "table2":
        columns = ["classification_dimension", "accuracy_percent"]
        assert found.values[columns].equals(plain.values[columns])
    else:
        rows = [table.values.set_index(["as_printed", "name"])["positive_accuracy"] for table in (found, plain)]
        assert rows[0].sort_index().equals(rows[1].sort_index())
    assert of_kind(plain.facts, FactKind.FOLDER_ORDER)
    assert not of_kind(found.facts, FactKind.FOLDER_ORDER)


def test_names_of_which_some_are_other_classes_are_refused(world: World) -> None:
    folders = read_class_folders(world.images)
    names = [f"class{k}" for k in range(CLASSES)]
    assert folders.counted_by(None, "net") is folders
    assert folders.counted_by([*names, "more"], "net") is folders
    assert folders.counted_by(["a", *names[1:]], "net") is folders  # the others are where their order puts them
    assert folders.counted_by([f"other{k}" for k in range(CLASSES)], "net") is folders
    with pytest.raises(
        DataError, match=r"class0' does not name one class of net, .*'class1' would be class 1 in place of 2"
    ):
        folders.counted_by(["a", "class2", "class1", *names[3:]], "net")
