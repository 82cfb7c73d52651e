"""How ``hv`` shows errors: on standard error, for people or as JSON; never a traceback unless asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from hvcore.cli.output import printable
from hvcore.errors import HypervisorError
from hvcore.findings import FindingSet


def show_error(error: HypervisorError, *, as_json: bool) -> None:
    """Show an error of hvcore or a driver: what, where, every finding, and what to do."""
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}, indent=2, default=str), err=True)
        return
    first, *more = error_lines(error)
    show_message(first)
    for line in more:
        click.echo(printable(line), err=True)


def show_usage_error(error: click.ClickException, *, as_json: bool) -> None:
    """Show what is wrong with the command line."""
    if as_json:
        content = {"code": "usage", "type": type(error).__name__, "message": error.format_message()}
        click.echo(json.dumps({"error": content}, indent=2), err=True)
    else:
        error.show()


def show_interrupt(error: BaseException, *, as_json: bool) -> None:
    """Show that it was interrupted, and what is then."""
    # click raises an exception of its own in place of the one that has the notes.
    notes = [note for one in (error.__cause__, error) for note in getattr(one, "__notes__", ())]
    if as_json:
        content = {"code": "interrupted", "type": "KeyboardInterrupt", "message": "interrupted", "notes": notes}
        click.echo(json.dumps({"error": content}, indent=2), err=True)
        return
    show_message("interrupted")
    for note in notes:
        click.echo(printable(f"  note: {note}"), err=True)


def show_bug(error: Exception, *, as_json: bool, debug: bool) -> None:
    """Show an error that should not have been possible."""
    message = f"{type(error).__name__}: {error}"
    hint = "this is a bug of hvcore or a plugin; run the command again with --debug and report what it shows"
    if as_json:
        content = {"code": "bug", "type": type(error).__name__, "message": message, "hint": hint}
        click.echo(json.dumps({"error": content}, indent=2), err=True)
    else:
        show_message(message)
        click.echo(f"  hint: {hint}", err=True)
    if debug:
        show_traceback(error)


def show_traceback(error: BaseException) -> None:
    """Show where an error came from."""
    import traceback

    click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def show_message(text: str) -> None:
    """Show one line that something went wrong."""
    click.echo(f"{click.style('hv: error:', fg='red', bold=True)} {printable(text)}", err=True)


def error_lines(error: HypervisorError) -> Iterator[str]:
    """An error for people: one line what and where, its findings one a line, further notes, and the hint."""
    where = f"instance {error.instance}: " if error.instance else ""
    doing = f" (driver {error.driver}, {error.operation})" if error.driver and error.operation else ""
    yield f"{where}{error.message}{doing} [{error.code}]"
    findings = getattr(error, "findings", None)
    if isinstance(findings, FindingSet):
        for finding in findings:
            yield f"  - {finding}"
    for note in error.notes:
        yield f"  note: {note}"
    if error.outcome == "unknown":
        yield "  it may have happened: look with 'hv info' before you try again"
    if error.hint:
        yield f"  hint: {error.hint}"
