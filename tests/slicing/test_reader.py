"""One reader: what a user brings is read as they mean it, or refused in a line that names both spellings."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    get_worker_info,
)

import rankscope as rs
from rankscope._base.facts import Fact, FactKind
from rankscope.slicing import Sample, call_model, read_samples

torch.manual_seed(0)
X = torch.randn(6, 4)
LABELS = torch.arange(6)
LINEAR = nn.Linear(4, 4)


class Calls(nn.Module):
    def forward(self, x: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        return x


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Masked(nn.Module):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return x


class Anything(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


class Pairs(Dataset[Any]):
    def __init__(self, label: Any = 3) -> None:
        self.label = label

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Any:
        return X[i], self.label


class Everything(IterableDataset[Any]):
    """Knows nothing of workers: each goes through all of it."""

    def __iter__(self) -> Iterator[Any]:
        yield from X


class Shared(IterableDataset[Any]):
    """Shares itself out, as torch's documentation shows; it is of no use outside a worker."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        yield from X[worker.id :: worker.num_workers]


class Ranged(IterableDataset[Any]):
    """Shared out by a ``worker_init_fn``, torch's second way."""

    def __init__(self) -> None:
        self.start, self.stop = 0, 6

    def __iter__(self) -> Iterator[Any]:
        yield from X[self.start : self.stop]


def take_part(_: int) -> None:
    worker = get_worker_info()
    size = -(-6 // worker.num_workers)
    worker.dataset.start, worker.dataset.stop = worker.id * size, min(6, (worker.id + 1) * size)


class Iterates(DataLoader[Any]):
    def __iter__(self) -> Any:
        return super().__iter__()


class Bare:
    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((x, "cat") for x in X)


def xs(samples: Iterator[Sample]) -> Tensor:
    return torch.cat([s.x for s in samples])


def records() -> list[dict[str, Any]]:
    return [{"x": x, "label": i} for i, x in enumerate(X)]


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, LABELS), **options)


READ = {
    "tensor": X,
    "needs gradients": X.clone().requires_grad_(),
    "array": X.numpy(),
    "array of another byte order": X.numpy().astype(">f4"),
    "array that is read backwards": X.numpy()[::-1],
    "read-only array": np.broadcast_to(X.numpy(), (6, 4)),
    "nested list": X.tolist(),
    "mapping": {"input": X},
    "tokenizer's mapping": UserDict({"input": X}),
    "mapping with its labels": {"input": X, "label": LABELS},
    "mapping of another name": {"image": X, "label": LABELS},
    "pair of arrays": (X.numpy(), LABELS.numpy()),
    "list of a pair": [X, LABELS],
    "regression": (X, torch.randn(6, 2)),
    "data set": Pairs(),
    "data set with text labels": Pairs("cat"),
    "data set with tensor labels": Pairs(torch.tensor(3)),
    "data set with one-hot labels": Pairs(torch.eye(4)[0]),
    "data set without labels": TensorDataset(X),
    "data set of bare tensors": Bare(X),
    "stream": Stream(),
    "loader": loader(batch_size=4),
    "loader without batches": loader(batch_size=None),
    "loader with a batch sampler": loader(batch_sampler=BatchSampler(SequentialSampler(X), 4, drop_last=False)),
    "loader of a stream": DataLoader(Stream(), batch_size=4),
    "loader with a collation of its own": loader(batch_size=4, collate_fn=lambda b: torch.stack([x for x, _ in b])),
    "list of pairs with labels": [(x, 3) for x in X],
    "list of records": records(),
    "loader of records": DataLoader(records(), batch_size=4),  # type: ignore[arg-type]
    "records of lists": Bare([{"x": x.tolist(), "label": 1} for x in X]),
}


