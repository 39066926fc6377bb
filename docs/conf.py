"""Sphinx: Markdown pages by MyST, the reference from NumPy docstrings; `sphinx-build -W docs build/docs`."""

import inspect
from importlib import metadata

project = "tqann"
author = "the tqann authors"
release = metadata.version("tqann")

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


def _constructor(app, what, name, obj, options, signature, returned):  # noqa: ARG001 - given by Sphinx
    """The signature of a class whose base is mocked, of which autodoc sees the mock's alone."""
    if what != "class" or signature != "(*args, **kwargs)" or "__init__" not in vars(obj):
        return None
    parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare)), returned


def setup(app):
    """Sphinx's entry point of this file."""
    app.connect("autodoc-process-signature", _constructor)
