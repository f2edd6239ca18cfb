"""Tables as CSV that a spreadsheet shows and does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["csv_text"]

_FORMULA = ("=", "+", "-", "@", "\t")  # a spreadsheet takes a cell that begins so for a formula


def csv_text(table: pd.DataFrame, *, index: bool = False) -> str:
    """The table as CSV; texts that a spreadsheet would run, also names of columns, begin with an apostrophe there.

    Numbers stay as they are, negative ones too. Nothing reads these files back: records are kept as JSON.

    >>> import pandas as pd
    >>> print(csv_text(pd.DataFrame({"layer": ["=cmd()", "conv1"], "log": [-1.5, 2.0]})), end="")
    layer,log
    '=cmd(),-1.5
    conv1,2.0
    """
    safe = table.reset_index() if index else table.copy()
    for place, kind in enumerate(safe.dtypes):
        if getattr(kind, "kind", "O") == "O":
            safe.isetitem(place, safe.iloc[:, place].map(_shown).array)
    safe.columns = [_shown(name) for name in safe.columns]
    text: str = safe.to_csv(index=False)
    return text


def _shown(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\\r")  # the writer leaves it without quotes, and readers take it for the row's end
    return f"'{text}" if text.startswith(_FORMULA) else text