@pytest.mark.parametrize("name", READ)
def test_six_samples_are_read_as_six(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(read_samples(LINEAR, READ[name]))
    expected = X.flip(0) if "backwards" in name else X
    assert torch.equal(torch.cat([s.x for s in found]).float(), expected)
    assert [s.name for s in found] == [f"sample {i}" for i in range(6)]
    assert all(s.x.shape == (1, 4) and not s.extra for s in found)
    assert call_model(LINEAR, found[0], found[0].x.float()).shape == (1, 4)


def test_an_iterator_of_pairs_with_labels() -> None:
    assert torch.equal(xs(read_samples(LINEAR, ((x, "cat") for x in X))), X)


def test_a_loader_leaves_the_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    found = xs(read_samples(LINEAR, loader(batch_size=4, shuffle=True)))
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(found[:, 0].tolist()) == sorted(X[:, 0].tolist())


STREAMS = {
    "that knows nothing of workers": DataLoader(Everything(), batch_size=2, num_workers=2),
    "one by one": DataLoader(Everything(), batch_size=None, num_workers=2),
    "that shares itself out": DataLoader(Shared(), batch_size=2, num_workers=2),
    "shared out by the loader": DataLoader(Ranged(), batch_size=2, num_workers=2, worker_init_fn=take_part),
    "of workers that stay": DataLoader(Everything(), batch_size=4, num_workers=2, persistent_workers=True, timeout=60),
    "of a loader of the user's own": Iterates(Everything(), batch_size=4, num_workers=2),
    "of started workers": DataLoader(Everything(), batch_size=4, num_workers=2, multiprocessing_context="forkserver"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_several_workers_give_each_sample_of_a_stream_once(name: str) -> None:
    given = STREAMS[name]
    workers = given.num_workers
    found = xs(read_samples(LINEAR, given))
    assert torch.equal(found, X)  # in its order too
    assert given.num_workers == workers
    assert given._iterator is None


def test_a_stream_with_several_workers_has_as_many_rows_as_samples() -> None:
    table = rs.feature_rank(LINEAR, STREAMS["that knows nothing of workers"], cut_points="all").table()
    assert set(table["samples"]) == {6}


def test_a_stream_that_one_of_several_workers_read_is_named() -> None:
    fact = Fact(FactKind.ONE_WORKER, {"workers": 2}, caution=True)
    given = DataLoader(Everything(), num_workers=2)
    assert fact in rs.feature_rank(LINEAR, given, cut_points="all").facts
    assert fact in rs.jacobian_rank(LINEAR, given, cut_points="output", columns="all").facts
    alone = rs.feature_rank(LINEAR, DataLoader(Everything(), num_workers=1), cut_points="all")
    assert FactKind.ONE_WORKER not in {found.kind for found in alone.facts}


def test_limits() -> None:
    for inputs in (X, loader(batch_size=4), {"input": X}, Pairs()):
        assert len(list(read_samples(LINEAR, inputs, limit=5))) == 5
    for limit in (0, True, 2.5, "3"):
        with pytest.raises(rs.UsageError, match=r"limit is .*; it must be a whole number of at least 1"):
            read_samples(LINEAR, X, limit=limit)  # type: ignore[arg-type]


def test_how_many_there_are() -> None:
    def total(inputs: Any, **options: Any) -> int | None:
        samples = read_samples(LINEAR, inputs, **options)
        next(samples)
        return samples.total

    assert [total(i) for i in (X, X.numpy(), {"input": X}, (X, LABELS), Pairs())] == [6] * 5
    assert [total(i, limit=2) for i in (X, {"input": X}, Pairs())] == [2] * 3
    assert total(loader(batch_size=4)) is None


# ---- mappings --------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))
        self.end = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2) + mask, -1)
        return self.end(x + weights @ self.v(x))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3, dtype=torch.float64)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x @ scale[:, None])


