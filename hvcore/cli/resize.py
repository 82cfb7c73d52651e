"""``hv resize`` and ``hv balloon``: how large a disk, and how much memory, a running instance has."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from hvcore.cli.amount import size_argument
from hvcore.cli.duration import timeout_option
from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session, session_of
from hvcore.cli.waiting import waiting
from hvcore.model.units import format_size


def complete_disks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers where a disk is named: those of the instance that stands before it."""
    try:
        with session_of(ctx).driver() as driver:
            devices = driver.get_instance_info(instance_name(ctx.params["name"]), timeout=1.0).devices
    except Exception:
        # A shell that completes a word has no place for an error; the command will tell.
        return []
    disks = [device for device in devices if device.kind == "disk" and device.uuid.startswith(incomplete)]
    return [CompletionItem(disk.uuid, help=disk.name or disk.source) for disk in disks]


@click.command(cls=HvCommand)
@name_argument
@click.argument("uuid", shell_complete=complete_disks)
@size_argument
@timeout_option
@click.pass_obj
def resize_command(session: Session, name: str, uuid: str, size: int, timeout: float | None) -> None:
    """Grow a disk of a running instance to SIZE, for example 20GiB.

    The image file grows as well. A block device has to be grown first, and a disk on a server at its server.
    'hv hotplug list' shows the uuids.
    """
    with session.driver() as driver:
        result = driver.resize_disk(instance_name(name), uuid, size, timeout=timeout)
    output = session.output()
    if output.as_json:
        output.document(result)
    else:
        output.say(f"{result.device}: {format_size(result.before)} before, {format_size(result.after)} now")


@click.command(cls=HvCommand)
@name_argument
@size_argument
@timeout_option
@click.pass_obj
def balloon_command(session: Session, name: str, size: int, timeout: float | None) -> int:
    """Change how much memory the guest of a running instance has, for example to 512MiB.

    The guest is asked to give memory back, or may take it again. When it has not after --timeout this ends with 4; it
    may still do so later.
    """
    known = instance_name(name)
    with session.driver() as driver:

        def look() -> str:
            has = driver.get_instance_info(known, timeout=1.0).memory
            return f"it has {format_size(has)}, and is asked for {format_size(size)}"

        with waiting(session, "the guest to follow", look):
            result = driver.balloon_instance_memory(known, size, timeout=timeout)
    output = session.output()
    if output.as_json:
        output.document(result)
    elif result.reached == result.requested:
        output.say(f"the guest has {format_size(result.reached)}")
    else:
        output.say(f"the guest has {format_size(result.reached)}; it was asked for {format_size(result.requested)}")
    return ExitStatus.DONE if result.reached == result.requested else ExitStatus.BUSY
