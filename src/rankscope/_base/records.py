"""``Record``: what every result is. It words and draws nothing itself: it hands arrays and facts to ``views``."""

from __future__ import annotations

import html
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from rankscope._base.checks import path_of
from rankscope._base.command import said
from rankscope._base.encoding import exact, plain, read, same
from rankscope._base.errors import OutputError, RankscopeError
from rankscope._base.json_files import read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["ByValue", "Record"]


class ByValue:
    """Base of frozen dataclasses with ``eq=False`` that hold arrays: equal when their fields are, NaN to itself."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return same(self, other)

    def __hash__(self) -> int:
        # text alone: numbers of two types may be equal, and arrays have no hash
        values = (getattr(self, f.name) for f in fields(self) if f.compare)  # type: ignore[arg-type]
        return hash((type(self), *(v for v in values if isinstance(v, str))))


class Record(ByValue):
    """Base of the results: frozen dataclasses, declared with ``@dataclass(frozen=True, eq=False, repr=False)``.

    Two records are equal when their fields are: arrays entry by entry, NaN equal to itself. What ``save`` wrote,
    ``load`` gives back equal. The types of the fields must be importable at run time.

    A subclass defines ``table`` and ``plot`` and, for its printed form, ``__str__``. ``derived`` names properties that
    ``to_dict`` gives beside the fields.
    """

    schema_version: ClassVar[int] = 1
    derived: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def kind_name(cls) -> str:
        """What files of this record say they hold.

        >>> class TwoWords(Record): ...
        >>> TwoWords.kind_name()
        'two_words'
        """
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the fields and what is derived from them; what is not finite is ``None``."""
        made = {"schema_version": self.schema_version, "kind": self.kind_name()}
        made |= {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.init}  # type: ignore[arg-type]
        return made | {name: plain(getattr(self, name)) for name in self.derived}

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Write one JSON file, with a checksum, from which ``load`` makes an equal record; returns its path.

        Raises ``OutputError`` when it cannot be written.
        """
        made = {"schema_version": self.schema_version, "kind": self.kind_name(), "record": exact(self), **said()}
        target = path_of(path, "path")
        write_json(target, made)
        return target

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read back what ``save`` wrote.

        Raises ``OutputError`` when the file is missing, damaged, of another kind or of a later version.
        """
        data = read_json(path_of(path, "path"), version=cls.schema_version, kind=cls.kind_name())
        if "record" not in data:
            raise OutputError(f"{str(path)!r} holds what to_dict() gives; load reads what save() wrote")
        try:
            found: Self = read(cls, data["record"])
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
            RankscopeError,
        ) as error:
            raise OutputError(f"the {cls.kind_name()} in {str(path)!r} is damaged: {error}") from error
        return found

    def table(self) -> pd.DataFrame:
        """The numbers as rows."""
        raise NotImplementedError

    def plot(self) -> Axes | Any:
        """A figure: matplotlib Axes, or an array of them."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        # what is wider than the page scrolls: notebooks wrap the lines of a table otherwise
        return f'<pre style="white-space: pre; overflow-x: auto">{html.escape(str(self))}</pre>'
