"""``hv snapshot``: keep what an instance is at a moment, list what is kept, go back to it, give it up."""

from __future__ import annotations

import time

import click
from click.shell_completion import CompletionItem

from hvcore.cli.duration import timeout_option
from hvcore.cli.instance_file import checked_instance, instance_name, is_file, name_argument
from hvcore.cli.lifecycle import show_transition
from hvcore.cli.progress_line import ProgressLine
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session, session_of
from hvcore.model.snapshots import Snapshot


def complete_snapshots(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers where a snapshot is named: those of the instance that stands before it."""
    try:
        with session_of(ctx).driver() as driver:
            known = driver.list_snapshots(instance_name(ctx.params["name"]), timeout=1.0).snapshots
    except Exception:
        # A shell that completes a word has no place for an error; the command will tell.
        return []
    return [CompletionItem(one.name, help=_when(one)) for one in known if one.name.startswith(incomplete)]


_SNAPSHOT = click.argument("snapshot", shell_complete=complete_snapshots)


@click.group(name="snapshot")
def snapshot_command() -> None:
    """Keep what an instance is at a moment, and go back to it.

    A snapshot of an instance that is alive has its disks and its memory; of one that is not, its disks.
    """


@snapshot_command.command(cls=HvCommand, name="create")
@name_argument
@click.argument("snapshot")
@click.option("--memory/--no-memory", default=None, help="With the memory or without; by default if it is alive.")
@click.option("--external", is_flag=True, help="Of its disks, beside their images: raw images, too, can be kept so.")
@timeout_option
@click.pass_obj
def create_command(
    session: Session, name: str, snapshot: str, memory: bool | None, external: bool, timeout: float | None
) -> None:
    """Keep what an instance is at this moment. It goes on as what it was.

    For an instance that is not alive, NAME has to be its file. An external snapshot leaves the images as they are:
    what is written from now on goes to overlays beside them, until the snapshot is deleted.
    """
    with session.driver() as driver, ProgressLine() as line:
        instance = checked_instance(driver, name) if is_file(name) else name
        taken = driver.create_snapshot(
            instance,
            snapshot,
            memory=memory,
            external=external,
            on_progress=line,
            timeout=timeout,
        )
    output = session.output()
    if output.as_json:
        output.document(taken)
    else:
        what = "disks and memory" if taken.memory else "disks"
        output.say(f"{instance_name(name)}: snapshot {taken.name} of its {what}")


@snapshot_command.command(cls=HvCommand, name="list")
@name_argument
@click.pass_obj
def list_command(session: Session, name: str) -> None:
    """List the snapshots of an instance, the oldest first."""
    with session.driver() as driver:
        listing = driver.list_snapshots(instance_name(name))
    output = session.output()
    if output.as_json:
        output.document(listing)
        return
    rows = [
        (one.name, _when(one), one.state.value, "yes" if one.memory else "no", str(len(one.disks)), _kind(one))
        for one in listing.snapshots
    ]
    output.table(("name", "taken", "state", "memory", "disks", "kind"), rows)


@snapshot_command.command(cls=HvCommand, name="revert")
@name_argument
@_SNAPSHOT
@timeout_option
@click.pass_obj
def revert_command(session: Session, name: str, snapshot: str, timeout: float | None) -> None:
    """Make an instance again what it was when a snapshot was taken. What it has been since is lost.

    With memory it goes on from there, started for it if it is not alive. Without, its disks are what they were, and it
    must not be alive.
    """
    with session.driver() as driver, ProgressLine() as line:
        transition = driver.revert_snapshot(instance_name(name), snapshot, on_progress=line, timeout=timeout)
    show_transition(session, transition)


@snapshot_command.command(cls=HvCommand, name="delete")
@name_argument
@_SNAPSHOT
@timeout_option
@click.pass_obj
def delete_command(session: Session, name: str, snapshot: str, timeout: float | None) -> None:
    """Give up a snapshot. The instance and its other snapshots stay what they are.

    What was written since an external one is written into the images below its overlays, while the guest runs on.
    """
    with session.driver() as driver, ProgressLine() as line:
        gone = driver.delete_snapshot(instance_name(name), snapshot, on_progress=line, timeout=timeout)
    output = session.output()
    if output.as_json:
        output.document(gone)
    else:
        output.say(f"{instance_name(name)}: snapshot {gone.name} deleted")


def _kind(snapshot: Snapshot) -> str:
    if not snapshot.external:
        return "internal"
    return "external" if snapshot.revertible else "external, half deleted"


def _when(snapshot: Snapshot) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.created))
