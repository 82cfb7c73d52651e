"""Sphinx configuration: markdown pages, a built-in theme, nothing from the network."""

from __future__ import annotations

import hvcore

project = "hvcore"
author = "the hvcore authors"
copyright = "the hvcore authors"  # noqa: A001 - the name Sphinx reads
version = release = hvcore.__version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "examples"]
nitpicky = True

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "alabaster"
html_title = f"hvcore {release}"
html_static_path: list[str] = []
html_theme_options = {
    "description": "Drive virtual machines on a host without libvirt and without a daemon.",
    "fixed_sidebar": True,
    "page_width": "1100px",
}
