"""Arguments that are containers of tensors: read sample by sample as a loader would, against float64 rows of each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import rankscope as rs
from rankscope._base.facts import FactKind, of_kind

torch.manual_seed(0)
X, GATES, PARTS = torch.randn(4, 6), torch.tensor([1.0, 0.0, 2.0, 0.0]), torch.randn(4, 6, 6)
FIVE = torch.tensor([1.0, 1, 1, 1, 1, 0])


class Conditioned(nn.Module):
    """``cond["y"]`` lets five rows of a layer pass or none; ``cond["parts"][0]`` has a row for each sample too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.end, self.fc = nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 3)

    def forward(self, x: Tensor, cond: dict[str, Any]) -> Tensor:
        h = self.layer(x) * cond["y"].reshape(-1, 1).to(x) * FIVE.to(x)
        return self.fc(self.end(h + 0 * torch.einsum("bij,bj->bi", cond["parts"][0].to(x), x)))


class Records(Dataset[Any]):
    def __init__(self, change: Callable[[Tensor], Any] = lambda t: t) -> None:
        self.change = change

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return {"x": X[i], "cond": {"y": self.change(GATES[i]), "parts": (PARTS[i], "text")}, "label": i % 3}


def of_one(i: int) -> dict[str, Any]:
    return {"y": GATES[i : i + 1], "parts": (PARTS[i : i + 1], "text")}


def model() -> Conditioned:
    torch.manual_seed(1)
    return Conditioned().eval()


def ranks_alone(net: nn.Module) -> list[int]:
    """Reverse mode in float64, one sample a call."""
    wide, kept = copy.deepcopy(net).double(), {}
    wide.end.register_forward_hook(lambda _module, _inputs, made: kept.update(made=made))  # type: ignore[union-attr]
    found = []
    for i in range(4):
        leaf = X[i : i + 1].double().requires_grad_()
        wide(leaf, of_one(i))
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in kept["made"].flatten()]
        found.append(int(torch.linalg.matrix_rank(torch.stack(rows))))
    return found


WHOLE = {"x": X, "cond": {"y": GATES, "parts": (PARTS, "text")}}
READ: dict[str, tuple[Any, dict[str, Any]]] = {
    "a mapping": (WHOLE, {"per_sample": "cond"}),
    "records": (Records(), {}),
    "records of arrays": (Records(lambda t: t.numpy()), {}),
    "records of numbers": (Records(float), {}),
    "a loader": (DataLoader(Records(), batch_size=3), {}),
    "a loader of one": (DataLoader(Records(), batch_size=1), {}),
}


@pytest.mark.parametrize("name", READ)
def test_j3_each_sample_is_called_with_its_own_part_of_a_container(name: str, tmp_path: Path) -> None:
    inputs, options = READ[name]
    net = model()
    profile = rs.jacobian_rank(net, inputs, cut_points=["end"], columns="all", progress=False, **options)
    assert [e.value for e in profile["end"].estimates(profile.tolerance)] == ranks_alone(net) == [5, 0, 5, 0]
    (fact,) = of_kind(profile.facts, FactKind.DIFFERENTIATED)
    if name != "a loader of one":  # of a batch of one everything is its own and shared alike
        assert (fact["per_sample"], fact["shared"]) == (("cond",), ())
    with torch.no_grad():
        kept: list[Tensor] = []
        handle = net.end.register_forward_hook(lambda *call: kept.append(call[2]))
        for i in range(4):
            net(X[i : i + 1], of_one(i))
        handle.remove()
    rows = torch.cat(kept)
    wide = rows.double()
    features = rs.feature_rank(net, inputs, cut_points=["end"], batch_size=3, **options)["end"]
    assert features.pca_dimension == int(torch.linalg.matrix_rank(wide - wide.mean(0)))
    if name.startswith("records"):
        found = rs.collect(net, inputs, out=tmp_path, head="fc", batch_size=3, progress=False)
        torch.testing.assert_close(found.features, rows)
        assert found.labels.tolist() == [0, 1, 2, 0]


