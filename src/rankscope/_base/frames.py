"""A table as a value: columns that are equal to themselves after a file, made into pandas when they are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rankscope._base.encoding import frozen
from rankscope._base.records import ByValue

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Column", "Frame"]


@dataclass(frozen=True, eq=False)
class Column(ByValue):
    """A name and its values: an array of numbers or truth values, else a tuple of text, numbers and ``None``."""

    name: str
    values: NDArray[Any] | tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Frame(ByValue):
    """Columns of one length.

    >>> import pandas as pd
    >>> Frame.of(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})).columns[1].values
    ('x', 'y')
    """

    columns: tuple[Column, ...] = ()

    @classmethod
    def of(cls, values: pd.DataFrame) -> Frame:
        """The table without its index."""
        return cls(tuple(Column(str(name), _plain(values[name])) for name in values.columns))

    def pandas(self) -> pd.DataFrame:
        """The table; the same columns give the same types."""
        import pandas as pd

        made = {c.name: pd.Series(c.values, dtype=_dtype(c.values)) for c in self.columns}
        return pd.DataFrame(made, columns=[c.name for c in self.columns])


def _plain(values: pd.Series[Any]) -> NDArray[Any] | tuple[Any, ...]:
    kind = getattr(values.dtype, "kind", "O")
    found = values.to_numpy() if kind in "biuf" and isinstance(values.dtype, np.dtype) else tuple(values.tolist())
    kept: NDArray[Any] | tuple[Any, ...] = frozen(found)
    return kept


def _dtype(values: NDArray[Any] | tuple[Any, ...]) -> Any:
    return values.dtype if isinstance(values, np.ndarray) else object
