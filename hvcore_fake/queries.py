"""Answering questions about instances and the host; nothing here takes a lock on an instance or changes it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal

import attrs

from hvcore import (
    Deadline,
    DeviceInfo,
    Disk,
    EventBatch,
    Finding,
    FindingSet,
    Instance,
    InstanceInfo,
    InstanceInfos,
    InstanceListing,
    InstanceName,
    InstanceNotFound,
    InterruptedInstances,
    NodeInfo,
    Severity,
    format_size,
    read_node_info,
)
from hvcore_fake import yielding
from hvcore_fake.account import Account, listed_names, look
from hvcore_fake.plugging import devices_of
from hvcore_fake.transaction import JOURNAL_SUFFIX, JOURNALS, journal_key
from hvcore_fake.world import World

HYPERVISOR = "fake-hypervisor"
"""Name of what the fake driver drives."""

MACHINE = "fake-1"

_EVENT_POLL = 0.002


def list_instances(world: World) -> InstanceListing:
    """The instances that hold something on this host."""
    found = []
    for name in listed_names(world):
        process = world.process(name)
        pid = None if process is None else process.pid
        found.append(InstanceName(name=name, alive=process is not None, pid=pid))
    return InstanceListing(instances=tuple(found))


def list_interrupted(world: World) -> InterruptedInstances:
    """Name the instances that have a journal: something was left half done with them, or is being done."""
    return InterruptedInstances(names=world.store.names(JOURNALS, JOURNAL_SUFFIX))


def instance_info(world: World, name: str) -> InstanceInfo:
    """What one instance is doing, or why it ended."""
    return _info(world, known(world, name))


def instance_infos(world: World) -> InstanceInfos:
    """The same for every listed instance."""
    accounts = (look(world, name) for name in listed_names(world))
    return InstanceInfos(instances=tuple(_info(world, account) for account in accounts if account is not None))


def known(world: World, name: str) -> Account:
    """What is known of an instance.

    Raises:
        InstanceNotFound: there is no account of it.
    """
    account = look(world, name)
    if account is None:
        raise InstanceNotFound("there is no account of it", instance=name, hint="it was never started, or cleaned up")
    return account


def verify_instance(world: World, name: str) -> FindingSet:
    """Where the record of an instance and reality have drifted apart."""
    account = known(world, name)
    return FindingSet((*_unfinished(world, name), *_drift(account)))


def verify_host(world: World) -> FindingSet:
    """What keeps the driver from working well."""
    names = {*listed_names(world), *list_interrupted(world).names}
    findings = []
    for name in sorted(names):
        account = look(world, name)
        found = [*_unfinished(world, name), *(_drift(account) if account is not None else ())]
        findings += [attrs.evolve(f, path=name, severity=Severity.WARNING) for f in found]
    return FindingSet(findings)


def node_info(world: World, version: str) -> NodeInfo:
    """Facts about this host, less what the modelled instances use."""
    facts = read_node_info()
    used = sum(process.memory for process in world.processes())
    free = max(0, facts.memory_free - used)
    return attrs.evolve(
        facts,
        memory_free=free,
        memory_used=facts.memory_total - free,
        hypervisor=((HYPERVISOR, version),),
    )


def assess(world: World, instance: Instance, version: str) -> FindingSet:
    """What is legal but unwise about a definition."""
    facts = node_info(world, version)
    findings = []
    if instance.memory > facts.memory_free:
        message = f"{format_size(instance.memory)} is more than this host has free ({format_size(facts.memory_free)})"
        findings.append(Finding(code="memory-overcommit", path="memory", message=message, severity=Severity.ADVICE))
    if instance.vcpus > facts.cpus_online:
        message = f"{instance.vcpus} virtual CPUs are more than this host has ({facts.cpus_online})"
        findings.append(Finding(code="cpu-overcommit", path="vcpus", message=message, severity=Severity.ADVICE))
    return FindingSet(findings)


def read_events(world: World, cursor: str | None, deadline: Deadline) -> EventBatch:
    """The events after a cursor, waiting for the first one.

    A guest that is about to do something is waited for in virtual time, at once. Where none is, only another thread
    or process can make an event happen, and those live in real time.
    """
    while True:
        batch = world.wait_for_event(cursor, deadline.remaining())
        if batch.events or deadline.expired:
            return batch
        time.sleep(min(_EVENT_POLL, deadline.remaining()))


def _info(world: World, account: Account) -> InstanceInfo:
    definition = account.definition
    uuid = None if definition is None else definition.uuid
    process = account.process
    if process is None:
        return InstanceInfo(
            name=account.name, uuid=uuid, state=account.state, reason=account.reason, incomplete=account.damage
        )
    return InstanceInfo(
        name=account.name,
        uuid=uuid,
        state=account.state,
        reason=account.reason,
        pid=process.pid,
        memory=yielding.memory_now(process, world.clock()),
        memory_max=process.memory_max,
        vcpus=process.vcpus + sum(device.kind == "vcpu" for device in process.attached),
        uptime=world.clock() - process.started,
        machine=MACHINE,
        accelerator="model",
        devices=tuple(_devices(account)),
        incomplete=account.damage or ("" if process.answering else "its process does not answer"),
    )


def _devices(account: Account) -> Iterator[DeviceInfo]:
    """The disks and NICs of the record that the guest has, or is to get."""
    record, process = account.record, account.process
    if record is None or process is None:
        return
    under_way: dict[str, Literal["adding", "removing"]] = {
        change.ident: "adding" if change.action == "add" else "removing" for change in record.changes
    }
    for device in devices_of(record.instance):
        uuid = device.uuid or ""
        if process.device(uuid) is None and under_way.get(uuid) == "removing":
            continue
        is_disk = isinstance(device, Disk)
        source = (device.path or device.uri or "") if isinstance(device, Disk) else f"{device.mode}:{device.link or ''}"
        yield DeviceInfo(
            kind="disk" if is_disk else "nic",
            uuid=uuid,
            name=device.name,
            source=source.rstrip(":"),
            state=under_way.get(uuid, "present"),
        )


def _unfinished(world: World, name: str) -> Iterator[Finding]:
    if world.store.exists(journal_key(name)):
        message = f"an operation on {name} is under way, or was left half done"
        yield Finding(code="unfinished-operation", message=message, hint="recover puts it in order")


def _drift(account: Account) -> Iterator[Finding]:
    name, process, record = account.name, account.process, account.record
    if not account.listed:
        return
    if account.damage:
        yield Finding(code="record-damaged", message=account.damage, hint="stop it by name, then start it again")
    elif process is not None and record is None:
        message = f"process {process.pid} of {name} lives, and there is no record of it"
        yield Finding(code="process-without-record", message=message, hint="stop it by name")
    elif process is not None and record is not None and process.pid != record.pid:
        message = f"process {process.pid} of {name} is not the one it was started with ({record.pid})"
        yield Finding(code="other-process", message=message, hint="stop it by name")
    elif process is None:
        message = f"{name} is recorded as running, and is not: {account.reason.detail}"
        yield Finding(code="process-gone", message=message, hint="stop it", severity=Severity.WARNING)
