"""``hv list``, ``info`` and ``verify``: look, and change nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from hvcore.cli.exit_status import ExitStatus
from hvcore.cli.instance_file import complete_instances, instance_name, name_argument
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session
from hvcore.model.state import DeviceInfo, InstanceInfo, PeripheralInfo
from hvcore.model.units import format_seconds, format_size


@click.command(cls=HvCommand)
@click.option("--long", is_flag=True, help="Ask every instance what it is doing.")
@click.pass_obj
def list_command(session: Session, long: bool) -> None:
    """List the instances on this host."""
    output = session.output()
    with session.driver() as driver:
        if long:
            infos = driver.get_all_instances_info()
            headers: tuple[str, ...] = ("name", "state", "pid", "memory", "vcpus", "accelerator", "up", "why")
            rows = [_long_row(info) for info in infos.instances]
            found: object = infos
        else:
            listing = driver.list_instances()
            headers = ("name", "state", "pid")
            rows = [(row.name, "alive" if row.alive else "ended", _text(row.pid)) for row in listing.instances]
            found = listing
    if output.as_json:
        output.document(found)
    else:
        output.table(headers, rows)


def _long_row(info: InstanceInfo) -> tuple[str, ...]:
    return (
        info.name,
        info.state.value,
        _text(info.pid),
        format_size(info.memory) if info.memory else "-",
        str(info.vcpus) if info.vcpus else "-",
        info.accelerator or "-",
        _up(info) or "-",
        info.incomplete or info.reason.detail or info.reason.cause.value,
    )


@click.command(cls=HvCommand)
@name_argument
@click.pass_obj
def info_command(session: Session, name: str) -> None:
    """Say what an instance is doing, or why it ended."""
    output = session.output()
    with session.driver() as driver:
        info = driver.get_instance_info(instance_name(name))
    if output.as_json:
        output.document(info)
    else:
        output.pairs(info_rows(info))


def info_rows(info: InstanceInfo) -> list[tuple[str, str]]:
    """What is known of an instance, for people; empty where it is not known."""
    shown_memory = f"{format_size(info.memory)} of {format_size(info.memory_max)}" if info.memory else ""
    return [
        ("name", info.name),
        ("uuid", info.uuid or ""),
        ("state", info.state.value),
        ("why", f"{info.reason.cause.value}{f': {info.reason.detail}' if info.reason.detail else ''}"),
        ("since", local_time(info.reason.since) if info.reason.since else ""),
        ("process", str(info.pid) if info.pid else ""),
        ("memory", shown_memory),
        ("vcpus", str(info.vcpus) if info.vcpus else ""),
        ("up", _up(info)),
        ("CPU time", format_seconds(info.cpu_time) if info.cpu_time is not None else ""),
        ("machine", info.machine or ""),
        ("accelerator", info.accelerator or ""),
        ("marks", ", ".join(info.marks)),
        *((device.kind, _device(device)) for device in info.devices),
        *((one.kind, _peripheral(one)) for one in info.peripherals),
        ("incomplete", info.incomplete),
    ]


@click.command(cls=HvCommand)
@click.argument("name", metavar="[NAME|FILE]", required=False, shell_complete=complete_instances)
@click.pass_obj
def verify_command(session: Session, name: str | None) -> int:
    """Find where records of instances and reality differ.

    Looks at one instance, or at all of them. Ends with 1 when something differs.
    """
    output = session.output()
    with session.driver() as driver:
        names = [instance_name(name)] if name else [row.name for row in driver.list_instances().instances]
        found = {each: driver.verify_instance(each) for each in names}
    healthy = all(findings.ok for findings in found.values())
    if output.as_json:
        rows = [
            {"name": each, "ok": findings.ok, "findings": [finding.as_dict() for finding in findings]}
            for each, findings in found.items()
        ]
        output.document({"ok": healthy, "instances": rows})
    else:
        for each, findings in found.items():
            output.say(f"{each}: {'is what its record says' if not findings else f'{len(findings)} findings'}")
            output.findings(findings)
        if not found:
            output.say("there are no instances")
    return ExitStatus.DONE if healthy else ExitStatus.FAILED


def local_time(seconds: float) -> str:
    """A time for people, in the time zone of the host."""
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().isoformat(sep=" ", timespec="seconds")


def _device(device: DeviceInfo) -> str:
    name = f" ({device.name})" if device.name else ""
    state = "" if device.state == "present" else f", {device.state}"
    return f"{device.uuid}{name} {device.source}{state}"


def _peripheral(one: PeripheralInfo) -> str:
    return f"{shown_values(one.given) or one.kind}{'' if one.state == 'present' else f', {one.state}'}"


def shown_values(values: Mapping[str, Any]) -> str:
    """Values as words of a command, each ``KEY=VALUE``."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def _up(info: InstanceInfo) -> str:
    return format_seconds(info.uptime) if info.uptime is not None else ""


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)
