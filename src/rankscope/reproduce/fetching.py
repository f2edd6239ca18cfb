"""Pretrained weights that this machine lacks: all of them at once, with where to get each and what to call it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rankscope._base.errors import ModelError, parameter
from rankscope.loading import pretrained_choice, unreachable

__all__ = ["check_fetchable", "how_to_fetch", "is_kept"]

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def check_fetchable(wanted: Iterable[tuple[str, str, str]]) -> None:
    """Raise where pretrained weights are neither kept on this machine nor to be had from where they lie.

    ``wanted`` are (name, spec, file name without suffix). Nothing is downloaded.

    Raises
    ------
    ModelError
        Naming every network that lacks its weights.
    """
    lacking = [one for one in wanted if not is_kept(one[1])]
    hosts = {_host(spec) for _, spec, _ in lacking}
    away = sorted(host for host in hosts if unreachable(host))
    if away:
        names = ", ".join(name for name, _, _ in lacking)
        raise ModelError(
            f"pretrained weights of {names} are not on this machine, and {' and '.join(away)} cannot be reached; "
            f"{how_to_fetch(lacking)}"
        )


def how_to_fetch(lacking: Iterable[tuple[str, str, str]]) -> str:
    """What to fetch for each of (name, spec, file name without suffix), and where to put it."""
    steps = "; ".join(f"{name}: {_step(spec)} as {stem}.pth" for name, spec, stem in lacking)
    return (
        f"on a machine with access, {steps}. Put the files into a folder and give {parameter('weights', 'FOLDER')}, or "
        f"leave networks out with {parameter('only')}"
    )


def is_kept(spec: str) -> bool:
    """Whether the pretrained weights are in the local caches, or need none; True where only a download can tell.

    >>> is_kept("some/net.py:factory"), is_kept("hf:nobody/has-this")
    (True, False)
    """
    source, name = _parts(spec)
    if source == "torchvision":
        import torch

        return (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(_url(name)).path).name).is_file()
    if source == "hf":
        return Path(name).expanduser().is_dir() or _in_hub_cache(name, ("config.json",))
    if source == "timm" and ":" not in name:
        from timm.models import get_pretrained_cfg

        config: Any = get_pretrained_cfg(name)
        if config is None or not config.hf_hub_id:
            return True
        return _in_hub_cache(config.hf_hub_id, (config.hf_hub_filename or _HUB_FILES[0], *_HUB_FILES))
    return True


def _in_hub_cache(repository: str, files: Iterable[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def _parts(spec: str) -> tuple[str, str]:
    """Source and name; a bare name is timm's, all that is neither has no weights to fetch."""
    source, colon, name = spec.partition(":")
    if colon and source in ("timm", "torchvision", "hf"):
        return source, name
    return ("timm", spec) if not colon and spec != "digits" else ("", spec)


def _url(name: str) -> str:
    return str(pretrained_choice(name).url)


def _host(spec: str) -> str:
    from huggingface_hub import constants

    source, name = _parts(spec)
    return urlparse(_url(name) if source == "torchvision" else constants.ENDPOINT).hostname or ""


def _step(spec: str) -> str:
    source, name = _parts(spec)
    if source == "torchvision":
        return f"fetch {_url(name)}"
    if source == "timm":
        return f"save timm.create_model('{name}', pretrained=True).state_dict()"
    return f"save the state dict of {name}"
