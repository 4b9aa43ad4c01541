"""The site: ``make docs`` builds it without a network. Pages are the Markdown of this folder; see CONTRIBUTING.md."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ["TQDM_DISABLE"] = "1"  # tutorials show what they print, not their progress
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import lightning_prune

project = "lightning-prune"
author = "The lightning-prune developers"
project_copyright = author
release = version = lightning_prune.__version__

extensions = [
    "_site.api",
    "_site.links",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_site"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "py:obj"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autosummary_generate = False
autodoc_inherit_docstrings = False  # Lightning's hooks are explained by Lightning
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

if os.environ.get("DOCS_ONLINE"):  # types become links to other projects' pages
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
    }

sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "reset_modules": ("matplotlib",),
    "capture_repr": ("_repr_html_", "__repr__"),
    "plot_gallery": "True",
}

html_theme = "furo"
html_title = "lightning-prune"
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
