"""What a plugin is, in one line, without importing it: from metadata, or from the text of its source."""

from __future__ import annotations

import ast
import importlib.util
import os
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.registry import PluginEntry

_PREFIX = "hvcore"
_MOST_SOURCE = 1 << 20
_LONGEST = 200


def plugin_summary(entry: PluginEntry) -> str:
    """The summary of a plugin; nothing of it is executed.

    The summary of its distribution, if that offers no other plugin; else the first line of the docstring of the object
    that the entry point names, or of its module.

    Args:
        entry: the plugin.

    Returns:
        One line; empty when nothing can be read.
    """
    try:
        distribution = metadata.distribution(entry.distribution)
        names = {point.name for point in distribution.entry_points if point.group.startswith(_PREFIX)}
        general = str(distribution.metadata["Summary"] or "") if "Summary" in distribution.metadata else ""
    except (metadata.PackageNotFoundError, OSError, ValueError):
        names, general = set(), ""
    if len(names) == 1 and general:
        return _line(general)
    return _line(_documented(entry)) or _line(general)


def _line(text: str) -> str:
    """The first line, fit for a terminal."""
    first = text.strip().partition("\n")[0]
    return "".join(character for character in first if character.isprintable())[:_LONGEST]


def _documented(entry: PluginEntry) -> str:
    module, _, attribute = entry.value.partition(":")
    path = _source(module.strip())
    if path is None:
        return ""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(_MOST_SOURCE))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    named = attribute.partition("[")[0].strip()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == named and ast.get_docstring(node):
            return ast.get_docstring(node) or ""
    text = ast.get_docstring(tree) or ""
    # "NIC mode ``user``: QEMU's own network." says its kind and name once more.
    head, colon, rest = text.partition(": ")
    if colon and f"``{entry.name}``" in head and "\n" not in head:
        text = rest[:1].upper() + rest[1:]
    return text.replace("``", "")


def _source(module: str) -> str | None:
    """The file of a module; only the place of its outermost package is looked up, which imports nothing."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if not inner and spec.origin is not None and spec.origin.endswith(".py"):
        return spec.origin
    for folder in spec.submodule_search_locations or ():
        base = os.path.join(folder, *inner)
        for path in (f"{base}.py", os.path.join(base, "__init__.py")):
            if inner and os.path.isfile(path):
                return path
    return None
