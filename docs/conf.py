"""How the documentation becomes a site: `python -m sphinx --fail-on-warning docs build/site`. It needs no network."""

import re
from importlib.metadata import version as version_of

from docutils import nodes
from docutils.parsers.rst.roles import register_canonical_role
from sphinx.domains.python import PyXRefRole

project = "trackmetrics"
author = "the authors of trackmetrics"
version = release = version_of("trackmetrics")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images"]
nitpicky = True  # a type in a signature that leads nowhere is a warning

myst_heading_anchors = 3  # `page.md#a-heading`, as the pages read in a repository have it
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]  # the README's excerpt of a file; that code is right, the tests say

# The libraries of the extras aren't needed for the site, and give the same one where they are installed.
autodoc_mock_imports = ["accelerate", "lightning", "pytorch_lightning", "transformers"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "__init__, __new__, __eq__"}
napoleon_use_ivar = True  # attributes are fields of their class, no entries of their own
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # what a docstring has between backticks is code; only some of it has a place of its own
    ("py:class", r"(torch|np|npt|os|collections|datetime|pathlib)\..*|Figure"),  # the site knows no other site
    ("py:class", r"(.*\.)?(_Function|_Item|OptionValues|Counted)"),  # only the type checker's
]

html_theme = "furo"
html_title = f"trackmetrics {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def code(name, rawtext, text, lineno, inliner, options=None, content=None):
    """What stands between single backticks: code, and where it is a name that the reference has, a link there."""
    if re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", text):
        target = f".{text}" if text[0].isupper() else text  # a class or an error of any module
        return _reference("py:obj", rawtext, target, lineno, inliner, options or {}, content or [])
    return [nodes.literal(rawtext, text)], []


_reference = PyXRefRole()
default_role = "code"


def setup(app):
    """Sphinx calls it before it reads the pages."""
    register_canonical_role("code", code)
