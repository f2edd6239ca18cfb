"""Downloads that fail at once, with the remedy, where there is no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

from rankscope._base.errors import NotFetchedError, RankscopeError, type_and_line

__all__ = ["download", "unreachable"]


@contextmanager
def download(what: str, *, remedy: str, host: str | None = None) -> Iterator[None]:
    """Around a step that may download: what fails inside becomes one ``NotFetchedError`` saying what to do instead.

    ``what`` names the thing in the message, ``remedy`` is the sentence on what to do instead. Where ``host``'s name
    does not resolve, the Hugging Face client is set offline meanwhile: cached files still load, and a missing one
    fails at once instead of after six tries (24–48 s).
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    if unreachable(host or urlparse(constants.ENDPOINT).hostname or "huggingface.co"):
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    except RankscopeError:
        raise
    except Exception as error:
        raise NotFetchedError(f"{what} could not be fetched ({type_and_line(error)})", remedy) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def unreachable(host: str) -> bool:
    """True when ``host``'s name does not resolve and no proxy would resolve it for us."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return True
    return False
