"""The formula-driven images: addresses, the chaos game against a plain loop, and what a user may ask for wrongly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankscope import DataError, UsageError
from rankscope.datasets import FractalBatches, FractalSpec, FractalTestSet, fractal_images
from rankscope.datasets._hashing import draw, keys, mix, signed
from rankscope.datasets._rendering import MEAN, STD, _counts, perturb
from rankscope.datasets.ifs import MAPS, choose, class_systems, walk

SPEC = FractalSpec(classes=6, size=32)


def mix_of_one(word: int) -> int:
    """The mixer in Python's own integers."""
    word ^= word >> 16
    word = word * 0x21F0AAAD & 0xFFFFFFFF
    word ^= word >> 15
    word = word * 0x735A2D97 & 0xFFFFFFFF
    return word ^ word >> 15


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50, unique=True))
def test_mixer_is_that_of_unbounded_integers_and_joins_no_two_words(words):
    mixed = mix(torch.tensor(words)).tolist()
    assert mixed == [mix_of_one(word) for word in words]
    assert len(set(mixed)) == len(words)


def test_a_number_depends_on_its_address_alone():
    labels = torch.tensor([3, 1, 4])
    several = draw(keys(7, labels, 2), 5)
    for row, label in zip(several, labels, strict=True):
        assert draw(keys(7, label, 2), 5)[0].tolist() == row.tolist()
    assert draw(keys(7, labels, 2), 3).tolist() == several[:, :3].tolist()
    assert not torch.equal(draw(keys(8, labels, 2), 5), several)


def test_uniform_numbers_are_uniform():
    u = signed(keys(0, torch.arange(100)), 1000).double()
    n = u.numel()
    assert float(u.min()) >= -1
    assert float(u.max()) < 1
    # the mean of n uniforms of [−1, 1) has deviation √(1/3n), their mean square √(4/45n); six of each
    assert abs(float(u.mean())) < 6 * (1 / (3 * n)) ** 0.5
    assert abs(float((u**2).mean()) - 1 / 3) < 6 * (4 / (45 * n)) ** 0.5


def test_walk_is_the_chaos_game():
    systems = class_systems(3, seed=1)
    words = torch.randint(0, 2**32, (3, 7, 2), generator=torch.Generator().manual_seed(0))
    choices = choose(words, systems.thresholds)
    points = walk(systems.matrices, systems.offsets, choices, burn_in=2)
    for c in range(3):
        a, t = systems.matrices[c].double().numpy(), systems.offsets[c].double().numpy()
        for w in range(2):
            x = np.linalg.solve(np.eye(2) - a[0], t[0])  # fixed point of the first map
            for s in range(7):
                k = sum(int(words[c, s, w]) >= int(v) for v in systems.thresholds[c])
                x = a[k] @ x + t[k]
                if s >= 2:
                    # 7 contractions of float32 numbers of size 1: some 1e-7 each
                    np.testing.assert_allclose(points[:, s - 2, c, w], x, atol=2e-6)


def test_every_map_contracts_and_its_number_can_be_chosen():
    systems = class_systems(40, seed=0)
    words = torch.randint(0, 2**32, (40, 500, 4), generator=torch.Generator().manual_seed(0))
    choices = choose(words, systems.thresholds)
    largest = torch.linalg.svdvals(systems.matrices).amax(2)
    for c in range(40):
        used = int(choices[c].max()) + 1
        assert 2 <= used <= MAPS
        assert sorted(set(choices[c].flatten().tolist())) == list(range(used))
        assert float(largest[c, :used].max()) <= 0.85 + 1e-6


def test_fewer_classes_are_the_first_of_more():
    few, many = class_systems(5, seed=3), class_systems(300, seed=3)
    assert torch.equal(few.matrices, many.matrices[:5])
    assert torch.equal(few.thresholds, many.thresholds[:5])


