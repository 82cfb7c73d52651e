"""``hv migrate``: move a running instance to another host, where ``hv`` is run through ssh."""

from __future__ import annotations

import ipaddress
import tomllib
from typing import Any

import click

from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import LIMIT, instance_name, name_argument
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.errors import InvalidParameters
from hvcore.findings import Finding, FindingSet
from hvcore.model.migration import MigrationResult
from hvcore.model.units import format_seconds


@click.command(cls=HvCommand)
@name_argument
@click.option("--to", "transport", required=True, metavar="TRANSPORT", help="ssh://[USER@]HOST[:PORT] or exec:COMMAND.")
@click.option("--address", metavar="IP", help="IP address of the other host for memory; the one ssh uses if not given.")
@click.option("--policy", "policy_file", type=click.Path(), metavar="FILE", help="TOML file with a migration policy.")
@click.option("--no-tls", is_flag=True, help="Send everything in the clear.")
@click.option("--offline", is_flag=True, help="Pause the guest before its memory is copied.")
@click.option("--bandwidth", metavar="SIZE", help="Most that is sent in a second, for example 500MiB.")
@click.option("--downtime", metavar="DURATION", help="Longest pause of the guest that is aimed at, for example 100ms.")
@click.option("--deadline", metavar="DURATION", help="How long all of it may take; then it is cancelled.")
@click.option(
    "--copy-disk",
    "disks",
    multiple=True,
    metavar="UUID",
    help="Copy a disk that only this host has; several times for several, 'all' for all the guest may write.",
)
@click.option("--overwrite-disks", is_flag=True, help="Copy also to images that are there already on the other host.")
@click.option(
    "--remote-hv", default="hv", metavar="PATH", show_default=True, help="The command hv on a host that ssh reaches."
)
@click.option("--ssh-config", default="", metavar="FILE", help="Configuration file for ssh (its -F).")
@click.option(
    "--identity",
    "identities",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Private key for ssh (its -i); may be given several times.",
)
@click.option(
    "--ssh-option",
    "ssh_options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another option for ssh (its -o), as in its configuration file; may be given several times.",
)
@click.pass_obj
def migrate_command(
    session: Session,
    name: str,
    transport: str,
    address: str | None,
    policy_file: str | None,
    no_tls: bool,
    offline: bool,
    bandwidth: str | None,
    downtime: str | None,
    deadline: str | None,
    disks: tuple[str, ...],
    overwrite_disks: bool,
    remote_hv: str,
    ssh_config: str,
    identities: tuple[str, ...],
    ssh_options: tuple[str, ...],
) -> int:
    """Move a running instance to another host.

    hv is run there through ssh; nothing listens but the hypervisor, for the instance alone. The guest runs on one of
    the hosts at any time. Ctrl-C cancels, and it runs on here. When anything goes wrong the message says which side has
    the instance; the same command once more finishes what was interrupted.
    """
    from hvcore.cli.migration_progress import MigrationProgress
    from hvcore.cli.remote_destination import RemoteDestination
    from hvcore.cli.transport import SshChoices, read_transport
    from hvcore.migration import migrate

    choices = SshChoices(config=ssh_config, identities=identities, options=ssh_options)
    there = read_transport(transport, remote_hv, choices)
    instance = instance_name(name)
    policy: dict[str, Any] = _read_policy(policy_file) if policy_file else {}
    given = {"max_bandwidth": bandwidth, "downtime_limit": downtime, "deadline": deadline}
    policy |= {key: value for key, value in given.items() if value is not None}
    policy |= {"tls": False} if no_tls else {}
    policy |= {"live": False} if offline else {}
    policy |= {"copy_disks": list(disks)} if disks else {}
    policy |= {"overwrite_disks": True} if overwrite_disks else {}
    if address is not None and not _is_address(address):
        raise click.BadParameter(f"{address!r} is no IP address", param_hint="--address")
    output = session.output()
    driver_name = session.driver_name
    command = (*(("--driver", driver_name) if driver_name else ()), "migration-peer", instance)
    with (
        session.driver() as driver,
        RemoteDestination(there, command) as destination,
        MigrationProgress(instance, output) as progress,
    ):
        where = address or destination.address or "127.0.0.1"
        result = migrate(driver, destination, instance, policy, progress, address=where)
    if output.as_json:
        output.document(result)
    else:
        output.say(f"{instance}: moved to {there.title}; {result_words(result)}")
        if result.note:
            output.say(f"{instance}: {result.note}")
    return ExitStatus.DONE


def result_words(result: MigrationResult) -> str:
    """What was measured, for people."""
    from hvcore.cli.migration_progress import short_size

    words = [f"took {format_seconds(round(result.total_time, 3))}"]
    if result.downtime is not None:
        words.append(f"the guest paused for {format_seconds(round(result.downtime, 3))}")
    words.append(f"{short_size(result.transferred)} sent")
    return ", ".join(words)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read_policy(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read(LIMIT).decode())
    except OSError as error:
        problem = error.strerror or str(error)
    except ValueError as error:
        problem = str(error)
    finding = Finding(code="unreadable-file", path=path, message=problem, hint="give a TOML file")
    raise InvalidParameters("the migration policy cannot be read", FindingSet([finding]))
