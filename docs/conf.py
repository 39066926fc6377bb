"""Sphinx: Markdown pages by MyST, the reference from NumPy docstrings; `sphinx-build -W docs build/docs`."""

from importlib.metadata import version

project = "tqann"
author = "the tqann authors"
release = version("tqann")

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
html_theme = "furo"
html_title = f"tqann {release}"
exclude_patterns = ["build"]
nitpicky = False

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have them
# The reference is built without what only running needs.
autodoc_mock_imports = [
    "cuda",
    "langchain_core",
    "llama_index",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
    "triton",
]
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
