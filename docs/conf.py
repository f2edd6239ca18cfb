"""How the documentation is built: ``make docs``. Every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import rankscope  # noqa: E402

project = "rankscope"
author = "the rankscope authors"
version = release = rankscope.__version__
copyright = "the rankscope authors, MIT licence"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands",
    "mathml",
    "notebooks",
    "public_names",
    "titles",
]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}  # notebooks become Markdown when they are read
exclude_patterns = ["_ext"]
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 3

napoleon_numpy_docstring = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 90

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"rankscope {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False}
