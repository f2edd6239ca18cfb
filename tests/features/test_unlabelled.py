"""What ``collect`` reads without labels, and what it says of records: as the other rooms read the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, StackDataset, TensorDataset

import rankscope as rs
from rankscope._base.facts import FactKind

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))


class Switched(nn.Module):
    """A text chooses the function, and a shift is added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, shift: Tensor | None = None, mode: str = "tanh") -> Tensor:
        hidden = self.first(x) if shift is None else self.first(x) + shift
        return self.fc(torch.tanh(hidden) if mode == "tanh" else torch.relu(hidden))


class Records(Dataset[dict[str, Any]]):
    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {name: column[i] for name, column in self.columns.items()}


@pytest.fixture
def net() -> Switched:
    return Switched().eval()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


READERS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: X,
    "array": lambda: X.numpy(),
    "numbers": lambda: X.tolist(),
    "tuple": lambda: (X,),
    "pair": lambda: (X, None),
    "mapping": lambda: {"x": X},
    "another name": lambda: {"image": X},
    "data set": lambda: TensorDataset(X),
    "data set of tensors": lambda: torch.utils.data.Subset(X, range(10)),  # type: ignore[arg-type]
    "records": lambda: Records(x=X),
    "records of numbers": lambda: Records(x=X.tolist()),
    "stacked": lambda: StackDataset(x=X),
    "loader": lambda: DataLoader(TensorDataset(X), batch_size=4),
    "loader of records": lambda: DataLoader(Records(x=X), batch_size=4),
}


@pytest.mark.parametrize("data", READERS.values(), ids=READERS)
def test_every_reader_collects_without_labels(net: Switched, out: Path, data: Callable[[], Any]) -> None:
    found = rs.collect(net, data(), out=out, cut_points=[])
    with torch.no_grad():
        expected = net(X)
    # sums of six and five terms of order one in float32, in batches of another size
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-6)
    assert found.labels.tolist() == [-1] * 10


@pytest.mark.parametrize("tuples", [False, True])
def test_named_arguments_of_a_tuple_are_no_labels(net: Switched, out: Path, tuples: bool) -> None:
    shift, labels = torch.randn(5), torch.arange(10) % 3
    found = rs.collect(net, (X, shift, labels) if tuples else (X, shift), out=out, cut_points=[], shared="shift")
    with torch.no_grad():
        torch.testing.assert_close(found.logits, net(X, shift), rtol=1e-5, atol=1e-6)
    assert found.labels.tolist() == (labels.tolist() if tuples else [-1] * 10)


def test_a_text_that_forward_takes_is_passed_on(net: Switched, out: Path) -> None:
    modes = ["relu", "relu", "tanh", "relu", "relu", "tanh", "tanh", "tanh", "relu", "relu"]
    data = Records(x=X, mode=modes, label=list(range(10)), caption=["a picture"] * 10, weight=X.tolist())
    with torch.no_grad():
        expected = torch.cat([net(X[i : i + 1], mode=modes[i]) for i in range(10)])
    for k, source in enumerate((data, DataLoader(data, batch_size=4))):
        found = rs.collect(net, source, out=out / str(k), cut_points=[])
        torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-6)
        assert found.labels.tolist() == list(range(10))
        assert [f.values["name"] for f in found.facts if f.kind is FactKind.INPUT_LEFT_OUT] == ["caption", "weight"]
        (read,) = (f for f in found.facts if f.kind is FactKind.COUNTED)
        assert (tuple(read.values["per_sample"]), tuple(read.values["shared"])) == (("mode",), ())
    profile = rs.jacobian_rank(net, data, columns="all", progress=False)
    (read,) = (f for f in profile.facts if f.kind is FactKind.DIFFERENTIATED)
    assert (tuple(read.values["per_sample"]), tuple(read.values["shared"])) == (("mode",), ())


class Told(Switched):
    """What a record says in a container changes the function."""

    def forward(self, x: Tensor, how: Any = None, tags: Any = ("plain",)) -> Tensor:
        hidden = torch.tanh(self.first(x))
        if isinstance(how, dict):
            hidden = hidden * how.get("scale", 1.0)
            hidden = -hidden if how.get("mode") == "negative" else hidden
        if tags is not None and "twice" in tags:
            hidden = 2 * hidden
        return self.fc(hidden if tags is not None else hidden.abs())


