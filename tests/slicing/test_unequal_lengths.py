"""Samples of unequal lengths: read one by one, or refused with a remedy that works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from networks import Ragged
from torch.utils.data import DataLoader, Dataset, IterableDataset, StackDataset, default_collate

import rankscope as rs
from rankscope.slicing import read_samples


@pytest.fixture
def net() -> Ragged:
    torch.manual_seed(0)
    return Ragged(3, 5, 4).double().eval()


def tokens(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in lengths]


def test_the_remedy_for_a_list_works(net: Ragged) -> None:
    inputs = tokens(4, 2, 6)
    with pytest.raises(rs.UsageError, match=r"unequal shapes \(\(4, 3\), \(2, 3\)\).*StackDataset\(x=inputs\)"):
        rs.jacobian_rank(net, inputs)
    profile = rs.jacobian_rank(net, StackDataset(x=inputs), cut_points="output", columns="all")
    for x, spectrum in zip(inputs, profile.layers[0].spectra, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: net(one[None])[0], x).reshape(4, -1).numpy()
        assert spectrum is not None
        sigma = np.linalg.svd(jacobian, compute_uv=False)
        # the root of a float64 Gram matrix: half the digits, relative to the largest
        np.testing.assert_allclose(spectrum.singular_values[:4], sigma, atol=1e-7 * sigma[0])


def test_equal_shapes_still_get_stack(net: Ragged) -> None:
    with pytest.raises(rs.UsageError, match=r"torch\.stack of samples"):
        rs.jacobian_rank(net, tokens(4, 4))


def test_lists_of_unequal_lengths_are_one_sample_a_row(net: Ragged) -> None:
    inputs = tokens(4, 2, 6)
    found = list(read_samples(net, {"x": [x.tolist() for x in inputs], "mask": torch.ones(5)}))
    assert [tuple(s.x.shape) for s in found] == [(1, 4, 3), (1, 2, 3), (1, 6, 3)]
    assert all(torch.equal(s.x[0], x) for s, x in zip(found, inputs, strict=True))
    samples = read_samples(net, {"x": [x.tolist() for x in inputs]}, limit=2)
    assert samples.total == 2
    assert len(list(samples)) == 2


def test_what_could_be_for_each_row_or_for_all_is_refused(net: Ragged) -> None:
    given = {"x": [x.tolist() for x in tokens(4, 2, 6)], "mask": torch.ones(3, 5, dtype=torch.float64)}
    with pytest.raises(rs.UsageError, match=r"'mask' holds 3 rows beside 3 samples.*shared=\(\"mask\",\)"):
        list(read_samples(net, given))
    own = list(read_samples(net, given, per_sample="mask"))
    assert [tuple(s.extra["mask"].shape) for s in own] == [(1, 5)] * 3
    shared = list(read_samples(net, given, shared="mask"))
    assert [tuple(s.extra["mask"].shape) for s in shared] == [(3, 5)] * 3


def test_rows_that_are_missing_are_named(net: Ragged) -> None:
    given = {"x": [x.tolist() for x in tokens(4, 2)], "mask": [[1.0]]}
    with pytest.raises(rs.DataError, match="'mask' has 1 rows and 'x' has 2"):
        list(read_samples(net, given, per_sample="mask"))


def test_a_tokenizer_without_padding_leaves_one_sample_a_row() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=8)).eval()
    ids = [[1, 2, 3], [4, 5]]
    plain = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    for given in (plain, transformers.BatchEncoding(plain)):
        found = list(read_samples(model, given))
        for sample, row in zip(found, ids, strict=True):
            expected = model.get_input_embeddings()(torch.tensor([row])).detach()
            torch.testing.assert_close(sample.x, expected, rtol=0, atol=0)
            assert sample.extra["attention_mask"].tolist() == [[1] * len(row)]


class Records(Dataset[dict[str, Any]]):
    def __init__(self, x: torch.Tensor, mask: list[torch.Tensor]) -> None:
        self.x, self.mask = x, mask

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "mask": self.mask[index]}


def test_what_a_loader_stacked_is_shared_once(net: Ragged) -> None:
    x = torch.stack(tokens(4, 4, 4))
    mask = torch.arange(20, dtype=torch.float64).reshape(4, 5)
    loader = DataLoader(Records(x, [mask] * 3), batch_size=3)
    for sample in read_samples(net, loader, shared="mask"):
        assert torch.equal(sample.extra["mask"], mask)
    unlike = DataLoader(Records(x, [mask, mask, mask + 1]), batch_size=3)
    with pytest.raises(rs.UsageError, match="shared names 'mask', which differs between the samples"):
        list(read_samples(net, unlike, shared="mask"))


class Unequal(torch.utils.data.Dataset[Any]):
    """Samples of 3, 3, 4 and 5 positions, as tensors, arrays, lists or beside a label."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        x = torch.ones((3, 3, 4, 5)[index], 2) * (index + 1)
        return {"tensor": x, "array": x.numpy(), "pair": (x, index), "mapping": {"x": x}}[self.kind]


class Streamed(IterableDataset[Any]):
    """The same samples without an index."""

    def __init__(self, kind: str) -> None:
        self.samples = Unequal(kind)

    def __iter__(self) -> Iterator[Any]:
        yield from (self.samples[i] for i in range(len(self.samples)))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["tensor", "array", "pair", "mapping"])
def test_samples_that_a_loader_cannot_put_into_one_batch_are_read_one_by_one(kind: str, streamed: bool) -> None:
    data = Streamed(kind) if streamed else Unequal(kind)
    loader = DataLoader(data, batch_size=2)
    found = list(read_samples(torch.nn.Linear(2, 3), loader))
    assert [tuple(s.x.shape) for s in found] == [(1, 3, 2), (1, 3, 2), (1, 4, 2), (1, 5, 2)]
    assert [float(s.x[0, 0, 0]) for s in found] == [1, 2, 3, 4]
    assert loader.collate_fn is default_collate  # the caller's loader is as it was


def test_a_loader_of_unequal_samples_with_workers_and_a_shuffled_order() -> None:
    def order() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    model = torch.nn.Linear(2, 3)
    state = torch.get_rng_state()
    loader = DataLoader(Unequal("pair"), batch_size=3, num_workers=1, shuffle=True, generator=order())
    found = list(read_samples(model, loader))
    assert torch.equal(torch.get_rng_state(), state)
    numbers: Any = range(4)
    wanted = [int(k) for batch in DataLoader(numbers, batch_size=3, shuffle=True, generator=order()) for k in batch]
    assert wanted != sorted(wanted)
    assert [float(s.x[0, 0, 0]) for s in found] == [1 + k for k in wanted]


def test_unequal_samples_of_a_loader_measure_as_those_of_its_data_set(net: Ragged) -> None:
    inputs = tokens(4, 2, 6, 6)
    pairs: Any = [(x, k) for k, x in enumerate(inputs)]
    for measure, options in ((rs.jacobian_rank, {}), (rs.feature_rank, {"reduce": "pool"})):
        of_set = measure(net, StackDataset(x=inputs), cut_points="output", **options)
        of_loader = measure(net, DataLoader(pairs, batch_size=4), cut_points="output", **options)
        pd.testing.assert_frame_equal(of_loader.table(), of_set.table(), rtol=1e-9)  # float64; passes of one or two


def test_another_error_of_a_loader_stays() -> None:
    class Broken(Unequal):
        def __getitem__(self, index: int) -> Any:
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        rs.jacobian_rank(torch.nn.Linear(2, 3).eval(), torch.utils.data.DataLoader(Broken("tensor"), batch_size=2))
