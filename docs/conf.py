"""The documentation site: ``make docs`` builds it into ``build/site``, without a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "extensions")]

import a2c_compiled  # noqa: E402

project = "a2c_compiled"
release = version = a2c_compiled.__version__
html_title = f"a2c_compiled {release}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "myst_parser",
    "mathml",
    "public_names",
    "drawing",
    "root_files",
    "live_page",
    "site_checks",
]
exclude_patterns = ["inventories", "pictures", "extensions", "static"]
language = "en"
highlight_language = "none"  # blocks that name no language are commands or listings

# Pages
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Fields", "params_style")]

# References. A name that is not found is a warning, and `make docs` turns warnings into errors.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(.*\.)?_\w+"),  # private names in signatures
    ("py:class", r"(torchrl|stable_baselines3|tensordict)\..*"),
]
# The inventories are text, which inventories/make.py writes from a build without them: no build needs a network.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", "inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable/", "inventories/torch.inv"),
    "gymnasium": ("https://gymnasium.farama.org/", "inventories/gymnasium.inv"),
    "numpy": ("https://numpy.org/doc/stable/", "inventories/numpy.inv"),
}

# Theme
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