def test_view_is_a_conjugation():
    """With no change to the maps themselves, a step in the seen image is the seen step."""
    systems = class_systems(4, seed=0)
    labels, key = torch.arange(4), keys(0, 0, torch.arange(4), 9)
    none = {"perturbation": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0, "flip": False}
    same, there = perturb(systems, labels, key, **none)
    torch.testing.assert_close(same, systems.matrices)
    torch.testing.assert_close(there, systems.offsets)
    matrices, offsets = perturb(systems, labels, key, perturbation=0.0, rotation=40, scale=0.2, shift=0.3, flip=True)
    # fixed points of both give G and g: three points of the plane determine a similarity, and maps give enough
    eye = torch.eye(2)
    for c in range(4):
        before = torch.linalg.solve(eye - systems.matrices[c], systems.offsets[c])
        after = torch.linalg.solve(eye - matrices[c], offsets[c])
        # lengths between fixed points all grow by one factor
        ratio = torch.pdist(after) / torch.pdist(before)
        assert float(ratio.std() / ratio.mean()) < 1e-3
        assert 0.8 - 1e-3 <= float(ratio.mean()) <= 1.2 + 1e-3


def test_counts_are_a_histogram():
    points = torch.rand(2, 5, 3, 40, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    expected = [
        np.histogram2d(*points[:, :, b].reshape(2, -1).numpy()[::-1], bins=16, range=[[-1, 1], [-1, 1]])[0]
        for b in range(3)
    ]
    assert _counts(points.clone(), 16).tolist() == np.stack(expected).tolist()


def test_images_do_not_depend_on_the_batch_they_come_in():
    labels, indices = torch.tensor([0, 5, 2, 2]), torch.tensor([0, 1, 7, 8])
    together = fractal_images(SPEC, labels, indices)
    for i in range(4):
        alone = fractal_images(SPEC, labels[i : i + 1], indices[i : i + 1])
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[2], together[3])


def test_splits_and_seeds_are_other_images_of_the_same_classes():
    labels = indices = torch.zeros(1, dtype=torch.int64)
    made = [fractal_images(SPEC, labels, indices, split=split) for split in ("train", "validation", "test")]
    made.append(fractal_images(replace(SPEC, seed=1), labels, indices))
    assert len({float(image.sum()) for image in made}) == 4


def test_pictures_have_the_brightness_of_pictures():
    images = fractal_images(SPEC, torch.arange(6), torch.arange(6))
    pictures = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    # noise of 0.08 and a slope of 0.2 at most lie over ground and figure, which stay within 0 and 1
    assert float(pictures.min()) >= -0.3
    assert float(pictures.max()) <= 1.3
    assert bool((pictures.flatten(1).std(1) > 0.03).all())


def test_training_stream_does_not_depend_on_the_batch_size():
    def first(size, count):
        batches = FractalBatches(SPEC, size)
        parts = [next(batches) for _ in range(-(-count // size))]
        return torch.cat([x for x, _ in parts])[:count], torch.cat([y for _, y in parts])[:count]

    (one, labels), (other, others) = first(4, 14), first(7, 14)
    assert torch.equal(one, other)
    assert labels.tolist() == others.tolist()
    assert sorted(labels[:6].tolist()) == sorted(labels[6:12].tolist()) == list(range(6))
    assert labels[:6].tolist() != labels[6:12].tolist()


def test_test_set_is_one_order_however_it_is_read():
    held_out = FractalTestSet(SPEC, per_class=2)
    assert len(held_out) == 12
    parts = list(held_out.test_batches(batch_size=5))
    images, labels = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    assert labels.tolist() == [*range(6), *range(6)]
    for i in (0, 7, -1):
        assert torch.equal(held_out[i][0], images[i])
        assert held_out[i][1] == int(labels[i])
    with pytest.raises(IndexError, match="image 12 of 12"):
        held_out[12]


def test_classes_can_be_told_apart():
    """The nearest class mean, on pixels alone, is right far more often than chance (1 in 6)."""
    spec = FractalSpec(classes=6, size=24)
    classes = torch.arange(6)
    train = torch.stack([fractal_images(spec, classes, classes * 0 + i, split="train") for i in range(30)])
    grey = train.mean(2).flatten(2)
    means = (grey - grey.mean(2, keepdim=True)).mean(0)
    tested = FractalTestSet(spec, per_class=20)
    right = 0
    for x, y in tested.test_batches(batch_size=120):
        flat = x.mean(1).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        score = torch.nn.functional.normalize(flat) @ torch.nn.functional.normalize(means).T
        right += int((score.argmax(1) == y).sum())
    assert right / len(tested) > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 0}, r"classes=0.*use 1"),
        ({"size": 8}, r"size=8.*16 to 1024"),
        ({"perturbation": 0.5}, "0.0 to 0.25"),
        ({"classes": 2.5}, r"classes=2.5.*float; give a whole number"),
        ({"size": True}, r"size=True.*give a whole number"),
        ({"seed": "a"}, r"seed='a'.*str; give a whole number"),
        ({"rotation": "15"}, r"rotation='15'.*give a number"),
        ({"flip": "no"}, r"flip='no'.*True or False"),
    ],
)
def test_specs_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FractalSpec(**options)


