"""Sphinx configuration: ``sphinx-build -W -b html docs <out>`` with celery-delay installed."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.ext.napoleon.docstring import GoogleDocstring

import celery_delay

# "When it is due: an instant" is a sentence, not a type with a description.
GoogleDocstring._parse_attribute_docstring = lambda self: list(self._consume_to_end())

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "celery-delay"
author = "The celery-delay authors"
copyright = "the celery-delay authors; Apache-2.0"
version = release = celery_delay.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "delay_directives",
    "report_directives",
]
exclude_patterns = ["_build", "reports"]
# A reference to something of ours that does not exist fails the build.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!celery_delay\.).*")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

highlight_language = "text"

html_theme = "alabaster"
html_theme_options = {
    "description": "Delayed Celery tasks that live in Redis and reach their queue exactly once",
    "fixed_sidebar": True,
    "page_width": "1140px",
    "sidebar_width": "250px",
}
html_show_sourcelink = False
