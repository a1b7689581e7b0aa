"""Builds the documentation: `python -m sphinx -W docs build/docs`."""

import pathlib
import sys

_HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(_HERE / 'extensions'))

project = 'bn_research'
author = 'The authors of bn_research'
project_copyright = f'2026, {author}'

extensions = [
  'config_keys',
  'docstrings',
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.doctest',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
exclude_patterns = ['generated/*', 'template/README.md']

# Docstrings use `single` backticks for code, and the pages use Markdown.
default_role = 'code'
myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 3

autodoc_default_options = {'no-value': True}  # A table of parts is long.
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # The docstrings give types, shapes and units.
napoleon_attr_annotations = False
napoleon_use_rtype = False

smartquotes = False  # Quotes in docstrings are quotes of Python.

html_theme = 'furo'
html_title = 'bn_research'
