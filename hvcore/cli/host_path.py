"""A path on the command line."""

from __future__ import annotations

import os

import click


class HostPath(click.ParamType[str]):
    """A file or directory of this host, made absolute.

    An empty one is refused: a variable of a script that is not set would otherwise name the current directory.

    Args:
        uris: what has a scheme, as in ``nbd://``, is taken as it is.
    """

    name = "path"

    def __init__(self, *, uris: bool = False) -> None:
        self._uris = uris

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Make it absolute."""
        if not value:
            self.fail("it is empty, and names nothing", param, ctx)
        return value if self._uris and "://" in value else os.path.abspath(value)