def test_points_per_pixel_stay_the_same():
    assert [FractalSpec(size=size).walkers for size in (112, 224, 448)] == [256, 1024, 4096]
    assert FractalSpec(size=16).walkers == 64  # no fewer


def test_wrong_labels_splits_and_sizes_are_named():
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(DataError, match="labels run from 9 to 9; the set has classes 0 to 5"):
        fractal_images(SPEC, one + 9, one)
    with pytest.raises(DataError, match="labels run from 0 to 6; the set has classes 0 to 5"):
        fractal_images(SPEC, [0, 6], [0, 0])
    with pytest.raises(DataError, match="labels run from -1 to 5; the set has classes 0 to 5"):
        fractal_images(SPEC, [5, -1], [0, 0])
    with pytest.raises(DataError, match="two vectors of one length"):
        fractal_images(SPEC, one, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UsageError, match="device 'gpu' is unknown"):
        fractal_images(SPEC, one, one, device="gpu")
    assert torch.equal(fractal_images(SPEC, [2], [0]), fractal_images(SPEC, one + 2, one))
    with pytest.raises(UsageError, match=r"split 'valid'.*validation"):
        fractal_images(SPEC, one, one, split="valid")
    with pytest.raises(UsageError, match="split None is unknown"):
        fractal_images(SPEC, one, one, split=None)
    for wrong in (["a"], one.float(), one.cfloat(), one.bool(), 3):
        with pytest.raises(DataError, match=r"labels are .*; give whole numbers"):
            fractal_images(SPEC, wrong, one)
    with pytest.raises(DataError, match="indices run from -1"):
        fractal_images(SPEC, one, one - 1)
    assert fractal_images(SPEC, [], []).shape == (0, 3, SPEC.size, SPEC.size)
    for wrong in (2.5, None, True, 0):
        with pytest.raises(UsageError, match=f"per_class is {wrong}; it must be a whole number"):
            FractalTestSet(SPEC, per_class=wrong)
        with pytest.raises(UsageError, match=f"batch_size is {wrong}; it must be a whole number"):
            FractalBatches(SPEC, wrong)
    with pytest.raises(UsageError, match="batch_size is 0"):
        FractalBatches(SPEC, 0)
    with pytest.raises(UsageError, match="per_class is 0"):
        FractalTestSet(SPEC, per_class=0)


@pytest.mark.cuda
def test_a_gpu_makes_the_same_images():
    labels, indices = torch.arange(6), torch.arange(6)
    here, there = (fractal_images(SPEC, labels, indices, device=d) for d in ("cpu", "cuda"))
    # a point within rounding of a pixel's edge may fall to the next pixel, and changes that one's tone a little
    assert float((here - there.cpu()).abs().gt(1e-3).double().mean()) < 0.02
