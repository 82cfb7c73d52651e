"""``hv console``: this terminal on an instance's console, or reading along."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator

import click

from hvcore.cli.attachment import PICTURES, attached, successor, words_for
from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.reading_along import ConsoleLog, read_along, show
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.cli.terminal import Ended, converse
from hvcore.driver import Driver
from hvcore.errors import HypervisorError, InstanceNotFound, InvalidParameters
from hvcore.model.console import Console
from hvcore.model.instance import Instance

_END_SECONDS = 3.0
"""How long to wait for the end of a process whose console has closed."""


@click.command(cls=HvCommand)
@name_argument
@click.option("--type", "kind", metavar="TYPE", default=None, help="Console type; the first text console if not given.")
@click.option("--log", is_flag=True, help="Show what the guest wrote, as far as it is kept, and end.")
@click.option("--follow", is_flag=True, help="With --log: go on reading along.")
@click.option("--watch", is_flag=True, help="Read along from now on, beside whoever is attached.")
@click.option("--take-over", is_flag=True, help="Make whoever is attached go, and take its place.")
@click.option("--resume", is_flag=True, help="Let a paused instance run, once attached.")
@click.option("--web", is_flag=True, help="Show the screen in a browser of this host, once; prints the address.")
@click.option(
    "--novnc", metavar="PATH", default="/usr/share/novnc", show_default=True, help="With --web: where noVNC is."
)
@click.pass_obj
def console_command(
    session: Session,
    name: str,
    kind: str | None,
    log: bool,
    follow: bool,
    watch: bool,
    take_over: bool,
    resume: bool,
    web: bool,
    novnc: str,
) -> None:
    """Attach to the console of an instance.

    Ctrl-] leaves, and the instance runs on. When standard input is not a terminal, it is copied to the console; its
    end does not end the command. With --json, say how to reach the console instead.

    A text console takes one client at a time. Any number may read along with --watch, or --log --follow: what the
    guest writes is kept, and they cannot type.

    With --web, noVNC shows the screen in a browser; the instance needs params.vnc.websocket and a password, which
    becomes a random one that soon expires.
    """
    if follow and not log:
        raise click.UsageError("--follow goes with --log.")
    if (log or watch) and (take_over or resume):
        raise click.UsageError("--take-over and --resume are for attaching, not for reading along.")
    if web and (log or watch or take_over or resume):
        raise click.UsageError("--web stands alone.")
    with session.driver() as driver:
        console = _console(driver, instance_name(name), (kind or "vnc") if web else kind)
        if session.as_json:
            session.output().document(console)
        elif web:
            from hvcore.cli.web_console import serve

            with _process_of(driver, console.instance) as pidfd:
                serve(driver, console, novnc, pidfd)
        elif log or watch:
            _read(driver, console, from_start=log, follow=watch or follow)
        else:
            replace = (lambda: driver.disconnect_console(console.instance, console.kind)) if take_over else None
            begin = (lambda: driver.resume_instance(console.instance)) if resume else None
            with attached(console, replace) as client:
                _attach(driver, console, client, begin)


def start_attached(driver: Driver, instance: Instance, *, paused: bool, timeout: float | None) -> int:
    """Start an instance and attach before its first instruction; without a console it is stopped again."""
    driver.start_instance(instance, paused=True, timeout=timeout)
    with contextlib.ExitStack() as stack:
        try:
            console = _console(driver, instance.name, None)
            client = stack.enter_context(attached(console))
        except BaseException:
            driver.stop_instance(instance.name, force=True)
            raise
        begin = None if paused else lambda: driver.resume_instance(instance.name)
        _attach(driver, console, client, begin)
    return ExitStatus.DONE


_TEXT = ("serial", "pty", "virtconsole")
"""Console types that are text, the most usual first."""


def _console(driver: Driver, name: str, kind: str | None) -> Console:
    """The console of a type, or the first text console the instance offers.

    Raises:
        InvalidParameters: it does not offer that type.
    """
    if kind is not None:
        return driver.get_instance_console(name, kind)
    first = driver.get_instance_console(name)
    for text in _TEXT if first.kind in PICTURES else ():
        with contextlib.suppress(InvalidParameters):
            return driver.get_instance_console(name, text)
    return first


def _read(driver: Driver, console: Console, *, from_start: bool, follow: bool) -> None:
    with ConsoleLog(console) as log, _process_of(driver, console.instance) as pidfd:
        if not from_start:
            log.skip()
        if not follow:
            show(log, sys.stdout.fileno())
            return
        click.echo(f"Reading along with the {console.kind} console of {console.instance}. Ctrl-] leaves.", err=True)
        left = read_along(
            log,
            sys.stdin.fileno(),
            sys.stdout.fileno(),
            pidfd,
            lambda: driver.get_instance_console(console.instance, console.kind),
        )
    click.echo("", err=True)
    click.echo(_why(driver, console, Ended.LEFT if left else Ended.CLOSED), err=True)


def _attach(driver: Driver, console: Console, client: int, begin: Callable[[], object] | None = None) -> None:
    message = console.message if "Ctrl-]" in console.message else f"Ctrl-] leaves. {console.message}".strip()
    with _process_of(driver, console.instance) as pidfd:
        click.echo(f"The {console.kind} console of {console.instance}. {message}", err=True)
        if begin is not None:
            begin()
        ended = converse(client, sys.stdin.fileno(), sys.stdout.fileno())
        taken = None
        if ended is Ended.CLOSED:
            # Who takes a console over has connected before we are made to go.
            taken = successor(console, client)
            if taken is None and pidfd is not None:
                # The console closes a moment before its process ends; only then is it known why.
                select.select([pidfd], [], [], _END_SECONDS)
    click.echo("", err=True)
    if taken is not None:
        click.echo(f"The console was taken over by {words_for(taken)}; {console.instance} runs on.", err=True)
    else:
        click.echo(_why(driver, console, ended), err=True)


@contextlib.contextmanager
def _process_of(driver: Driver, name: str) -> Iterator[int | None]:
    """A descriptor that becomes readable when the instance's process ends; ``None`` when there is none to be had."""
    pid = driver.get_instance_info(name).pid
    if pid is None:
        yield None
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        # It ended just now, or belongs to a user whose processes we may not see.
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def _why(driver: Driver, console: Console, ended: Ended) -> str:
    name = console.instance
    if ended is Ended.LEFT:
        return f"Left the console; {name} runs on."
    try:
        info = driver.get_instance_info(name)
    except InstanceNotFound:
        return f"The console closed: {name} is gone."
    except HypervisorError as error:
        return f"The console closed; what became of {name} is not known: {error.message}"
    detail = info.reason.detail or info.reason.cause.value
    return f"The console closed: {name} is {info.state.value} ({detail})."