class Gate(nn.Module):
    """A layer of rank 6, of which y lets five rows pass or none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6, dtype=torch.float64)
        self.end = nn.Identity()

    def forward(self, x: Tensor, t: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        h = self.layer(x)
        if y is not None:
            h = h * y.reshape(-1, 1) * torch.tensor([1.0, 1, 1, 1, 1, 0], dtype=x.dtype)
        return self.end(h)


def plain_rank(model: nn.Module, x: Tensor, **others: Tensor) -> int:
    """Rank of the whole Jacobian by reverse mode in float64, without the package."""
    jacobian = torch.autograd.functional.jacobian(lambda z: model(z, **others).flatten(), x)
    sigma = torch.linalg.svdvals(jacobian.reshape(-1, x.numel()))
    return int((sigma > 1e-9 * sigma[0]).sum()) if sigma[0] > 0 else 0


def ranks(profile: rs.JacobianProfile, name: str) -> list[int]:
    return [s.rank("paper").value for s in profile[name].spectra if s is not None]


def test_j3_nothing_that_forward_accepts_is_dropped() -> None:
    model = Gate().eval()
    x, y = torch.randn(2, 6, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    profile = rs.jacobian_rank(model, {"x": x, "y": y}, cut_points=["end"])
    truth = [plain_rank(model, x[i : i + 1], y=y[i : i + 1]) for i in range(2)]
    assert ranks(profile, "end") == truth == [5, 0]
    assert Fact(FactKind.DIFFERENTIATED, {"name": "x", "per_sample": ("y",), "shared": ()}) in profile.facts


def test_j3_what_forward_does_not_take_is_dropped_and_said() -> None:
    profile = rs.jacobian_rank(nn.Sequential(LINEAR).eval(), {"input": X, "label": LABELS}, cut_points=["0"])
    assert Fact(FactKind.INPUT_LEFT_OUT, {"name": "label", "reason": "forward does not take it"}) in profile.facts


def test_j4_a_mask_is_shared_and_not_cut_into_samples() -> None:
    torch.manual_seed(1)
    attention, scaled = Attention().eval(), Scaled().eval()
    x, mask = torch.randn(1, 6, 4, dtype=torch.float64), torch.full((6, 6), -torch.inf).triu(1).double()
    profile = rs.jacobian_rank(attention, {"x": x, "mask": mask}, cut_points=["end"])
    assert ranks(profile, "end") == [plain_rank(attention, x, mask=mask)] == [24]
    x, scale = torch.randn(1, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    profile = rs.jacobian_rank(scaled, {"x": x, "scale": scale}, cut_points=["layer"])
    assert ranks(profile, "layer") == [plain_rank(scaled, x, scale=scale)] == [1]


@pytest.mark.parametrize("name", ["mask", "scale", "t"])
def test_what_could_be_either_is_refused_with_both_spellings(name: str) -> None:
    value = torch.randn(6, 6)
    both = rf'{name}.* has shape \(6, 6\) beside 6 samples .*shared=\("{name}",\).*per_sample=\("{name}",\)'
    with pytest.raises(rs.UsageError, match=both):
        next(read_samples(Anything(), {"x": X, name: value}))
    shared = list(read_samples(Anything(), {"x": X, name: value}, shared=name))
    assert all(torch.equal(s.extra[name], value) for s in shared)
    own = list(read_samples(Anything(), {"x": X, name: value}, per_sample=(name,)))
    assert torch.equal(torch.cat([s.extra[name] for s in own]), value)


CERTAIN = {  # name, value, whether each of the six samples has its own row
    "another first dimension": ("mask", torch.randn(4, 4), False),
    "a number": ("scale", torch.tensor(2.0), False),
    "labels": ("y", LABELS, True),
    "labels in a column": ("y", LABELS[:, None], True),
    "Hugging Face's mask": ("attention_mask", torch.ones(6, 5), True),
    "a text": ("mode", "fast", False),
    "a flag": ("flag", True, False),
    "sizes": ("sizes", [4, 4], False),
}


@pytest.mark.parametrize(("name", "value", "own"), CERTAIN.values(), ids=CERTAIN)
def test_what_is_certain(name: str, value: Any, own: bool) -> None:
    found = [s.extra[name] for s in read_samples(Anything(), {"x": torch.randn(6, 5, 4), name: value})]
    if own:
        assert torch.equal(torch.cat(found), value)
    else:
        assert all(part is value or torch.equal(part, value) for part in found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_mask", torch.ones(6, 6)),  # beside six tokens it may be the mask of all samples
        ("h0", torch.zeros(2, 6, 3)),  # states of recurrent layers hold samples second
        ("sizes", [1, 2, 3, 4, 5, 6]),
        ("features", [torch.zeros(6, 2), torch.zeros(6, 3)]),
        ("cond", torch.zeros(6, 6, 4)),
    ],
)
def test_what_is_not_certain(name: str, value: Any) -> None:
    inputs = {"x": torch.randn(6, 6, 4), name: value}
    with pytest.raises(rs.UsageError, match=rf'{name}.*beside 6 samples of .x.*shared=\("{name}",\)'):
        next(read_samples(Anything(), inputs))
    assert name in next(read_samples(Anything(), inputs, shared=name)).extra


def test_a_collated_batch_is_per_sample_for_certain() -> None:
    items = Bare([{"x": x, "mask": torch.full((6,), float(i)), "t": i} for i, x in enumerate(X)])
    for inputs in (items, DataLoader(items, batch_size=6)):  # type: ignore[arg-type]
        found = list(read_samples(Anything(), inputs))
        assert [float(s.extra["mask"][0, 0]) for s in found] == list(range(6))
        assert [int(s.extra["t"]) for s in found] == list(range(6))


def test_names_that_are_not_there() -> None:
    for option in ("shared", "per_sample"):
        options: dict[str, Any] = {option: "maks"}
        with pytest.raises(rs.UsageError, match=f"{option} names 'maks', which the inputs do not hold; did you mean"):
            next(read_samples(Anything(), {"x": X, "mask": X}, **options))
    with pytest.raises(rs.UsageError, match="differentiate names 'z', which the inputs do not hold"):
        next(read_samples(LINEAR, X, differentiate="z"))
    with pytest.raises(rs.UsageError, match="'t' is in shared and in per_sample"):
        read_samples(Anything(), {"x": X, "t": X}, shared="t", per_sample="t")
    with pytest.raises(rs.UsageError, match=r"per_sample names 't', which has shape \(4,\) beside 6 samples"):
        next(read_samples(Anything(), {"x": X, "t": torch.zeros(4)}, per_sample="t"))


# ---- which input is differentiated -----------------------------------------------------------------------------------


def test_k7_the_differentiated_input_is_named_or_refused() -> None:
    class Diffusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.layer(z) * t[:, None]

    batch = {"t": torch.rand(6, dtype=torch.float64), "z": X.double()}
    with pytest.raises(rs.UsageError, match=r'2 inputs could be diff.*differentiate="t" or differentiate="z"'):
        rs.jacobian_rank(Diffusion(), batch)
    profile = rs.jacobian_rank(Diffusion(), batch, differentiate="z", per_sample="t", cut_points=["layer"])
    assert profile.function_rank == (3,)
    assert "with respect to z" in str(profile)


def test_k7_a_list_is_no_batch() -> None:
    for inputs in ([X], [X, X], (x for x in X), [{"x": X}], [(X, LABELS)]):
        with pytest.raises(rs.UsageError, match=r"each a sample or a batch of them; give one tensor .*torch\.stack"):
            next(read_samples(LINEAR, inputs))


def test_k7_a_pair_for_a_model_of_two_inputs() -> None:
    other = torch.randn(6, 4)

    def made(inputs: Any, **options: Any) -> Tensor:
        return torch.cat([call_model(Two(), s, s.x) for s in read_samples(Two(), inputs, **options)])

    for pair in ((X, other), [X, other], {"a": X, "b": other}):
        with pytest.raises(rs.UsageError, match='differentiate="a" or differentiate="b"'):
            next(read_samples(Two(), pair))
        assert torch.equal(made(pair, differentiate="a", per_sample="b"), X * other)
        assert torch.equal(made(pair, differentiate="b", per_sample="a"), X * other)
        assert torch.equal(xs(read_samples(Two(), pair, differentiate="b", per_sample="a")), other)
    # of a data set each item is one call, so both belong to the sample; what follows is a label
    three = TensorDataset(X, other, LABELS)
    for data in (TensorDataset(X, other), three, DataLoader(three, batch_size=4)):
        assert torch.equal(made(data, differentiate="a"), X * other)


def test_a_label_that_could_be_an_argument() -> None:
    data = TensorDataset(X, LABELS)
    with pytest.raises(rs.UsageError, match=r"item 2 of each sample may be a label or an argument of Calls, .*'t'"):
        next(read_samples(Calls(), data))
    with pytest.raises(rs.UsageError, match=r"item 2 of each sample may be a label .*takes \*args"):
        next(read_samples(Anything(), data))
    masked = read_samples(Masked(), data)  # a mask cannot be one integer per sample
    assert not next(masked).extra
    reason = "one integer or text per sample is a label, which attn_mask cannot be"
    assert masked.facts() == (Fact(FactKind.INPUT_LEFT_OUT, {"name": "item 2", "reason": reason}),)
    with pytest.raises(rs.UsageError, match="item 2 of each sample may be a label or an argument"):
        next(read_samples(Masked(), TensorDataset(X, X)))  # but it may have the shape of its input


def test_a_position_that_the_caller_names_is_an_argument() -> None:
    scale = torch.rand(6)
    expected = X * scale[:, None]

    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
            x = x if scale is None else x * scale.reshape(-1, 1)
            return x if mask is None else x @ mask

    def made(inputs: Any, **options: Any) -> Tensor:
        return torch.cat([call_model(Scaled(), s, s.x) for s in read_samples(Scaled(), inputs, **options)])

    for inputs in ((X, scale), TensorDataset(X, scale), DataLoader(TensorDataset(X, scale), batch_size=4)):
        with pytest.raises(rs.UsageError, match=r"item 2 .* or name 'scale' in shared or per_sample if it is an arg"):
            made(inputs)
        assert torch.equal(made(inputs, per_sample=("scale",)), expected)
    mask = torch.randn(4, 4)
    assert torch.equal(
        made((X, scale, mask), per_sample=("scale",), shared=("mask",)), torch.cat([x[None] @ mask for x in expected])
    )
    with pytest.raises(rs.UsageError, match="item 2 of each sample may be a label"):  # what is named is not item 2
        made((X, LABELS, mask), shared=("mask",))


def test_one_number_a_sample_is_read_where_the_first_dimension_counts_for_certain() -> None:
    class Timed(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x * torch.sin(t).reshape(-1, 1)

    t = torch.rand(6)
    items = [{"x": x, "t": one} for x, one in zip(X, t, strict=True)]
    given = rs.jacobian_rank(Timed(), {"x": X, "t": t}, differentiate="t", per_sample=("x", "t"), progress=False)
    loaded = rs.jacobian_rank(Timed(), DataLoader(items, batch_size=4), differentiate="t", progress=False)
    for profile in (given, loaded):
        # d/dt x·sin t = x·cos t: one column
        norms = [float(s.singular_values[0]) for s in profile.layers[-1].spectra if s is not None]
        assert profile.columns.count == 1
        assert norms == pytest.approx((X * torch.cos(t)[:, None]).norm(dim=1).tolist(), rel=1e-5)  # some eps32
    with pytest.raises(rs.DataError, match=r"""give x\[None\] for one sample, or per_sample=\("t",\) if each"""):
        next(read_samples(Timed(), {"x": X, "t": t}, differentiate="t", per_sample=("x",)))
    lone = nn.Unflatten(0, (-1, 1))
    assert rs.jacobian_rank(lone, t, per_sample=("input",), progress=False).columns.count == 1
    with pytest.raises(rs.DataError, match=r"""has shape \(6,\); .* or per_sample=\("input",\)"""):
        next(read_samples(lone, t))


def test_two_samples_in_a_tuple_are_no_pair() -> None:
    with pytest.raises(rs.UsageError, match="the input is a tuple of 2 for a model of one argument"):
        next(read_samples(LINEAR, (X, X)))


# ---- what is refused -------------------------------------------------------------------------------------------------

HIDDEN = np.ma.masked_array(np.ones((3, 4)), mask=np.eye(3, 4) * [1, 1, 0, 0])

REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "objects": (
        np.array([None, "a"], dtype=object),
        rs.DataError,
        r"array of objects \(shape \(2,\)\), not numbers",
    ),
    "texts in an array": (np.array(["a", "b"]), rs.DataError, "an array of text"),
    "complex tensor": (X + 1j, rs.DataError, "dtype torch.complex64; give real inputs"),
    "complex array": ((X + 1j).numpy(), rs.DataError, "torch.complex64; give real inputs"),
    "integers": (X.long(), rs.DataError, "dtype torch.int64, which cannot be differentiated"),
    "bytes": (X.abs().byte(), rs.DataError, "dtype torch.uint8, which cannot be differentiated"),
    "booleans": (X > 0, rs.DataError, "dtype torch.bool, which cannot be differentiated"),
    "sparse": (X.to_sparse(), rs.DataError, "sparse or quantised; give a dense tensor"),
    "no sample": (np.zeros((0, 4)), rs.DataError, r"the input is empty \(shape \(0, 4\)\)"),
    "no value": (torch.zeros(3, 0), rs.DataError, r"shape \(3, 0\): a sample without a value"),
    "no batch dimension": (torch.zeros(4), rs.DataError, r"shape \(4,\); its first dimension counts samples"),
    "nothing": ([], rs.DataError, "there is no sample to measure"),
    "empty mapping": ({}, rs.DataError, "no floating-point input to differentiate in the input"),
    "a text": ("a sentence", rs.UsageError, "the input is a text; tokenise it"),
    "None": (None, rs.UsageError, "the input is a NoneType; give a tensor"),
    "texts": (["a", "b"], rs.DataError, "a list holds a str, not tensors"),
    "splits": (
        {"train": Pairs(), "test": Pairs()},
        rs.UsageError,
        "the input is a dict of train, test; give one of them",
    ),
    "items without numbers": (Bare(["a"]), rs.DataError, "sample 0 is a str, not numbers"),
    "not finite": ({"input": torch.full((2, 4), torch.nan)}, rs.DataError, "sample 0 has 4 NaN or infinite values"),
    "meta": (X.to("meta"), rs.DataError, "the input is on the meta device and holds no numbers"),
    "meta in a mapping": ({"input": X.to("meta")}, rs.DataError, "'input' is on the meta device"),
    "meta in items": ([(X[0].to("meta"), 1)], rs.DataError, "sample 0 is on the meta device"),
    "fake": (FakeTensorMode().from_tensor(torch.zeros(3, 4)), rs.DataError, "holds no numbers; give a tensor with"),
    "nested": (torch.nested.nested_tensor([X[0], X[1]]), rs.DataError, r"a nested tensor; give .* \(x.unbind\(\)\)"),
    "jagged": (torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged), rs.DataError, "is a nested tensor"),
    "nested in a mapping": ({"input": torch.nested.nested_tensor([X[0]])}, rs.DataError, "'input' is a nested tensor"),
    "masked array": (HIDDEN, rs.DataError, "the input: 2 entries of this masked array are hidden"),
    "masked items": ([(HIDDEN[0], 1)], rs.DataError, "sample 0: 1 entries of this masked array are hidden"),
    "masked tensor": (masked_tensor(X, X > 0), rs.DataError, "the input is a masked tensor; give a plain one"),
    "eight bits": (X.to(torch.float8_e4m3fn), rs.DataError, "float8_e4m3fn, which torch only stores; convert it"),
    "packed": (pack_sequence([X, X[:1]]), rs.DataError, r"is a PackedSequence; give .* \(unpack_sequence\(x\)\)"),
    "ragged": ([[1.0, 2.0], [3.0]], rs.UsageError, "a list of lists, each a sample or a batch"),
}


@pytest.mark.parametrize(("inputs", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_gets_one_line(inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        list(read_samples(LINEAR, inputs))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("measure", [rs.jacobian_rank, rs.feature_rank, rs.local_feature_rank, rs.layers])
@pytest.mark.parametrize("as_mapping", [True, False])
def test_the_only_input_cannot_be_shared(measure: Any, as_mapping: bool) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3)), torch.ones(1, 4)
    with pytest.raises(rs.UsageError, match="'input' is in shared, and no other input is left whose rows count"):
        measure(net, {"input": x} if as_mapping else x, shared="input")


class OneBuffer(Dataset[Any]):
    """A data set that fills the same memory for every sample, a mask beside it too."""

    def __init__(self) -> None:
        self.x, self.mask = torch.zeros(4), torch.zeros(4)

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        if i >= len(X):
            raise IndexError(i)
        self.x[:], self.mask[:] = X[i], float(i)
        return {"x": self.x, "t": self.mask}


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        items = OneBuffer()
        return (items[i] for i in range(len(items)))


@pytest.mark.parametrize("inputs", [OneBuffer(), Streamed(), DataLoader(Streamed(), batch_size=None)])
def test_samples_that_a_data_set_writes_into_one_buffer_are_apart(inputs: Any) -> None:
    found = list(read_samples(Calls(), inputs, differentiate="x"))
    assert torch.equal(torch.cat([one.x for one in found]), X)
    assert [float(one.extra["t"].flatten()[0]) for one in found] == [float(i) for i in range(len(X))]


def test_ranks_of_one_buffer_are_those_of_each_sample() -> None:
    """Samples wait for others that share their pass."""

    class Gated(nn.Module):
        def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
            return LINEAR(x).relu()

    found = rs.jacobian_rank(Gated(), OneBuffer(), cut_points="output", columns="all", differentiate="x")
    alone = [rs.jacobian_rank(Gated(), X[i : i + 1], cut_points="output", columns="all") for i in range(len(X))]
    for i, one in enumerate(alone):
        expected = one.layers[0].spectra[0].singular_values
        np.testing.assert_allclose(found.layers[0].spectra[i].singular_values, expected, rtol=1e-5, atol=1e-6)
