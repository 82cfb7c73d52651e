"""Durations on the command line."""

from __future__ import annotations

import click

from hvcore.model.units import parse_seconds


def read_duration(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Read a duration such as ``30s`` or ``2min``, in seconds."""
    if text is None:
        return None
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from error


timeout_option = click.option(
    "--timeout", metavar="DURATION", callback=read_duration, help="How long to wait, for example 30s."
)
"""How long an operation may take."""
