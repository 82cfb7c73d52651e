"""``hv console``: this terminal on an instance's console."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator

import click

from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.cli.terminal import Ended, connect, converse
from hvcore.driver import Driver
from hvcore.errors import HypervisorError, InstanceNotFound, NotRunning, UnsupportedOperation
from hvcore.model.console import Console
from hvcore.model.instance import Instance

_PICTURES = ("vnc", "spice")
"""Console types whose protocol is no text, also where they are on a socket."""

_END_SECONDS = 3.0
"""How long to wait for the end of a process whose console has closed."""


@click.command(cls=HvCommand)
@name_argument
@click.option("--type", "kind", metavar="TYPE", default="serial", show_default=True, help="Console type.")
@click.pass_obj
def console_command(session: Session, name: str, kind: str) -> None:
    """Attach to the console of an instance.

    Ctrl-] leaves, and the instance runs on. When standard input is not a terminal, it is copied to the console; its
    end does not end the command. With --json, say how to reach the console instead.
    """
    with session.driver() as driver:
        console = driver.get_instance_console(instance_name(name), kind)
        if session.as_json:
            session.output().document(console)
            return
        with _connected(console) as client:
            _attach(driver, console, client)


def start_attached(driver: Driver, instance: Instance, *, paused: bool, timeout: float | None) -> int:
    """Start an instance and attach before its first instruction; without a console it is stopped again."""
    driver.start_instance(instance, paused=True, timeout=timeout)
    with contextlib.ExitStack() as stack:
        try:
            console = driver.get_instance_console(instance.name, "serial")
            client = stack.enter_context(_connected(console))
        except BaseException:
            driver.stop_instance(instance.name, force=True)
            raise
        begin = None if paused else lambda: driver.resume_instance(instance.name)
        _attach(driver, console, client, begin)
    return ExitStatus.DONE


@contextlib.contextmanager
def _connected(console: Console) -> Iterator[socket.socket]:
    if console.socket_path is None or console.kind in _PICTURES:
        place = f"{console.address}:{console.port}" if console.address else console.socket_path or "no address"
        client = " ".join(console.command)
        raise UnsupportedOperation(
            f"a {console.kind} console is not text: it is at {place}",
            instance=console.instance,
            hint=f"attach with: {client}" if client else console.message or None,
        )
    try:
        client_socket = connect(console.socket_path)
    except OSError as error:
        raise NotRunning(
            f"nothing listens on its {console.kind} console: {error.strerror}",
            instance=console.instance,
            hint="'hv info' shows what it is doing",
        ) from error
    with client_socket:
        yield client_socket


def _attach(driver: Driver, console: Console, client: socket.socket, begin: Callable[[], object] | None = None) -> None:
    message = console.message if "Ctrl-]" in console.message else f"Ctrl-] leaves. {console.message}".strip()
    with _process_of(driver, console.instance) as pidfd:
        click.echo(f"The {console.kind} console of {console.instance}. {message}", err=True)
        if begin is not None:
            begin()
        ended = converse(client, sys.stdin.fileno(), sys.stdout.fileno())
        if ended is Ended.CLOSED and pidfd is not None:
            # The console closes a moment before its process ends; only then is it known why.
            select.select([pidfd], [], [], _END_SECONDS)
    click.echo("", err=True)
    click.echo(_why(driver, console.instance, ended), err=True)


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


def _why(driver: Driver, name: str, ended: Ended) -> str:
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