def test_j4_a_container_that_could_be_either_is_refused_and_both_spellings_work() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
            return self.layer(x) @ cond["m"]

    matrix = torch.randn(6, 3)
    both = r"'cond' holds 4 values .*shared=\(\"cond\",\) .*per_sample=\(\"cond\",\)"
    with pytest.raises(rs.UsageError, match=both):
        rs.jacobian_rank(model(), WHOLE, progress=False)
    items = [{"x": x, "cond": {"m": matrix}, "label": 0} for x in X]
    for inputs in (items, DataLoader(items, batch_size=4), {"x": X, "cond": {"m": matrix}}):  # type: ignore[arg-type]
        profile = rs.jacobian_rank(Shared().eval(), inputs, shared="cond", cut_points=["output"], progress=False)
        assert [e.value for e in profile["output"].estimates(profile.tolerance)] == [3, 3, 3, 3]
    unlike = [{"x": x, "cond": {"m": matrix + i}, "label": 0} for i, x in enumerate(X)]
    with pytest.raises(rs.UsageError, match="shared names 'cond', which differs between the samples"):
        rs.jacobian_rank(Shared().eval(), DataLoader(unlike, batch_size=4), shared="cond", progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cond", "what"),
    [
        ({"y": GATES, "parts": (PARTS[:3], "text")}, r"holds a tensor of shape \(3, 6, 6\)"),
        ({"y": "a text"}, "is a dict without a tensor"),
        (torch.zeros(3), r"has shape \(3,\)"),
        (torch.tensor(2.0), r"has shape \(\)"),
        ([1.0, 2.0], "is a list without a tensor"),
    ],
)
def test_per_sample_needs_a_row_for_each(cond: Any, what: str) -> None:
    with pytest.raises(rs.UsageError, match=f"per_sample names 'cond', which {what} beside 4 samples of 'x'"):
        rs.jacobian_rank(model(), {"x": X, "cond": cond}, per_sample="cond", progress=False)


LEFT = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]])


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "named tuple": Pair,
    "mapping": lambda a, b: {"left": a, "right": b},
    "nested": lambda a, b: [[a], (b,)],
}


