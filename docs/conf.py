import os
from importlib.metadata import metadata

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import tempbalance  # noqa: F401  fail here, with a traceback, rather than page by page

project = "tempbalance"
author = "the tempbalance contributors"
project_copyright = author

release = metadata("tempbalance")["Version"]
urls = dict(entry.split(", ") for entry in metadata("tempbalance").get_all("Project-URL"))

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_sitemap", "sphinxext.opengraph"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"tempbalance {release}"
# Read the Docs builds one site per version, and says which address it has.
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", f"{urls['Documentation']}/en/latest/")
html_theme_options = {"source_repository": urls["Repository"], "source_branch": "main", "source_directory": "docs/"}
html_static_path = ["pictures/report.png"]
sitemap_url_scheme = "{link}"
ogp_site_url = html_baseurl
ogp_image = "_static/report.png"
ogp_social_cards = {"enable": False}  # the picture is the card

autodoc_mock_imports = ["transformers", "lightning"]  # to read our modules, theirs need not be installed
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Names of other projects, whose inventories would have to be fetched; names inside tempbalance must resolve.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|pandas|pd|plotly|collections|os|pathlib|typing|enum|types)\..*"),
    ("py:.*", r"Tensor|nn\.Module|LoraConfig|Path|Any|Literal|Mapping|Sequence|Callable|Iterator|optional|dtype"),
    ("py:.*", r"Figure|LookupError"),
    ("py:.*", r"(int|float|str|bool|tuple|list|dict|None|ValueError|ImportError|FileNotFoundError)"),
]


def _inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div style="overflow-x: auto">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers show without a script from the network."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
