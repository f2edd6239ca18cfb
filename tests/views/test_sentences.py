"""Every kind of fact has a sentence, and every sentence speaks as the project does."""

from __future__ import annotations

from typing import Any

import pytest

from rankscope._base.facts import Fact, FactKind
from rankscope.views.phrases import PHRASES
from rankscope.views.sentences import note, sentence

VALUES: dict[FactKind, dict[str, Any]] = {
    FactKind.NOTE: {"text": "The network was trained for 3 epochs."},
    FactKind.EARLIER_NOTE: {"text": "The network was trained for 3 epochs."},
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
    FactKind.NOT_CERTIFIED: {},
    FactKind.DIFFERENTIATED: {"name": "x", "per_sample": ("t", "y"), "shared": ("mask",)},
    FactKind.COUNTED: {"name": "x", "per_sample": ("t",), "shared": ("mask",)},
    FactKind.INPUT_LEFT_OUT: {"name": "label", "reason": "forward does not take it"},
    FactKind.SEVERAL_SIZES: {"shapes": ((5, 8), (7, 8)), "least": 40, "most": 56},
    FactKind.READ_BACK: {"kept": 3, "total": 5, "unit": "image"},
    FactKind.KEPT_DAMAGED: {"count": 1, "unit": "image"},
    FactKind.KEPT_OTHER: {"count": 2, "unit": "image"},
    FactKind.KEPT_DIFFERS: {"where": "image 3", "unit": "image"},
    FactKind.KEPT_UNCHECKED: {"reason": "the data set gives other values each time it is read"},
    FactKind.KEPT_INCOMPARABLE: {"types": ("builtins.generator",), "owner": "model"},
    FactKind.REVERSE_UNCHECKED: {"reason": "derivative for aten::x is not implemented"},
    FactKind.REVERSE_DISAGREES: {"error": 0.25, "where": "layer1.0"},
    FactKind.NO_FLOAT64: {"reason": "expected scalar type Float but found Double"},
    FactKind.CASTS_DOWN: {},
    FactKind.LEAVES_COMPUTATION: {"where": "layer1.0", "gap": 0.5},
    FactKind.RANDOM_MODEL: {"where": "layer1.0"},
    FactKind.FUNCTION_UNCHECKED: {"reason": "float32 alone resolves no step that is short enough", "where": ""},
    FactKind.WEIGHTS_RAISED: {"dtypes": ("bfloat16", "float16")},
    FactKind.NO_GRAPH: {},
    FactKind.SEVERAL_TENSORS: {"names": ("encoder",), "tensors": ("0", "hidden")},
    FactKind.LEFT_OUT: {"names": ("encoder", "decoder"), "what": ("1 text",)},
    FactKind.COMPLEX_ROWS: {"names": ("encoder",)},
    FactKind.NOT_CALLED: {"names": ("experts.0", "experts.3"), "counts": (2, 1), "total": 4},
    FactKind.UNDERFLOW: {"where": "layer1.0", "dtype": "float32"},
    FactKind.OVERFLOW: {"where": "layer1.0", "dtype": "float32"},
    FactKind.SOME_DISAGREE: {"error": 0.25, "where": "layer1.0"},
    FactKind.RANDOM_WEIGHTS: {"seed": 0},
    FactKind.NORMS_OPENED: {"count": 2},
    FactKind.WEIGHTS_DRAWN: {"count": 2},
    FactKind.BRANCHES_CLOSED: {"count": 2},
    FactKind.BRANCHES_NEARLY_CLOSED: {"count": 2, "largest": 1e-5},
    FactKind.FACTORY_BUILT: {"factory": "net.py:small", "seed": 0},
    FactKind.TAKEN_AS: {"given": "resnet18", "taken": "timm:resnet18"},
    FactKind.LAZY_SIZED: {"shape": (3, 8, 8)},
    FactKind.FRESH_PARAMETERS: {"count": 2, "names": ("a", "b")},
    FactKind.FILE_ALSO_FITS: {"file": "W.pt", "names": ("a", "b")},
    FactKind.FILE_LEFT_OVER: {"file": "W.pt", "names": ("a", "b")},
    FactKind.FILE_TRANSLATED: {"file": "W.pt", "by": "timm"},
    FactKind.FILE_RESAMPLED: {"file": "W.pt", "names": ("pos_embed",)},
    FactKind.FILE_ROUNDED: {"file": "W.pt", "given": "float32", "own": "float16"},
    FactKind.BATCHNORM_SET: {"layers": 2, "unused": 0, "images": 8, "source": "data"},
    FactKind.EXAMPLE_INPUT: {"shape": (3, 8, 8)},
    FactKind.IMAGES: {"source": "photos", "preprocessing": "resize to 8"},
    FactKind.FOLDER_ORDER: {"rule": "numbers"},
    FactKind.FEWER_CLASSES: {"classes": 3, "found": 2},
    FactKind.FEWER_FOLDERS: {"classes": 3, "folders": ("a", "b"), "labels": (1, 2), "positions": False},
    FactKind.LEADING_EXPONENTS: {"tracked": 64, "width": 37632, "seed": 0},
    FactKind.SHORT_CHAIN: {"blocks": 12},
    FactKind.LANCZOS_STEPS: {"steps": 200, "reason": "bracket", "bracket": 0.04, "asked": 0.05, "tolerance": "paper"},
    FactKind.PRODUCTS_CHECKED: {"probes": 6, "failure": 1e-6},
    FactKind.PRODUCTS_UNCHECKED: {"dtype": "float32"},
    FactKind.SPECTRUM_WAY: {"name": "exact", "exact": 2**30, "lanczos": 2**29, "budget": 2**32},
    FactKind.NOT_FROM_MOMENTS: {"names": ("effective_rank",)},
    FactKind.AT_CHANCE: {"accuracy": 0.1, "share": 0.1, "answer": 3, "measure": "overall", "of": "head"},
    FactKind.KEPT_BY_CHANCE: {"kept": 0.9, "share": 0.95, "answer": 3, "measure": "overall"},
    FactKind.OTHER_CLASS_NAMES: {"data": ("zero", "one"), "model": ("0", "1")},
    FactKind.FULL_WIDTH_ALONE: {},
    FactKind.NOT_MONOTONE: {"count": 2},
    FactKind.FEW_DIRECTIONS: {"directions": 3},
    FactKind.CONSTANT_LAYER: {"name": "fc", "samples": 400},
    FactKind.ROUNDED_LAYER: {"name": "fc", "low": 3, "high": 16},
    FactKind.SKETCHED_LAYER: {
        "name": "fc",
        "width": 300,
        "directions": 40,
        "covariance": 7e5,
        "rows": None,
        "memory": 4e5,
    },
}


@pytest.mark.parametrize("kind", FactKind)
def test_every_kind_has_its_sentence(kind: FactKind) -> None:
    text = sentence(Fact(kind, VALUES[kind]))
    assert (
        text[0].isupper() or text[0].isdigit() or text.startswith(("'", "vmap")) or kind in PHRASES
    )  # names and code keep their letters
    assert text.endswith(".")
    assert not text.endswith("..")
    assert "Caution" not in text
    assert note(Fact(kind, VALUES[kind], caution=True)) == f"Caution: {text}"
    assert note(Fact(kind, VALUES[kind])) == f"Note: {text}"


def test_what_a_sentence_says_is_in_its_values() -> None:
    where = Fact(FactKind.FUNCTION_UNCHECKED, {"reason": "because", "where": "fc"})
    assert sentence(where) == "The derivative was not checked against the function itself at 'fc': because."
    assert "bfloat16 and float16" in sentence(Fact(FactKind.WEIGHTS_RAISED, VALUES[FactKind.WEIGHTS_RAISED]))
    assert "are bfloat16." in sentence(Fact(FactKind.WEIGHTS_RAISED, {"dtypes": ("bfloat16",)}))