class Scaled(nn.Module):
    """Two factors of a layer's rows: the rank of a sample is the number of entries that neither sets to zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer, self.end = nn.Linear(6, 6), nn.Identity()

    def forward(self, x: Tensor, scales: Any) -> Tensor:
        h = self.layer(x)
        for factor in scales.values() if isinstance(scales, dict) else scales:
            h = h * (factor[0] if isinstance(factor, list | tuple) else factor).to(h)
        return self.end(h)


def scaled_ranks(inputs: Any, **options: Any) -> list[int]:
    profile = rs.jacobian_rank(Scaled().eval(), inputs, cut_points=["end"], columns="all", progress=False, **options)
    return [e.value for e in profile["end"].estimates(profile.tolerance)]


@pytest.mark.parametrize("options", [{}, {"per_sample": "scales"}], ids=["by rule", "named"])
@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_as_many_samples_as_a_container_has_entries(form: str, options: dict[str, Any]) -> None:
    truth = [int(n) for n in (LEFT * RIGHT).count_nonzero(1)]
    assert truth == [1, 3, 2, 4]
    items = [{"x": X[i], "scales": FORMS[form](LEFT[i], RIGHT[i])} for i in range(4)]
    for size in (2, 3):
        assert scaled_ranks(DataLoader(items, batch_size=size), **options) == truth  # type: ignore[arg-type]


def test_values_that_all_samples_of_such_a_batch_share() -> None:
    items = [{"x": x, "scales": [LEFT[1], RIGHT[2]]} for x in X]
    one = int((LEFT[1] * RIGHT[2]).count_nonzero())
    loader: Any = DataLoader(items, batch_size=2)  # type: ignore[arg-type]
    assert scaled_ranks(loader, shared="scales") == [one] * 4


@pytest.mark.parametrize("form", ["list", "tuple", "nested"])
def test_a_list_whose_entries_and_rows_both_count_the_samples_is_refused(form: str) -> None:
    both = r"'scales', a \w+ of 2 entries whose tensors have 2 rows, .*give one tensor .*or a DataLoader"
    with pytest.raises(rs.UsageError, match=both):
        scaled_ranks({"x": X[:2], "scales": FORMS[form](LEFT[:2], RIGHT[:2])}, per_sample="scales")
    # three rows, or fields with names, are read in one way
    assert scaled_ranks({"x": X[:3], "scales": FORMS[form](LEFT[:3], RIGHT[:3])}, per_sample="scales") == [1, 3, 2]
    for named in ("mapping", "named tuple"):
        given = FORMS[named](LEFT[:2], RIGHT[:2])
        assert scaled_ranks({"x": X[:2], "scales": given}, per_sample="scales") == [1, 3]
    # the spellings that the message names; the rank of one tensor is that of one factor
    items: Any = [{"x": X[i], "scales": FORMS[form](LEFT[i], RIGHT[i])} for i in range(2)]
    assert scaled_ranks(DataLoader(items, batch_size=2)) == [1, 3]
    entries = torch.stack([LEFT[0:1], RIGHT[1:2]])  # (samples, 1, 6)
    assert scaled_ranks({"x": X[:2], "scales": entries}, per_sample="scales") == [1, 4]


def test_rows_of_unequal_lengths_beside_such_a_list() -> None:
    class Ragged(nn.Module):
        def forward(self, x: Tensor, scales: Any) -> Tensor:
            return x * scales[0].sum()

    given = {"x": [[1.0, 2.0], [1.0, 2.0, 3.0]], "scales": [LEFT[:2], RIGHT[:2]]}
    with pytest.raises(rs.UsageError, match="its entries or their rows could count the samples"):
        rs.jacobian_rank(Ragged(), given, per_sample="scales", progress=False)


def test_texts_beside_tensors_that_differ_between_the_samples_are_refused() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor, cond: Any) -> Tensor:
            factors = [LEFT[0] if text == "few" else torch.ones(6) for _, text in zip(x, cond["text"], strict=False)]
            return super().forward(x * torch.stack(factors).to(x) * cond["y"][:, None].to(x))

    items: Any = [{"x": X[i], "cond": {"y": torch.tensor(1.0), "text": ["few", "many"][i % 2]}} for i in range(4)]
    net, options = Named(6, 6).eval(), {"cut_points": ["output"], "columns": "all", "progress": False}
    with pytest.raises(rs.UsageError, match=r"'cond' holds texts that differ .*batch_size=1"):
        rs.jacobian_rank(net, DataLoader(items, batch_size=2), **options)
    profile = rs.jacobian_rank(net, DataLoader(items, batch_size=1), **options)
    assert [e.value for e in profile["output"].estimates(profile.tolerance)] == [1, 6, 1, 6]


class Tasks(nn.Module):
    """The text of its container chooses the layer: of rank 1 for "narrow", of rank 4 for "wide"."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 4)
        self.end = nn.Identity()

    def forward(self, x: Tensor, task: Any) -> Tensor:
        name = task["name"] if isinstance(task, dict) else task[0] if isinstance(task, list | tuple) else task
        made = self.wide(x)
        return self.end(made if name == "wide" else made.sum(-1, keepdim=True).expand(-1, 4))


class OfTasks(Dataset[Any]):
    def __init__(self, names: list[str], form: Callable[[str], Any]) -> None:
        self.names, self.form = names, form

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Any:
        return {"x": X[i], "task": self.form(self.names[i])}


TEXTS: dict[str, Callable[[str], Any]] = {
    "a text": lambda name: name,
    "beside a tensor": lambda name: {"name": name, "scale": torch.ones(2)},
    "alone in a mapping": lambda name: {"name": name},
    "in a tuple": lambda name: (name, torch.ones(2)),
    "deep inside": lambda name: {"name": name, "inner": {"tags": ("a", name)}},
}


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_texts_in_shared_are_the_one_text_of_all(form: str, size: int) -> None:
    torch.manual_seed(1)
    net = Tasks()
    for name, rank in (("wide", 4), ("narrow", 1)):  # six inputs, random weights of four rows, and their sum
        loader = DataLoader(OfTasks([name] * 4, TEXTS[form]), batch_size=size)
        found = rs.jacobian_rank(net, loader, cut_points=["end"], shared="task", progress=False)
        assert [e.value for e in found["end"].estimates(found.tolerance)] == [rank] * 4


@pytest.mark.parametrize("form", TEXTS)
def test_texts_in_shared_that_differ_are_refused(form: str) -> None:
    loader = DataLoader(OfTasks(["wide", "narrow", "wide", "narrow"], TEXTS[form]), batch_size=2)
    with pytest.raises(rs.UsageError, match="shared names 'task', which differs between the samples"):
        rs.jacobian_rank(Tasks(), loader, cut_points=["end"], shared="task", progress=False)
