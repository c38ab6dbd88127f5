"""How `make docs` builds the site from the Markdown of this folder."""

import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "qzhou"
release = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]["version"]
extensions = ["myst_parser", "site_links"]
exclude_patterns = ["_ext"]

nitpicky = True
# GitHub colours more languages than Pygments, and pieces of JSON
suppress_warnings = ["misc.highlighting_failure"]
myst_heading_anchors = 3  # [a link](page.md#a-heading) is checked, as GitHub names headings
smartquotes = False  # quotes stand in settings, which are copied

html_theme = "furo"
html_title = f"qzhou {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = html_show_sphinx = html_copy_source = False

linkcheck_timeout = 20
