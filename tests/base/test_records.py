"""A record equals itself after a file, whatever values it holds."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

import rankscope as rs
from rankscope._base.encoding import exact, plain, read, same
from rankscope._base.facts import Fact, FactKind, as_facts, of_kind
from rankscope._base.records import Record


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    name: str
    size: int | float = 1
    note: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Sample(Record):
    derived: ClassVar[tuple[str, ...]] = ("doubled",)

    number: float = 1.5
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    parts: tuple[Part, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    either: Part | bool = True
    colour: Colour = Colour.RED
    choice: Literal["left", "right"] = "left"
    maybe: float | None = None
    free: Mapping[str, Any] = field(default_factory=dict)
    by_number: Mapping[int, str] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()

    @property
    def doubled(self) -> float:
        return 2 * self.number


numbers = st.floats(allow_nan=True, allow_infinity=True)
free_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
records = st.builds(
    Sample,
    number=numbers,
    values=arrays.arrays(np.float64, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)),
    counts=arrays.arrays(np.int64, st.integers(0, 100)),
    parts=st.lists(st.builds(Part, st.text(), st.integers() | numbers, st.none() | st.text()), max_size=3).map(tuple),
    pair=st.tuples(st.text(), st.integers()),
    either=st.booleans() | st.builds(Part, st.text()),
    choice=st.sampled_from(["left", "right"]),
    maybe=st.none() | numbers,
    free=st.dictionaries(st.text(), free_values, max_size=4),
    by_number=st.dictionaries(st.integers(), st.text(), max_size=3),
    facts=st.lists(
        st.builds(Fact, st.sampled_from(FactKind), st.dictionaries(st.text(), free_values), st.booleans()), max_size=2
    ).map(tuple),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=records)
def test_a_record_equals_itself_after_a_file(record: Sample, tmp_path: Path) -> None:
    again = Sample.load(record.save(tmp_path / "one.json"))
    assert again == record
    assert hash(again) == hash(record)
    for one in dataclasses.fields(Sample):
        assert type(getattr(again, one.name)) is type(getattr(record, one.name))
    assert again.values.tobytes() == record.values.tobytes() or np.isnan(record.values).any()
    json.dumps(record.to_dict(), allow_nan=False)
    json.dumps(exact(record), allow_nan=False)


def test_records_differ_where_a_field_does() -> None:
    one = Sample(values=np.array([1.0, math.nan]))
    assert one == Sample(values=np.array([1.0, math.nan]))
    assert one != Sample(values=np.array([1.0, 2.0]))
    assert one != Sample(values=np.array([1.0]))
    assert Sample(maybe=math.nan) == Sample(maybe=math.nan)
    assert Sample(maybe=math.nan) != Sample(maybe=None)
    assert Sample(pair=("a", 1)) != Sample(pair=("a", 2))
    assert Sample() != "a record"


def test_numpy_scalars_and_lists_in_free_values_come_back_equal(tmp_path: Path) -> None:
    fact = Fact(FactKind.NOTE, {"text": "x", "size": np.int64(3), "share": np.float32(0.5), "names": ["a", ["b"]]})
    assert fact.values == {"text": "x", "size": 3, "share": 0.5, "names": ("a", ("b",))}
    again = Sample.load(Sample(number=np.float64(2.5), facts=(fact,)).save(tmp_path / "r.json"))
    assert again == Sample(number=2.5, facts=(fact,))


def test_plain_values_hold_what_is_derived_and_no_nan() -> None:
    found = Sample(number=math.inf, values=np.array([1.0, math.nan])).to_dict()
    assert found["kind"] == "sample"
    assert found["number"] is None
    assert found["values"] == [1.0, None]
    assert found["doubled"] is None
    assert Sample(number=2.0).to_dict()["doubled"] == 4.0


def test_a_file_that_is_not_the_record_is_refused(tmp_path: Path) -> None:
    file = Sample().save(tmp_path / "r.json")
    data = json.loads(file.read_text())
    del data["checksum"]  # which a file of an earlier version has not
    for change, words in [
        ({"kind": "other"}, "kind 'other'"),
        ({"schema_version": 9}, "schema_version 9"),
        ({"record": {**data["record"], "number": "five"}}, "damaged"),
        ({"record": {**data["record"], "colour": "blue"}}, "damaged"),
        ({"record": {**data["record"], "choice": "up"}}, "damaged"),
    ]:
        file.write_text(json.dumps(data | change))
        with pytest.raises(rs.OutputError, match=words):
            Sample.load(file)
    file.write_text("{")
    with pytest.raises(rs.OutputError, match="cannot be read"):
        Sample.load(file)
    file.write_text(Sample().to_json())
    with pytest.raises(rs.OutputError, match="what save\\(\\) wrote"):
        Sample.load(file)
    with pytest.raises(rs.OutputError, match="cannot be read"):
        Sample.load(tmp_path / "absent.json")
    with pytest.raises(rs.OutputError, match="cannot write"):
        Sample().save(tmp_path / "absent" / "r.json")


def test_whole_numbers_stay_whole() -> None:
    assert type(read(int | float, 3)) is int
    assert type(read(float | int, 3.5)) is float
    with pytest.raises(ValueError, match="whole number"):
        read(int, 3.5)
    with pytest.raises(TypeError, match="number belongs"):
        read(float, True)
    with pytest.raises(TypeError, match="no form in JSON"):
        plain(object())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "bool"])
def test_arrays_keep_their_type(dtype: str) -> None:
    for size in (3, 200):
        array = np.arange(size).astype(dtype)
        again = read(Any, json.loads(json.dumps(exact(array))))
        assert again.dtype == array.dtype
        assert same(again, array)
        assert not again.flags.writeable


def test_facts_are_values_and_not_words() -> None:
    facts = as_facts(["one", Fact(FactKind.NO_GRAPH, caution=True)])
    assert [f.kind for f in facts] == [FactKind.NOTE, FactKind.NO_GRAPH]
    assert as_facts("whole") == (Fact("note", {"text": "whole"}),)
    assert of_kind(facts, FactKind.NO_GRAPH)[0].caution
    assert len({*facts, *facts}) == 2
    with pytest.raises(ValueError, match="'rumour' is not a valid FactKind"):
        Fact("rumour")
