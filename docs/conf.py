"""Sphinx: the guide and the reference; `python -m sphinx -W -b html docs site` builds them, warnings as errors."""

import manycore

project = "manycore"
author = "The manycore developers"
copyright = "The manycore developers"
release = version = manycore.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "manycore"
html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Process-safety", "If a process dies", "Memory effects"]

# A reference to a name of ours must resolve; the standard library's are not looked up, as that needs a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!manycore).*"), ("py:.*", r"manycore\._.*")]
