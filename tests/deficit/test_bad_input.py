"""Every refusal names what was seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rankscope._base.errors import DataError, DeviceError, UsageError
from rankscope.deficit import independence_deficit


def changed(edit, planted):
    z, y = planted(80)
    out = edit(z, y)
    return out if isinstance(out, tuple) else (z, y)


def put(z, place, value):
    z[place] = value


BAD_DATA = [
    (lambda z, y: put(y, 5, 8), r"label 8 of sample 5 is outside the classes 0…7"),
    (lambda z, y: put(y, 6, -1), r"label -1, first of sample 6"),
    (lambda z, y: (z[:7], y[:7]), "7 samples for 8 classes are too few"),
    (lambda z, y: put(y, y == 3, 4), "class 3 has no samples"),
    (lambda z, y: put(z, (11, 2), torch.nan), "class 2 at sample 11 is nan"),
    (lambda z, y: put(z, (12, 4), torch.inf), "class 4 at sample 12 is inf"),
    (lambda z, y: put(z, (slice(None), 6), 1.5), r"logit of class 6 is 1\.5 for every sample"),
    (lambda z, y: (z[:, :1], y * 0), "have 1 class"),
    (lambda z, y: (z, y * 0 + 2), "all 80 labels are class 2"),
    (lambda z, y: (z, y[:-1]), r"labels have shape \(79,\)"),
    (lambda z, y: (z, y.double()), "labels are float64"),
    (lambda z, y: (z, y > 2), "class 2 has no samples"),
    (lambda z, y: (z.long(), y), "floating"),
    (lambda z, y: (z[0], y), "floating"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_DATA)
def test_bad_data(edit, message, planted):
    z, y = changed(edit, planted)
    with pytest.raises(DataError, match=message):
        independence_deficit(z, y)


BAD_OPTIONS = [
    ({"samples_used": "referense"}, "did you mean 'reference'"),
    ({"null": "within"}, "did you mean 'within_class'"),
    ({"classes": [0, 8]}, r"class 8 is out of range; the logits have classes 0…7"),
    ({"classes": [-1]}, "classes is -1; it must be a whole number of at least 0"),
    ({"classes": []}, "at least one class"),
    ({"classes": [1, 1]}, "each once"),
    ({"class_names": ["a"]}, "1 class names were given for 8"),
    ({"eta": 0.0}, "eta is 0.0"),
    ({"eta": float("nan")}, "eta is nan"),
    ({"permutations": -1}, "permutations is -1"),
    ({"keep": 0.0}, "keep is 0.0"),
    ({"path_points": 0}, "path_points is 0"),
    ({"path_floor": 1.0}, "path_floor is 1.0"),
    ({"eta": "a"}, "eta is 'a'; it must be a finite number above 0"),
    ({"permutations": 2.5}, "permutations is 2.5; it must be a whole number"),
    ({"keep": "a"}, "keep is 'a'"),
    ({"tol": None}, "tol is None"),
    ({"path_points": "a"}, "path_points is 'a'"),
    ({"seed": -1}, "seed is -1"),
    ({"held_out": "a"}, "held_out is 'a'"),
    ({"held_out": (torch.zeros(80, 8),)}, "held_out has 1 parts"),
    ({"held_out": True}, "held_out is True"),
    ({"classes": "ab"}, "classes is 'ab'"),
    ({"classes": 1}, "classes is 1; name at least one class"),
    ({"classes": [0.7, 1]}, "classes is 0.7; it must be a whole number"),
    ({"class_names": "abcdefgh"}, "class_names is 'abcdefgh'; give 8 names"),
    ({"class_names": 5}, "class_names is 5; give 8 names"),
    ({"feature_dimension": "a"}, "feature_dimension is 'a'"),
    ({"device": "bogus"}, "device 'bogus' is unknown"),
    ({"samples_used": ["all"]}, "samples_used is"),
    ({"tol": 0.0}, "tol is 0.0"),
    ({"held_out": 1.0}, "held_out is 1.0"),
    ({"feature_dimension": 0}, "feature_dimension is 0"),
    ({"feature_dimension": 3, "features": torch.zeros(80, 4)}, "feature_dimension is 3, but features have 4"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options, message, planted):
    z, y = planted(80)
    with pytest.raises(UsageError, match=message):
        independence_deficit(z, y, **options)


def test_features_and_held_out_must_fit(planted):
    z, y = planted(80)
    with pytest.raises(DataError, match=r"features have shape \(79, 4\)"):
        independence_deficit(z, y, features=torch.zeros(79, 4))
    with pytest.raises(DataError, match="held-out logits have 7 classes"):
        independence_deficit(z, y, held_out=(z[:, :7], y % 7))
    with pytest.raises(DataError, match="held-out logits of 80 samples"):
        independence_deficit(z, y, held_out=(z, y[1:]))
    with pytest.raises((UsageError, DeviceError), match="mps"):
        independence_deficit(z, y, device="mps")


def test_a_class_without_samples_may_be_left_out(planted):
    z, y = planted(80)
    y[y == 3] = 4
    table = independence_deficit(z, y, eta=0.2, classes=[0, 1], permutations=1)
    assert [r.index for r in table] == [0, 1]


@pytest.mark.parametrize("labels", [["a"] * 12, [None] * 12, np.array(["a"] * 12)])
def test_labels_that_are_no_numbers(labels):
    with pytest.raises(DataError, match=r"labels (are text \('a'\)|is an array of objects)"):
        independence_deficit(torch.randn(12, 4), labels)


def test_logits_that_are_no_matrix():
    with pytest.raises(DataError, match="logits is a list of unequal parts"):
        independence_deficit([[1.0, 2.0], [1.0]], [0, 1])


def test_a_table_refuses_what_is_no_number(planted):
    z, y = planted(80)
    table = independence_deficit(z, y, eta=0.2, permutations=1)
    for call, message in (
        (lambda: table.deficit("a"), "k is 'a'"),
        (lambda: table.path(0, points="a"), "points is 'a'"),
        (lambda: table.path(0, floor=1.0), "floor is 1.0; it must be below 1"),
        (lambda: table.plot(0, most="a"), "most is 'a'"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (lambda z: np.ma.masked_array(z, z > 1), None, "entries of this masked array are hidden"),
        (lambda z: torch.tensor(z).to_sparse(), None, "logits is sparse or quantised"),
        (lambda z: torch.tensor(z).to("meta"), None, "logits is on the meta device"),
        (None, lambda y: np.ma.masked_array(y, y == 1), "labels: 10 entries of this masked array are hidden"),
    ],
)
def test_numbers_that_are_not_there(planted, logits, labels, message):
    z, y = (v.numpy() for v in planted(80))
    with pytest.raises(DataError, match=message):
        independence_deficit(z if logits is None else logits(z), y if labels is None else labels(y))


@pytest.mark.parametrize(
    "form",
    [
        lambda a: np.array(a[::-1])[::-1],  # negative strides
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        lambda a: np.asfortranarray(np.stack([a, a], -1))[..., 0],
        lambda a: pytest.importorskip("pandas").DataFrame(a).squeeze(),
    ],
)
def test_every_form_of_the_same_numbers_gives_the_same_table(planted, form):
    z, y = (v.numpy() for v in planted(80))
    plain = independence_deficit(z, y, eta=0.2, permutations=1)
    found = independence_deficit(form(z), form(y), eta=0.2, permutations=1)
    assert [r.depends_on for r in found] == [r.depends_on for r in plain]
    assert [r.r2 for r in found] == pytest.approx([r.r2 for r in plain], rel=1e-9)
