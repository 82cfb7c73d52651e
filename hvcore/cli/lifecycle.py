"""``hv start``, ``stop``, ``reboot``, ``pause``, ``resume``, ``recover`` and ``cleanup``."""

from __future__ import annotations

from typing import Literal

import click

from hvcore.cli.duration import timeout_option
from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import (
    checked_instance,
    complete_instances,
    file_argument,
    instance_name,
    is_file,
    name_argument,
)
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.model.state import Transition


@click.command(cls=HvCommand)
@file_argument
@click.option("--paused", is_flag=True, help="Leave the guest paused before its first instruction.")
@click.option("--console", is_flag=True, help="Attach to the serial console, and see its first byte.")
@timeout_option
@click.pass_obj
def start_command(session: Session, file: str, paused: bool, console: bool, timeout: float | None) -> int:
    """Start an instance from its file; afterwards it runs, or nothing of the attempt is left."""
    if console and session.as_json:
        raise click.UsageError("--console and --json do not go together.")
    with session.driver() as driver:
        instance = checked_instance(driver, file)
        if console:
            from hvcore.cli.console import start_attached

            return start_attached(driver, instance, paused=paused, timeout=timeout)
        transition = driver.start_instance(instance, paused=paused, timeout=timeout)
    show_transition(session, transition)
    return ExitStatus.DONE


@click.command(cls=HvCommand)
@name_argument
@click.option("--force", is_flag=True, help="Do not ask the guest.")
@click.option("--no-escalate", is_flag=True, help="When the guest does not power off in time, leave it running.")
@click.option("--retry", is_flag=True, help="An earlier request ran out of time: ask the guest again at once.")
@timeout_option
@click.pass_obj
def stop_command(
    session: Session, name: str, force: bool, no_escalate: bool, retry: bool, timeout: float | None
) -> None:
    """Stop an instance and release everything it holds.

    The guest is asked to power off; when it has not after --timeout, it is stopped by force. It is no error when the
    instance is not running.
    """
    if force and no_escalate:
        raise click.UsageError("--force and --no-escalate do not go together.")
    with session.driver() as driver:
        transition = driver.stop_instance(
            instance_name(name), force=force, timeout=timeout, retry=retry, escalate=not no_escalate
        )
    show_transition(session, transition)


@click.command(cls=HvCommand)
@name_argument
@click.option("--soft", "mode", flag_value="soft", help="Power off gracefully, start again (default).")
@click.option("--hard", "mode", flag_value="hard", help="Stop by force, start again.")
@click.option("--reset", "mode", flag_value="reset", help="Press the reset button.")
@timeout_option
@click.pass_obj
def reboot_command(
    session: Session, name: str, mode: Literal["soft", "hard", "reset"] | None, timeout: float | None
) -> None:
    """Restart an instance; with its FILE, it starts again from this new definition."""
    with session.driver() as driver:
        instance = checked_instance(driver, name) if is_file(name) else name
        transition = driver.reboot_instance(instance, mode=mode or "soft", timeout=timeout)
    show_transition(session, transition)


@click.command(cls=HvCommand)
@name_argument
@timeout_option
@click.pass_obj
def pause_command(session: Session, name: str, timeout: float | None) -> None:
    """Pause an instance: its virtual CPUs stop, its memory stays."""
    with session.driver() as driver:
        transition = driver.pause_instance(instance_name(name), timeout=timeout)
    show_transition(session, transition)


@click.command(cls=HvCommand)
@name_argument
@timeout_option
@click.pass_obj
def resume_command(session: Session, name: str, timeout: float | None) -> None:
    """Let a paused instance run."""
    with session.driver() as driver:
        transition = driver.resume_instance(instance_name(name), timeout=timeout)
    show_transition(session, transition)


@click.command(cls=HvCommand)
@name_argument
@timeout_option
@click.pass_obj
def cleanup_command(session: Session, name: str, timeout: float | None) -> None:
    """Forget an instance that is not alive: its records, addresses and history."""
    with session.driver() as driver:
        transition = driver.cleanup_instance(instance_name(name), timeout=timeout)
    show_transition(session, transition)


@click.command(cls=HvCommand)
@click.argument("name", metavar="[NAME|FILE]", required=False, shell_complete=complete_instances)
@timeout_option
@click.pass_obj
def recover_command(session: Session, name: str | None, timeout: float | None) -> int:
    """Put in order what a killed program left half done.

    One instance, or all of them, stopped ones too. Ends with 1 when something could not be put in order.
    """
    output = session.output()
    with session.driver() as driver:
        found = driver.recover(instance_name(name) if name else None, timeout=timeout).instances
    if output.as_json:
        output.document({"instances": found})
    else:
        for one in found:
            output.say(f"{one.name}: {one.operation} {one.outcome}; {one.detail}")
        if not found:
            output.say("nothing was half done")
    return ExitStatus.FAILED if any(one.outcome == "failed" for one in found) else ExitStatus.DONE


def show_transition(session: Session, transition: Transition) -> None:
    """Say what an operation did."""
    output = session.output()
    if output.as_json:
        output.document(transition)
        return
    detail = transition.detail or "done"
    after = transition.after.value if transition.after else detail
    output.say(f"{transition.name}: {detail}{'' if after == detail else f'; now {after}'}")
