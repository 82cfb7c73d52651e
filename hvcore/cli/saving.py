"""``hv save`` and ``hv restore``: an instance into a file, and out of it."""

from __future__ import annotations

import click

from hvcore.cli.duration import timeout_option
from hvcore.cli.host_path import HostPath
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.lifecycle import show_transition
from hvcore.cli.progress_line import ProgressLine
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.cli.stats import amount


@click.command(cls=HvCommand)
@name_argument
@click.argument("path", metavar="PATH", type=HostPath())
@timeout_option
@click.pass_obj
def save_command(session: Session, name: str, path: str, timeout: float | None) -> None:
    """Save memory and devices of an instance to a file, and stop it. PATH must not exist yet.

    The guest stands still meanwhile. Its disks are not in the file, and must not be written until it is restored.
    """
    with session.driver() as driver, ProgressLine() as line:
        saved = driver.save_instance(instance_name(name), path, on_progress=line, timeout=timeout)
    output = session.output()
    if output.as_json:
        output.document(saved)
    else:
        output.say(f"{saved.name}: saved to {saved.path}, {amount(saved.size)}")


@click.command(cls=HvCommand)
@click.argument("path", metavar="PATH", type=HostPath())
@click.option("--paused", is_flag=True, help="Leave the guest paused.")
@click.option("--force", is_flag=True, help="Also when it was restored before, or its disks have been written since.")
@timeout_option
@click.pass_obj
def restore_command(session: Session, path: str, paused: bool, force: bool, timeout: float | None) -> None:
    """Start an instance from its file, where it was. 'hv save' has written the file.

    The file is checked first, and is restored only once: afterwards the disks have moved on. It stays where it is.
    """
    with session.driver() as driver, ProgressLine() as line:
        transition = driver.restore_instance(path, paused=paused, force=force, on_progress=line, timeout=timeout)
    show_transition(session, transition)
