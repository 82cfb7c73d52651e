"""What a start would run, touching nothing."""

from __future__ import annotations

from collections.abc import Iterator

from hvcore import Instance, Plan, PlannedOption, format_size
from hvcore_fake.faults import EFFECTS

PROGRAM = "fake-hypervisor"


def plan_start(instance: Instance, paused: bool) -> Plan:
    """The plan of a definition that this host can run."""
    steps = tuple(name for name in EFFECTS["start_instance"] if not (paused and name == "resume"))
    return Plan(
        name=instance.name,
        program=PROGRAM,
        options=tuple(_options(instance, paused)),
        steps=steps,
        notes=("machine fake-1: nothing is emulated, the guest is modelled",),
    )


def _options(instance: Instance, paused: bool) -> Iterator[PlannedOption]:
    yield _option("name", "--name", instance.name)
    yield _option("uuid", "--uuid", instance.uuid or "")
    yield _option("memory", "--memory", format_size(instance.memory))
    yield _option("vcpus", "--vcpus", str(instance.vcpus))
    for index, disk in enumerate(instance.disks):
        access = "read-only" if disk.read_only else "read-write"
        yield _option(f"disks[{index}]", "--disk", disk.path or disk.uri or "", disk.format, access)
    for index, nic in enumerate(instance.nics):
        yield _option(f"nics[{index}]", "--nic", nic.mode, nic.link or "", nic.mac or "")
    if paused:
        yield _option("driver", "--paused")


def _option(origin: str, *words: str) -> PlannedOption:
    return PlannedOption(words=words, origin=origin)