TOLD: dict[str, tuple[Callable[[int], dict[str, Any]], tuple[str, ...]]] = {
    "text": (lambda i: {"how": {"mode": ("negative", "positive")[i % 3 == 0]}}, ("how",)),
    "text beside numbers": (lambda i: {"how": {"mode": "negative", "scale": torch.tensor([i + 1.0])}}, ()),
    "texts beside numbers": (lambda i: {"how": {"mode": ("a", "negative")[i // 5], "scale": torch.ones(1)}}, ()),
    "a number": (lambda i: {"how": {"scale": 1.0 + i // 4}}, ("how",)),
    "texts": (lambda i: {"tags": ["a", ("b", "twice")[i // 4 % 2]]}, ("tags",)),
    "a tuple": (lambda i: {"tags": ("twice",)}, ("tags",)),
    "no texts": (lambda i: {"tags": []}, ("tags",)),
    "nothing": (lambda i: {"tags": None}, ("tags",)),
    "the default": (lambda i: {"how": None}, ()),
}


@pytest.mark.parametrize("pairs", [False, True], ids=["records", "pairs"])
@pytest.mark.parametrize("told", TOLD)
def test_what_forward_takes_beside_numbers_reaches_it(told: str, pairs: bool, out: Path) -> None:
    say, each = TOLD[told]
    net = Told().eval()

    class Saying(Dataset[Any]):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, i: int) -> Any:
            record = {"x": X[i], **say(i)}
            return (record, i) if pairs else {**record, "label": i}

    with torch.no_grad():
        expected = torch.cat([net(X[i : i + 1], **say(i)) for i in range(10)])
    for size in (1, 4):
        found = rs.collect(net, Saying(), out=out / str(size), cut_points=[], batch_size=size)
        torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-6)
        assert found.labels.tolist() == list(range(10))
        named = {name for f in found.facts if f.kind is FactKind.COUNTED for name in f.values["per_sample"]}
        assert set(each) <= named <= {"how", "tags"}
        assert FactKind.INPUT_LEFT_OUT not in [f.kind for f in found.facts]


def test_an_object_that_forward_takes_is_refused(out: Path) -> None:
    data = Records(x=X, how=[object()] * 10, label=list(range(10)))
    with pytest.raises(rs.DataError, match=r"samples cannot be put into one batch .*found <class 'object'>"):
        rs.collect(Told(), data, out=out, cut_points=[])


def test_what_may_be_the_label_is_not_left_out(net: Switched, out: Path) -> None:
    with pytest.raises(rs.DataError, match=r"records hold x, species, so no label; .*or leave 'species' out"):
        rs.collect(net, Records(x=X, species=list(range(10))), out=out / "records", cut_points=[])
    for species in (list("abcdefghij"), torch.arange(10)):
        with pytest.raises(rs.UsageError, match=r"dict of x, species, so no label"):
            rs.collect(net, {"x": X, "species": species}, out=out, cut_points=[])
    numbers = torch.rand(10)
    # the last two are what NumPy refuses
    for k, extra in enumerate((torch.randn(10, 2), numbers, numbers.bfloat16(), numbers.clone().requires_grad_())):
        found = rs.collect(net, {"x": X, "extra": extra}, out=out / str(k), cut_points=[])
        assert [f.values["name"] for f in found.facts if f.kind is FactKind.INPUT_LEFT_OUT] == ["extra"]


def test_tensors_that_may_be_samples_or_batches_are_refused(net: Switched, out: Path) -> None:
    for given in (list(X), [X[0], X[1]]):
        with pytest.raises(rs.UsageError, match=r"the input is a list of tensors .*each a sample or a batch"):
            rs.collect(net, given, out=out)
    with pytest.raises(rs.UsageError, match=r"a tuple of Tensor, Tensor, Tensor for a model of 1 input; give \(inputs"):
        rs.collect(net, (X, torch.arange(10), torch.arange(10)), out=out)
