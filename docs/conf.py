"""Sphinx configuration: builds without a network, and every warning is an error (`make docs`)."""

import os
import re
from importlib import import_module
from importlib.metadata import version as installed_version

project = "exitkit"
author = "The exitkit contributors"
copyright = "the exitkit contributors"
release = installed_version("exitkit-torch")
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "api/_generated"]
default_role = "literal"  # docstrings use `name` for code, as Markdown does

# -- The API, from the docstrings ------------------------------------------------------------
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
autosummary_generate = False  # the tables link to sections of one page; no stub files
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" of a dataclass must not document its fields twice

# The sections of api.rst. What several of them export is described once, in the narrowest one:
# `exitkit.NeverExit` is `exitkit.policies.NeverExit`, and Sphinx warns about two descriptions.
SECTIONS = (
    "exitkit",
    "exitkit.config",
    "exitkit.errors",
    "exitkit.evaluation.compare",
    "exitkit.evaluation.results",
    "exitkit.heads",
    "exitkit.policies",
    "exitkit.report",
    "exitkit.surgery.spec",
    "exitkit.testing",
    "exitkit.training.tasks",
)


def describe_once(app, what, name, obj, skip, options):
    """Skip a member that a narrower section of api.rst describes, and what pydantic adds."""
    if name == "model_config":
        return True
    here = app.env.current_document.autodoc_module
    origin = getattr(obj, "__module__", None)
    homes = [s for s in SECTIONS if isinstance(origin, str) and f"{origin}.".startswith(f"{s}.")]
    home = max(homes, key=len, default=here)
    elsewhere = home != here and getattr(import_module(home), name, None) is obj
    return True if elsewhere else None


def keep_stars(app, what, name, obj, options, lines):
    """Shapes such as (B, *output) are no emphasis."""
    lines[:] = [re.sub(r"(?<![*\\`\w])\*(?=\w)", r"\\*", line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", keep_stars, priority=900)
    app.connect("autodoc-skip-member", describe_once)


# -- Links to other projects, only on request: the build has to work without a network --------
if os.environ.get("EXITKIT_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

# -- HTML -------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"exitkit {release}"
html_copy_source = False
