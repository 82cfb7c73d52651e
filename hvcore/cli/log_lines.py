"""What a driver or an extension logs while a command runs, as lines for people."""

from __future__ import annotations

import logging

import click

from hvcore.cli.failure import show_traceback
from hvcore.cli.output import printable
from hvcore.cli.session import Session


class LogLines(logging.Handler):
    """Shows warnings on standard error, one line each; where they came from only on request.

    Args:
        session: says whether tracebacks are wanted.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(logging.WARNING)
        self._session = session

    def emit(self, record: logging.LogRecord) -> None:
        """Show one."""
        error = record.exc_info[1] if record.exc_info else None
        cause = "" if error is None else f": {getattr(error, 'message', error)}"
        click.echo(printable(f"hv: {record.levelname.lower()}: {record.getMessage()}{cause}"), err=True)
        if error is not None and self._session.debug:
            show_traceback(error)
