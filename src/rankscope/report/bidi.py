"""Names in scripts that run from right to left, inside sentences that do not."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from rankscope._base.text import one_line

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["isolated"]

# a run from the first to the last letter of such a script, with what is between them
_RUN = re.compile(
    r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc](?:[^<>()\[\],;:]*[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc])?"
)


def isolated(value: object) -> Markup:
    """A text on one line as markup; what runs from right to left does not turn the numbers and names around it.

    >>> print(isolated("a < b"), isolated("שכבה (2)"))
    a &lt; b <bdi>שכבה</bdi> (2)
    """
    from markupsafe import Markup, escape

    text = one_line(value)
    parts, end = [], 0
    for run in _RUN.finditer(text):
        if any(unicodedata.bidirectional(c) in ("R", "AL") for c in run[0]):
            parts += [escape(text[end : run.start()]), Markup("<bdi>{}</bdi>").format(run[0])]
            end = run.end()
    return Markup("").join([*parts, escape(text[end:])])
