"""Sizes on the command line."""

from __future__ import annotations

import click

from hvcore.model.units import parse_size


def read_amount(context: click.Context, option: click.Parameter, text: str | None) -> int:
    """Read a size such as ``512MiB`` or ``20GB``, in bytes; 0 when none is given."""
    if text is None:
        return 0
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from error


size_argument = click.argument("size", metavar="SIZE", callback=read_amount)
"""How large something is to be."""
