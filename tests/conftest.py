"""What every test shares: one thread, a fixed seed, and the small networks of ``networks``."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from threadpoolctl import threadpool_limits

import rankscope
from rankscope._base.facts import Fact
from rankscope.views.sentences import sentence

# On small matrices two threads wait for each other longer than they work, and a loaded machine makes that four times
# slower. Processes that a test starts inherit the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
threadpool_limits(1)
sys.path.insert(0, str(Path(__file__).parent))  # for `import networks`

# Importing torch and what stands on it takes longer than most tests that need another process. A server that has
# imported it starts once and runs nothing, so it holds no thread and no group; a process is a fork of it.
multiprocessing.set_forkserver_preload(
    ["torch.distributed", "rankscope.features", "rankscope.jacobian", "rankscope.metrics"]
)

# The same examples in every run, so that a change and not the day decides whether the suite passes. New examples are
# sought on purpose: HYPOTHESIS_PROFILE=explore make test
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.random.set_rng_state(state)


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """The process of a command ends with it, and leaves signals to the system. That of a test runs the next one."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def _every_fact_has_words() -> Iterator[None]:
    """Every fact that the package makes in any test is rendered at once: a value that its sentence needs is there."""
    home = Path(rankscope.__file__).parent
    made = Fact.__init__

    def rendered(self: Fact, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        maker = Path(sys._getframe(1).f_code.co_filename)
        # what is read back from a file holds whatever a test put into it
        if maker.is_relative_to(home) and maker.name != "encoding.py":
            sentence(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fact, "__init__", rendered)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
