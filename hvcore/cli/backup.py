"""``hv backup`` and ``hv checkpoint``: the disks of a running instance, copied as they are at one moment."""

from __future__ import annotations

import click

from hvcore.cli.amount import read_amount
from hvcore.cli.duration import timeout_option
from hvcore.cli.host_path import HostPath
from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.progress_line import ProgressLine
from hvcore.cli.resize import complete_disks
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.cli.stats import amount
from hvcore.model.backup import Checkpoints


@click.command(cls=HvCommand)
@name_argument
@click.option(
    "--to",
    "target",
    required=True,
    type=HostPath(uris=True),
    metavar="DIRECTORY|URI",
    help="Directory for new files; or nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH.",
)
@click.option("--checkpoint", metavar="NAME", help="Keep track of what is written from now on, for the next backup.")
@click.option("--since", metavar="NAME", help="Copy only what was written since this checkpoint.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="UUID",
    shell_complete=complete_disks,
    help="A disk; may be repeated. All when none is given.",
)
@click.option("--bandwidth", metavar="SIZE", callback=read_amount, help="Bytes a second at most, for example 100MiB.")
@click.option("--compress", is_flag=True, help="Compress the files; the copying takes longer.")
@click.option("--tls", metavar="DIRECTORY", type=HostPath(), help="Certificates of a client, for a server.")
@timeout_option
@click.pass_obj
def backup_command(
    session: Session,
    name: str,
    target: str,
    checkpoint: str | None,
    since: str | None,
    disks: tuple[str, ...],
    bandwidth: int,
    compress: bool,
    tls: str | None,
    timeout: float | None,
) -> None:
    """Copy the disks of a running instance, all as they are at one moment, while it runs on.

    A file with the changes only belongs on the file of the checkpoint it is since, and finds that in its directory:
    qemu-img convert makes a whole disk of both. With several disks and a server, {uuid} in the URI stands for the uuid
    of each.
    """
    with session.driver() as driver, ProgressLine() as line:
        taken = driver.backup_instance(
            instance_name(name),
            target,
            disks=disks or None,
            checkpoint=checkpoint,
            since=since,
            bandwidth=bandwidth,
            compress=compress,
            tls=tls,
            on_progress=line,
            timeout=timeout,
        )
    output = session.output()
    if output.as_json:
        output.document(taken)
        return
    for disk in taken.disks:
        on = "" if disk.base is None else f", on {disk.base}"
        output.say(f"{disk.device}: {amount(disk.copied)} of {amount(disk.size)} copied to {disk.location}{on}")
    lost = [disk.device for disk in taken.disks if not disk.lasting]
    if taken.checkpoint is not None and lost:
        output.say(f"checkpoint {taken.checkpoint} ends with this run of the instance for {', '.join(lost)}")


@click.group(name="checkpoint")
def checkpoint_command() -> None:
    """List and delete what incremental backups of a running instance begin from."""


@checkpoint_command.command(cls=HvCommand, name="list")
@name_argument
@click.pass_obj
def list_command(session: Session, name: str) -> None:
    """List the checkpoints of an instance, and how much has been written since."""
    with session.driver() as driver:
        _show(session, driver.list_checkpoints(instance_name(name)))


@checkpoint_command.command(cls=HvCommand, name="delete")
@name_argument
@click.argument("checkpoint")
@timeout_option
@click.pass_obj
def delete_command(session: Session, name: str, checkpoint: str, timeout: float | None) -> None:
    """Delete a checkpoint; the others stay what they are."""
    with session.driver() as driver:
        _show(session, driver.delete_checkpoint(instance_name(name), checkpoint, timeout=timeout))


def _show(session: Session, found: Checkpoints) -> None:
    output = session.output()
    if output.as_json:
        output.document(found)
        return
    rows = [
        (
            checkpoint.name,
            disk.device,
            amount(disk.changed) if disk.usable else "-",
            "yes" if disk.lasting else "no",
            disk.detail or "-",
        )
        for checkpoint in found.checkpoints
        for disk in checkpoint.disks
    ]
    output.table(("checkpoint", "disk", "changed", "lasting", "defect"), rows)
