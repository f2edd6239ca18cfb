"""A Hugging Face data set as input of a collection gives what its arrays give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rankscope._base.errors import DataError, UsageError
from rankscope.features import collect

datasets = pytest.importorskip("datasets")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


def pixels(n=12):
    return np.random.default_rng(0).integers(0, 255, (n, 8, 8), dtype=np.uint8)


def pictures():
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    images = [Image.fromarray(one) for one in pixels()]
    return datasets.Dataset.from_dict({"image": images, "label": [i % 3 for i in range(12)]}, features=kinds)


def prepared(batch):
    batch["pixel_values"] = [torch.from_numpy(np.array(one)).float()[None] / 255 for one in batch["image"]]
    return batch  # the pictures stay in the record, as they do in most recipes


@pytest.fixture
def expected(tmp_path):
    x = torch.from_numpy(pixels()).float()[:, None] / 255
    return collect(network(), (x, torch.arange(12) % 3), out=tmp_path / "arrays")


def test_images_through_a_transform(tmp_path, expected):
    source = pictures().with_transform(prepared)
    found = collect(network(), source, out=tmp_path / "run", batch_size=5)
    torch.testing.assert_close(found.logits, expected.logits)
    assert torch.equal(found.labels, expected.labels)
    again = collect(network(), pictures().with_transform(prepared), out=tmp_path / "run")
    assert again.resumed == 12
    other = pictures().select(range(11, -1, -1)).with_transform(prepared)
    with pytest.raises(Exception, match="shards of another data set"):
        collect(network(), other, out=tmp_path / "run")


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_arrays_in_any_format(tmp_path, expected, kind):
    values = list(pixels().astype(np.float32)[:, None] / 255)
    source = datasets.Dataset.from_dict({"input": values, "label": [i % 3 for i in range(12)]}).with_format(kind)
    found = collect(network(), source, out=tmp_path / "run")
    torch.testing.assert_close(found.logits, expected.logits)
    assert torch.equal(found.labels, expected.labels)


def test_a_picture_that_cannot_be_decoded_is_skipped(tmp_path, expected):
    plain = pictures().cast_column("image", datasets.Image(decode=False)).to_list()
    plain[4]["image"] = {"bytes": b"no picture", "path": None}
    source = datasets.Dataset.from_list(plain).cast_column("image", datasets.Image()).with_transform(prepared)
    found = collect(network(), source, out=tmp_path / "run")
    assert [one.index for one in found.skipped] == [4]
    assert found.skipped[0].name == "sample 4"
    torch.testing.assert_close(found.logits, expected.logits[[*range(4), *range(5, 12)]])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UsageError, match="a DatasetDict of train, test; give one of them"):
        collect(network(), datasets.DatasetDict({"train": pictures(), "test": pictures()}), out=tmp_path)
    with pytest.raises(DataError, match=r"cannot be put into one batch .*with_transform"):
        collect(network(), pictures(), out=tmp_path / "raw")
    renamed = pictures().rename_column("label", "species")
    with pytest.raises(
        DataError, match=r"species, pixel_values, so no label; name it one of label, .*or leave 'species' out"
    ):
        collect(network(), renamed.with_transform(prepared), out=tmp_path / "none")
    with pytest.raises(UsageError, match="IterableDataset has no order to be taken up again"):
        collect(network(), pictures().to_iterable_dataset(), out=tmp_path / "stream")
