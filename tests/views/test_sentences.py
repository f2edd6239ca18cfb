"""Every kind of fact has a sentence, and every sentence speaks as the project does."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import rankscope
from rankscope._base.facts import Fact, FactKind
from rankscope.views.sentences import ROOMS, note, phrase, sentence
from rankscope.views.way_phrases import WAY_PHRASES

VALUES: dict[FactKind, dict[str, Any]] = {
    FactKind.NOTE: {"text": "The network was trained for 3 epochs."},
    FactKind.EARLIER_NOTE: {"text": "The network was trained for 3 epochs."},
    FactKind.RUNS_DIFFER: {"what": "tolerance", "labels": ("a", "b"), "values": ("paper", "torch")},
    FactKind.MATCHED_BY_DEPTH: {"labels": ("a", "b"), "first": ("conv1", "stem")},
    FactKind.NOT_IN_ALL: {"names": ("conv1", "stem")},
    FactKind.IMAGES_UNKNOWN: {},
    FactKind.CHECKPOINT_LEFT_OUT: {"file": "a.pt", "reason": "its end is missing"},
    FactKind.CHECKPOINTS_WITHOUT_STEP: {"names": ("best.pt",)},
    FactKind.CHECKPOINT_STEPS_DIFFER: {"file": "step_8.pt", "inside": 7, "name": 8, "unit": "step", "used": 7},
    FactKind.CHECKPOINTS_ALIKE: {"step": 7, "names": ("a.pt", "b.pt")},
    FactKind.CHECKPOINTS_OF_ONE_STEP: {"step": 7, "names": ("a.pt", "b.pt")},
    FactKind.CHECKPOINTS_GONE: {"names": ("a.pt",)},
    FactKind.CUSTOM_BACKWARD: {"where": "act", "operator": "Leaky"},
    FactKind.UNWRAPPED: {"wrappers": ("DataParallel",)},
    FactKind.PASSED_THROUGH: {"wrappers": ("DataParallel",), "inside": ("encoder",)},
    FactKind.TRAINING_MODE: {},
    FactKind.KEEPS_STATE: {"where": ("seen", "cache")},
    FactKind.PUSHED: {"name": "vmap(jvp)"},
    FactKind.LINEARISED: {"name": "vmap(jvp)", "difference": 5e-7},
    FactKind.KEPT_IMAGES: {},
    FactKind.WAY_FAILED: {"name": "vmap(jvp)", "reason": "derivative for aten::x is not implemented"},
    FactKind.WAY_DIFFERS: {"name": "linearised network", "other": "vmap(jvp)", "difference": 0.25},
    FactKind.WAY_GIVEN_UP: {"name": "linearised network", "reason": "it differs from the model"},
    FactKind.TWO_PRECISIONS: {"probes": 10, "failure": 1e-10},
    FactKind.NOT_IN_BOTH: {},
    FactKind.SAMPLES_COUPLED: {"context": 32},
    FactKind.RANDOM_MASKS: {},
    FactKind.PROBES: {"probes": 6, "failure": 1e-6},
    FactKind.SCALED_PROBES: {"probes": 6},
    FactKind.NARROW_PROBES: {"probes": 6},
    FactKind.NOT_IN_FLOAT64: {},
    FactKind.IN_DOUBT: {},
    FactKind.NOT_CERTIFIED: {},
    FactKind.NO_COMMON_PATH: {},
    FactKind.DIFFERENTIATED: {"name": "x", "per_sample": ("t", "y"), "shared": ("mask",)},
    FactKind.COUNTED: {"name": "x", "per_sample": ("t",), "shared": ("mask",)},
    FactKind.NOISED: {"name": "x", "per_sample": ("t",), "shared": ("mask",)},
    FactKind.ONE_WORKER: {"workers": 2},
    FactKind.INPUT_LEFT_OUT: {"name": "label", "reason": "forward does not take it"},
    FactKind.SEVERAL_SIZES: {"shapes": ((5, 8), (7, 8)), "least": 40, "most": 56},
    FactKind.READ_BACK: {"kept": 3, "total": 5, "unit": "image"},
    FactKind.CUTS_READ_BACK: {"kept": 3},
    FactKind.KEPT_DAMAGED: {"count": 1, "unit": "image"},
    FactKind.KEPT_MISSING: {"names": ("shard-1",), "after": 0, "unit": "sample"},
    FactKind.KEPT_OTHER: {"count": 2, "unit": "image"},
    FactKind.KEPT_DIFFERS: {"where": "image 3", "unit": "image"},
    FactKind.KEPT_UNCHECKED: {"reason": "the data set gives other values each time it is read"},
    FactKind.KEPT_INCOMPARABLE: {"types": ("builtins.generator",), "owner": "model"},
    FactKind.REVERSE_UNCHECKED: {"reason": "derivative for aten::x is not implemented"},
    FactKind.REVERSE_DISAGREES: {"error": 0.25, "where": "layer1.0"},
    FactKind.NO_FLOAT64: {"reason": "expected scalar type Float but found Double"},
    FactKind.CASTS_DOWN: {"to": "bfloat16"},
    FactKind.LEAVES_COMPUTATION: {"where": "layer1.0", "gap": 0.5},
    FactKind.RANDOM_MODEL: {"where": "layer1.0"},
    FactKind.DRAWS_UNUSED: {"calls": 25},
    FactKind.FUNCTION_UNCHECKED: {"reason": "float32 alone resolves no step that is short enough", "where": ""},
    FactKind.WEIGHTS_RAISED: {"dtypes": ("bfloat16", "float16")},
    FactKind.WEIGHTS_ON_DEMAND: {"dtype": "float64", "bytes": 56 * 10**9, "budget": 2**32},
    FactKind.WEIGHTS_HELD: {"dtype": "float64", "bytes": 10**9, "budget": 2**20, "reason": "weight has no memory"},
    FactKind.NO_GRAPH: {},
    FactKind.FEW_ROWS: {"name": "layer1", "samples": 30, "width": 64},
    FactKind.SEVERAL_TENSORS: {"names": ("encoder",), "tensors": ("0", "hidden")},
    FactKind.ROWS_NOT_SAMPLES: {"names": ("attn.qkv", "attn.proj"), "shape": (4, 16, 96)},
    FactKind.LEFT_OUT: {"names": ("encoder", "decoder"), "what": ("1 text",)},
    FactKind.COMPLEX_ROWS: {"names": ("encoder",)},
    FactKind.CALLED_ALONE: {"coupled": True},
    FactKind.NO_ROWS: {"names": ("experts.2", "experts.3")},
    FactKind.CALLED_ONCE: {"names": ("experts.3",)},
    FactKind.CHOSEN_LATE: {"names": ("deep",)},
    FactKind.NOT_CALLED: {"names": ("experts.0", "experts.3"), "counts": (2, 1), "total": 4},
    FactKind.UNDERFLOW: {"where": "layer1.0", "dtype": "float32"},
    FactKind.OVERFLOW: {"where": "layer1.0", "dtype": "float32"},
    FactKind.NO_ESTIMATE: {"where": "layer1.0"},
    FactKind.SOME_DISAGREE: {"error": 0.25, "where": "layer1.0"},
    FactKind.OTHER_PATH: {"dtype": "float32"},
    FactKind.RANDOM_WEIGHTS: {"seed": 0},
    FactKind.NORMS_OPENED: {"count": 2},
    FactKind.WEIGHTS_DRAWN: {"count": 2},
    FactKind.BRANCHES_CLOSED: {"count": 2},
    FactKind.BRANCHES_NEARLY_CLOSED: {"count": 2, "largest": 1e-5},
    FactKind.FACTORY_BUILT: {"factory": "net.py:small", "seed": 0},
    FactKind.TAKEN_AS: {"given": "resnet18", "taken": "timm:resnet18"},
    FactKind.LAZY_SIZED: {"shape": (3, 8, 8)},
    FactKind.FRESH_PARAMETERS: {"names": ("a", "b")},
    FactKind.FILE_ALSO_FITS: {"file": "W.pt", "names": ("a", "b")},
    FactKind.FILE_LEFT_OVER: {"file": "W.pt", "names": ("a", "b")},
    FactKind.FILE_TRANSLATED: {"file": "W.pt", "by": "timm"},
    FactKind.FILE_RESAMPLED: {"file": "W.pt", "names": ("pos_embed",)},
    FactKind.FILE_ROUNDED: {"given": "float32", "own": "float16"},
    FactKind.BATCHNORM_SET: {"layers": 2, "unused": 0, "images": 8, "source": "data"},
    FactKind.EXAMPLE_INPUT: {"shape": (3, 8, 8)},
    FactKind.IMAGES: {"source": "photos", "preprocessing": "resize to 8"},
    FactKind.FOLDER_ORDER: {"rule": "numbers"},
    FactKind.PLAIN_PREPROCESSING: {"size": (3, 32, 32)},
    FactKind.BESIDE_FOLDERS: {"count": 2, "first": "stray.png"},
    FactKind.FEWER_CLASSES: {"classes": 3, "found": 2},
    FactKind.FEWER_FOLDERS: {"classes": 3, "folders": ("a", "b"), "labels": (1, 2), "positions": False},
    FactKind.SMALL_SCALE: {"sizes": (("width", 60), ("depth", 24))},
    FactKind.RANK_KEPT: {"names": ("ReLU",), "total": 17},
    FactKind.SAMPLE_LIMIT: {"samples": 312},
    FactKind.NOT_IMAGENET: {"classes": 10},
    FactKind.OTHER_COUNT: {"images": 1000, "usual": 50000},
    FactKind.IMAGES_UNREADABLE: {"files": (("a.png", "is no image that Pillow can read"),)},
    FactKind.IMAGES_CONVERTED: {"modes": (("L", 2, "cat/1.png"), ("RGBA", 1, "dog/7.png")), "to": "RGB"},
    FactKind.TOO_FEW_TO_JUDGE: {"accuracy": 1.0, "images": 10, "classes": 2},
    FactKind.LIKE_GUESSING: {"accuracy": 0.5, "images": 10, "classes": 2, "above": 0.7},
    FactKind.ALL_ZERO: {"eta": 0.5, "as_printed": "paper", "largest": 3.2, "shown": 0.5, "kept": True},
    FactKind.LOGITS_DEPENDENT: {"features": 512, "classes": 1000, "dependent": 488},
    FactKind.NETWORK_LEFT_OUT: {"reason": "its logits hold NaN"},
    FactKind.LAYER_NOT_MEASURED: {"where": "pool", "reason": "it does not depend on the input"},
    FactKind.FACTORY_WEIGHTS: {"folder": "weights", "file": "net"},
    FactKind.LEADING_EXPONENTS: {"tracked": 64, "width": 37632, "seed": 0},
    FactKind.SHORT_CHAIN: {"blocks": 12},
    FactKind.LANCZOS_STEPS: {"steps": 200, "reason": "bracket", "bracket": 0.04, "asked": 0.05, "tolerance": "paper"},
    FactKind.PRODUCTS_CHECKED: {"probes": 6, "failure": 1e-6},
    FactKind.PRODUCTS_UNCHECKED: {"dtype": "float32"},
    FactKind.FULL_PLAN: {
        "asked": "auto",
        "exact": 2,
        "lanczos": 0,
        "side": 4096,
        "needed": 0,
        "budget": 2**32,
        "probes": 8,
        "steps": "auto",
        "bytes": 2**20,
        "seconds": 3.0,
    },
    FactKind.NOT_RECORDED: {"where": "a", "reason": "it reads a value"},
    FactKind.SMALLER_CHUNK: {"where": "a", "chunk": 4, "alone": True},
    FactKind.PRODUCTS_IN_FLOAT64: {"tolerance": "paper"},
    FactKind.LEADING_COUNTED: {"count": 100},
    FactKind.LEADING_NO_ROOM: {},
    FactKind.NOT_FROM_MOMENTS: {"names": ("effective_rank",)},
    FactKind.AT_CHANCE: {"accuracy": 0.1, "share": 0.1, "answer": 3, "measure": "overall", "of": "head"},
    FactKind.KEPT_BY_CHANCE: {"kept": 0.9, "share": 0.95, "answer": 3, "measure": "overall"},
    FactKind.OTHER_CLASS_NAMES: {"data": ("zero", "one"), "model": ("0", "1")},
    FactKind.OTHER_CLASS_ORDER: {"count": 2, "name": "cat", "label": 0, "place": 1},
    FactKind.FULL_WIDTH_ALONE: {},
    FactKind.NOT_MONOTONE: {"count": 2},
    FactKind.FEW_DIRECTIONS: {"directions": 3},
    FactKind.CONSTANT_LAYER: {"name": "fc", "samples": 400},
    FactKind.ROUNDED_CLASSES: {"name": "fc", "dtype": "bfloat16"},
    FactKind.ROUNDED_LAYER: {"name": "fc", "low": 3, "high": 16},
    FactKind.DUPLICATES_LEFT_OUT: {"name": "fc", "count": 3, "total": 400},
    FactKind.TIED_NEIGHBOURS: {"name": "fc", "share": 0.4},
    FactKind.BEYOND_SAMPLES: {"name": "fc", "value": 7.2, "samples": 1000, "most": 6.0},
    FactKind.SKETCHED_LAYER: {
        "name": "fc",
        "width": 300,
        "directions": 40,
        "covariance": 7e5,
        "rows": None,
        "memory": 4e5,
    },
}


# values that a producer gives as well, and what the sentence says then
OTHERS: list[tuple[FactKind, dict[str, Any], str]] = [
    (FactKind.CASTS_DOWN, {}, "bound the error only roughly"),  # of earlier versions
    (FactKind.REVERSE_DISAGREES, {"error": 0.25, "where": "fc", "casts": "float16"}, "The model casts to float16"),
    (FactKind.SOME_DISAGREE, {"error": 0.25, "where": "fc", "casts": "float16"}, "The model casts to float16"),
    (FactKind.OVERFLOW, {"where": "fc", "dtype": "float64"}, "is too large for float64."),
    (FactKind.SEVERAL_SIZES, {"shapes": ((5, 8),), "least": 40, "most": 40}, "different numbers of outputs"),
    (FactKind.NORMS_OPENED, {"count": 1}, "1 norm scale that starts at zero was set to 1"),
    (FactKind.WEIGHTS_DRAWN, {"count": 2048}, "2,048 linear or convolution weights that start at zero were drawn"),
    (FactKind.BRANCHES_CLOSED, {"count": 1}, "1 gain or layer scale starts at zero and was left so"),
    (FactKind.BATCHNORM_SET, {"layers": 1, "unused": 1, "images": 8, "source": "noise"}, "1 other layer never ran."),
    (FactKind.SMALL_SCALE, {"sizes": ()}, "small: fewer resamples for the intervals, not the paper's"),
    (FactKind.SMALL_SCALE, {"sizes": (("images", 1), ("patch", 3))}, "small: 1 image and a patch of 3×3, not"),
    (
        FactKind.SMALL_SCALE,
        {"sizes": (("input_shape", (8, 4, 4)), ("samples", 60))},
        "8×4×4 and 60 samples, not",
    ),
    (FactKind.RANK_KEPT, {"names": (), "total": 17}, "None of 17 components kept"),
    (FactKind.IMAGES_UNREADABLE, {"files": (("a", "x"),) * 5}, "5 images could not be read and were left out: a (x); "),
    (FactKind.IMAGES_UNREADABLE, {"files": (("a", "x"),) * 5}, "a (x) and 2 more."),
    (FactKind.TOO_FEW_TO_JUDGE, {"accuracy": 1.0, "images": 1, "classes": 2}, "1 image is too few"),
    (
        FactKind.ALL_ZERO,
        {"eta": 20, "as_printed": "paper", "largest": 3.2, "shown": 0.5, "kept": False},
        "the smallest η tried, 0.5, since none",
    ),
    (FactKind.FOLDER_ORDER, {"rule": "alphabet"}, "in alphabetical order"),
    (
        FactKind.FEWER_FOLDERS,
        {"classes": 3, "folders": ("a", "b"), "labels": (0, 1), "positions": True},
        "counted from 0",
    ),
    (FactKind.FUNCTION_UNCHECKED, {"reason": "because", "where": "fc"}, "the function itself at 'fc': because."),
    (FactKind.WEIGHTS_RAISED, {"dtypes": ("bfloat16",)}, "are bfloat16."),
    (
        FactKind.WEIGHTS_ON_DEMAND,
        VALUES[FactKind.WEIGHTS_ON_DEMAND],
        "in float64 would take 52.2 GiB, more than the memory budget of 4 GiB.",
    ),
    (
        FactKind.WEIGHTS_HELD,
        VALUES[FactKind.WEIGHTS_HELD],
        "in float64, 0.931 GiB, which is more than the memory budget of 1 MiB: ",
    ),
    (FactKind.SKETCHED_LAYER, {**VALUES[FactKind.SKETCHED_LAYER], "rows": 2e12}, "all rows 2,000 GB"),
    (FactKind.AT_CHANCE, {**VALUES[FactKind.AT_CHANCE], "measure": "balanced"}, "use the same class order."),
    (FactKind.KEPT_BY_CHANCE, {**VALUES[FactKind.KEPT_BY_CHANCE], "measure": "balanced"}, "a weak requirement."),
    (FactKind.NOT_MONOTONE, {"count": 1}, "1 larger number of components falls below"),
    (FactKind.CALLED_ALONE, {"coupled": False, "undecided": "aten::histc"}, "change each other in aten::histc. Each"),
    (FactKind.CALLED_ALONE, {"coupled": True, "place": True}, "depends on the sample's place in a pass"),
    (FactKind.NOT_CALLED, {"names": tuple("abcde"), "counts": (1,) * 5, "total": 9}, "'c' (1) and 2 more"),
    *(
        (FactKind.LANCZOS_STEPS, {**VALUES[FactKind.LANCZOS_STEPS], "reason": reason, "asked": asked}, said)
        for reason, asked, said in (
            ("invariant", None, "every Krylov space is invariant"),
            ("asked", None, "took the 200 steps asked for"),
            ("memory", 0.05, "at the memory budget"),
            ("ran out", 0.05, "when memory ran out"),
            ("limit", 0.05, "at the limit on steps"),
        )
    ),
    (
        FactKind.FULL_PLAN,
        {**VALUES[FactKind.FULL_PLAN], "exact": 0, "lanczos": 3, "needed": 2**38, "seconds": 600.0},
        "At 3 cut points the rank is estimated with 8 Lanczos probes and as many steps as the bracket needs. All "
        "singular values would need 256 GiB or more; the memory budget leaves 4 GiB for them. Expected on each sample: "
        "10 min for every 200 steps and 1 MiB beside the model.",
    ),
]


def test_every_kind_stands_in_one_table() -> None:
    kinds = [kind for room in ROOMS for kind in room]
    assert sorted(kinds) == sorted(FactKind)


@pytest.mark.parametrize("kind", FactKind)
def test_every_kind_has_its_sentence(kind: FactKind) -> None:
    text = sentence(Fact(kind, VALUES[kind]))
    # names and code keep their letters
    assert text[0].isupper() or text[0].isdigit() or text.startswith(("'", "vmap"))
    assert text.endswith(".")
    assert not text.endswith("..")
    assert "Caution" not in text
    assert note(Fact(kind, VALUES[kind], caution=True)) == f"Caution: {text}"
    assert note(Fact(kind, VALUES[kind])) == f"Note: {text}"


@pytest.mark.parametrize(("kind", "values", "said"), OTHERS)
def test_the_other_values_of_a_kind(kind: FactKind, values: dict[str, Any], said: str) -> None:
    text = sentence(Fact(kind, values))
    assert said in text
    assert text.endswith(".")
    assert not text.endswith("..")


@pytest.mark.parametrize("kind", WAY_PHRASES)
def test_a_way_is_a_phrase_too(kind: FactKind) -> None:
    said = phrase(Fact(kind, VALUES[kind]))
    assert not said.endswith(".")
    assert sentence(Fact(kind, VALUES[kind])).casefold() == f"{said}.".casefold()


def _larger(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_larger, value))
    return value + 20000 if isinstance(value, int) and not isinstance(value, bool) else value


_PLAIN = {"seed", "shape", "shapes", "failure", "labels", "answer"}  # names, no counts


@pytest.mark.parametrize("kind", FactKind)
def test_every_count_has_commas(kind: FactKind) -> None:
    values = {k: v if k in _PLAIN else _larger(v) for k, v in VALUES[kind].items()}
    text = sentence(Fact(kind, values))
    assert not re.search(r"(?<![\d.])\d{4}", text), text


_NAMES = {
    "names",
    "inside",
    "where",
    "per_sample",
    "shared",
    "modes",
    "files",
    "counts",
}  # a name or more, of any count


def _single(name: str, value: Any) -> Any:
    if name in _PLAIN:
        return value
    if isinstance(value, tuple):
        return tuple(_single("", v) for v in (value[:1] if name in _NAMES else value))
    return 1 if isinstance(value, int) and not isinstance(value, bool) else value


# "1 images", or "1 image … were"; a noun may end in s by itself
_OF_SEVERAL = re.compile(
    r"(?<![\d.,×=])1 (?:[a-z]+ ){0,1}(?!class\b|is\b|was\b|has\b|returns\b|makes\b|starts\b|Lanczos\b)[A-Za-z]+s\b"
    r"|(?<![\d.,×=])(?<!of )1 (?:[a-z]+ ){1,3}(?:are|were|have|make|return|start)\b|\b(?:are|were) 1 "
)


def test_the_search_sees_a_plural_of_one() -> None:
    for wrong in ("1 images", "of 1 chosen layers", "1 image were", "The 1 class folder are not", "There are 1 image"):
        assert _OF_SEVERAL.search(wrong), wrong
    assert not _OF_SEVERAL.search("1 image was left out; 21 images were, 1 class has 1,001 units. Steps are 1×1.")


@pytest.mark.parametrize(("kind", "values"), [*VALUES.items(), *((kind, values) for kind, values, _ in OTHERS)])
def test_one_thing_is_no_plural(kind: FactKind, values: dict[str, Any]) -> None:
    text = sentence(Fact(kind, {name: _single(name, value) for name, value in values.items()}))
    assert not _OF_SEVERAL.search(text), text


def _given(call: ast.Call) -> tuple[str, set[str]] | None:
    """The kind and the names of values of ``Fact(FactKind.X, {"name": …})``, where both stand there as such."""
    kind, values = call.args[0], call.args[1] if len(call.args) > 1 else ast.Dict([], [])
    if not (isinstance(kind, ast.Attribute) and ast.unparse(kind.value) == "FactKind" and isinstance(values, ast.Dict)):
        return None
    names = {key.value for key in values.keys if isinstance(key, ast.Constant)}
    return None if len(names) < len(values.keys) else (kind.attr, names)


def test_producers_give_the_values_that_are_listed_here() -> None:
    """Those that the code names at the place; ``conftest`` renders every fact that any test makes."""
    seen, wrong = set(), []
    for file in Path(rankscope.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Fact" and node.args:
                found = _given(node)
                if found:
                    seen.add(found[0])
                    if found[1] != VALUES[FactKind[found[0]]].keys():
                        wrong.append((file.name, node.lineno, *found))
    assert wrong == []
    assert len(seen) > 40


def test_a_fact_without_its_values_is_seen_when_it_is_made() -> None:
    code = compile("made = Fact(FactKind.TAKEN_AS, {'given': 'x'})", str(Path(rankscope.__file__)), "exec")
    with pytest.raises(KeyError, match="taken"):
        exec(code, {"Fact": Fact, "FactKind": FactKind})
