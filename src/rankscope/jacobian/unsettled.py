"""Samples that were swept and of which nothing was decided yet.

Whether a sweep stands is read from the device, which has to be through with it. So the question is put off until the
next sample is at hand: while the device works, the host makes that one ready.
"""

from __future__ import annotations

from collections.abc import Callable

from rankscope.jacobian.finish import Finished

__all__ = ["Unsettled"]


class Unsettled:
    """Call it to get one ``Finished`` a sample; ``settle`` decides before, and once.

    ``decide`` may sweep the sample again, so it has to come before the next sample's sweep. What it raises is raised
    again by every later call: it has taken apart what the sweep left, and cannot decide a second time.
    """

    def __init__(self, decide: Callable[[], Callable[[], list[Finished]]]) -> None:
        self._decide: Callable[[], Callable[[], list[Finished]]] | None = decide
        self._finished: Callable[[], list[Finished]] | None = None
        self._raised: BaseException | None = None

    def settle(self) -> None:
        if self._raised is not None:
            raise self._raised
        if self._decide is None:
            return
        try:
            self._finished = self._decide()
        except BaseException as error:  # also Ctrl-C
            self._raised = error
            raise
        finally:
            self._decide = None  # it holds what the sweep left on the device

    def __call__(self) -> list[Finished]:
        self.settle()
        assert self._finished is not None
        return self._finished()
