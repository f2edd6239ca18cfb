"""Metadata that is made on build: the README as a package index shows it, where a relative link leads nowhere.

``repository`` of ``[tool.hatch.metadata.hooks.custom]`` in ``pyproject.toml`` is the address of the public sources.
With it, links and pictures of the README lead to the files of this version there, and ``Source``, ``Issues`` and
``Changelog`` are among the project's URLs. Without it, links of the README to files are their words alone and
pictures are left out: a package has no link that is dead.
"""

from __future__ import annotations

import re
from pathlib import Path

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ModuleNotFoundError:  # the functions below are tested where hatchling is not installed
    MetadataHookInterface = object

# [text](target) and ![text](target) with a target that is no address and no place of the page itself
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|mailto:|#)([^()\s]+)\)")
PAPER = "https://proceedings.neurips.cc/paper_files/paper/2022/hash/d5cd70b708f726737e2ebace18c3f71b-Abstract-Conference.html"


class CustomMetadataHook(MetadataHookInterface):
    """What hatchling calls for ``dynamic = ["readme", "urls"]``."""

    def update(self, metadata: dict) -> None:
        repository = self.config.get("repository", "")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        readme = index_readme(text, repository, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
        metadata["urls"] = urls(repository)


def index_readme(text: str, repository: str, tag: str) -> str:
    """The README with links to the files of ``tag`` under ``repository``, or without links to files.

    >>> index_readme("![A](a.png) and [the guide](b.md#c)", "https://host/x", "v1")
    '![A](https://host/x/raw/v1/a.png) and [the guide](https://host/x/blob/v1/b.md#c)'
    >>> index_readme("![A](a.png) and [the guide](b.md#c), [there](https://d)", "", "v1")
    ' and the guide, [there](https://d)'
    """

    def made(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if repository:
            kind = "raw" if picture else "blob"
            return f"{picture}[{words}]({repository.rstrip('/')}/{kind}/{tag}/{target})"
        return "" if picture else words

    return _LINK.sub(made, text)


def urls(repository: str) -> dict[str, str]:
    """The project's addresses."""
    base = repository.rstrip("/")
    own = {"Source": base, "Issues": f"{base}/issues", "Changelog": f"{base}/blob/main/CHANGELOG.md"} if base else {}
    return {**own, "Paper": PAPER}
