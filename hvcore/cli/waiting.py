"""Saying on standard error that something waits, for people who would wonder."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import click

from hvcore.cli.output import printable
from hvcore.cli.session import Session

AFTER = 1.0
"""Seconds after which it is said that something waits, and between two looks."""
_CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def waiting(session: Session, what: str, look: Callable[[], str] | None = None) -> Iterator[None]:
    """Say what is waited for, when it takes longer than a moment; nothing with ``--json``.

    Args:
        session: the session of the command.
        what: what is waited for.
        look: asked again and again how far it is, for a terminal's line that goes at the end. It may fail.
    """
    if session.as_json:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_say, args=(over, what, look), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _say(over: threading.Event, what: str, look: Callable[[], str] | None) -> None:
    if over.wait(AFTER):
        return
    if look is None or not sys.stderr.isatty():
        click.echo(printable(f"waiting for {what}"), err=True)
        return
    while not over.is_set():
        try:
            found = f": {look()}"
        except Exception:
            # It is for people only; what went wrong with the operation itself is its error.
            found = ""
        click.echo(_CLEAR + printable(f"waiting for {what}{found}"), err=True, nl=False)
        over.wait(AFTER)
    click.echo(_CLEAR, err=True, nl=False)
