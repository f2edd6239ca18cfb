"""F13: classes that are not the model's, and an accuracy at chance, are named first."""

from __future__ import annotations

import json

import torch

from rankscope._base.facts import Fact, FactKind
from rankscope.cli import main
from rankscope.cli.class_names import class_cautions

DIGITS = tuple("0123456789")
WORDS = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")


def logits_for(answers):
    return torch.nn.functional.one_hot(answers, 10).float()


def test_f13_folder_names_of_which_the_head_has_none_are_named():
    y = torch.arange(60) % 10
    (said,) = class_cautions(y, logits_for(y), WORDS, DIGITS)
    assert said == Fact(FactKind.OTHER_CLASS_NAMES, {"data": WORDS, "model": DIGITS}, caution=True)
    assert class_cautions(y, logits_for(y), DIGITS, DIGITS) == ()
    assert class_cautions(y, logits_for(y), WORDS, None) == class_cautions(y, logits_for(y), None, DIGITS) == ()


def test_f13_imagenet_names_match_by_their_first_word():
    y = torch.tensor([0, 1])
    assert class_cautions(y, logits_for(y), ("tench", "goldfish"), ("tench, Tinca tinca", "Goldfish, Carassius")) == ()
    assert class_cautions(y, logits_for(y), ("great_white_shark", "b"), ("great white shark", "c")) == ()


def test_f13_an_accuracy_at_chance_is_named():
    y = torch.arange(60) % 10
    names, chance = class_cautions(y, logits_for((y + 1) % 10), WORDS, DIGITS)
    assert names.kind is FactKind.OTHER_CLASS_NAMES
    assert (chance.kind, chance["accuracy"], chance["share"], chance["answer"]) == (FactKind.AT_CHANCE, 0, 0.1, 0)


def test_f13_collect_says_so_before_the_table(tmp_path, capsys):
    import PIL.Image
    from sklearn.datasets import load_digits

    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    found = load_digits()
    for i in range(40):
        folder = tmp_path / "data" / words[found.target[i]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (found.images[i] * 15).astype("uint8")
        PIL.Image.fromarray(pixels).resize((32, 32)).save(folder / f"{i}.png")
    out = tmp_path / "out"
    assert main([str(v) for v in ("collect", "digits", "--data", tmp_path / "data", "--out", out)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Caution: None of the data's 10 class names (eight, five, four and 7 more)")
    assert json.loads((out / "collection.json").read_text())["notes"][0] in first
