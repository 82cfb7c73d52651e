"""Changing how many virtual CPUs a guest has."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from hvcore import (
    Deadline,
    Finding,
    FindingSet,
    HotplugResult,
    HypervisorRefused,
    InvalidParameters,
    Journal,
    Processors,
    Step,
)
from hvcore_kvm.events import QemuEvent
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.runtime import Change

PREFIX = "vcpu"
"""With its number, the id of a virtual CPU that was plugged."""

_LOOK_AGAIN = 0.2


def change_processors(ledger: Ledger, monitor: Monitor, wanted: Processors, guest: Deadline) -> HotplugResult:
    """Plug virtual CPUs, or ask the guest to let go of some that were plugged.

    Args:
        ledger: the instance's records.
        monitor: its monitor.
        wanted: how many there are to be.
        guest: how long to wait for the guest.

    Raises:
        InvalidParameters: more than the guest was started for, or fewer than it was started with.
        HypervisorRefused: QEMU's own words.
    """
    used, free = check_processors(monitor, wanted)
    now = _count(used)
    if wanted.count > now:
        _plug(ledger, monitor, free, now, wanted.count)
    elif wanted.count < now:
        return _unplug(ledger, monitor, used, now, wanted.count, guest)
    return HotplugResult(device="vcpus", done=True, detail=f"it has {wanted.count}")


def check_processors(monitor: Monitor, wanted: Processors) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The slots of virtual CPUs that are used, and those that are free in their order; touches nothing.

    Raises:
        InvalidParameters: more are wanted than the guest was started for, or fewer than it was started with.
    """
    slots = monitor.execute("query-hotpluggable-cpus")
    used = [slot for slot in slots if "qom-path" in slot]
    free = [slot for slot in slots if "qom-path" not in slot]
    # QEMU lists the last one first.
    free.reverse()
    least, most = _count(used) - len(_plugged(used)), _count(used) + _count(free)
    if wanted.count > most:
        message = f"{wanted.count} are more than {most}, the most it was started for"
        finding = Finding(
            code="too-many-vcpus", path="vcpus", message=message, hint="params.vcpus_max at the next start"
        )
        raise InvalidParameters("it cannot have as many", FindingSet([finding]))
    if wanted.count < least:
        message = f"{least} are there from the start and stay"
        finding = Finding(code="not-possible", path="vcpus", message=message, hint="fewer at the next start")
        raise InvalidParameters("it cannot have as few", FindingSet([finding]))
    return used, free


def _count(slots: list[Mapping[str, Any]]) -> int:
    return sum(slot["vcpus-count"] for slot in slots)


def _plugged(used: list[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """The virtual CPUs that were plugged: their number and their id, in that order."""
    idents = [str(slot["qom-path"]).rpartition("/")[2] for slot in used]
    numbers = [(ident.removeprefix(PREFIX), ident) for ident in idents if ident.startswith(PREFIX)]
    return sorted((int(number), ident) for number, ident in numbers if number.isdecimal())


def _plug(ledger: Ledger, monitor: Monitor, free: list[Mapping[str, Any]], now: int, count: int) -> None:
    before = ledger.instance
    with Journal(None, f"plugging {count - now} virtual CPUs") as journal:
        for slot in free:
            if now >= count:
                break
            values = {"driver": slot["type"], "id": f"{PREFIX}{now}", **slot["props"]}
            do = functools.partial(monitor.execute, "device_add", values)
            undo = functools.partial(monitor.take_back, "device_del", {"id": values["id"]})
            journal.run(Step(name=f"plug virtual CPU {now}", do=do, undo=undo))
            now += slot["vcpus-count"]
        ledger.write(attrs.evolve(before, vcpus=now))


def _unplug(
    ledger: Ledger, monitor: Monitor, used: list[Mapping[str, Any]], now: int, count: int, guest: Deadline
) -> HotplugResult:
    plugged = _plugged(used)
    while now > count:
        ident = plugged.pop()[1]
        # Before it is asked: the guest may let go of it when nobody looks any more.
        ledger.begin(Change(action="remove", kind="vcpu", uuid=ident, since=time.time()))
        try:
            monitor.execute("device_del", {"id": ident})
            gone = _wait_gone(monitor, ident, guest)
        except HypervisorRefused:
            ledger.end(ident)
            raise
        if not gone:
            detail = f"it has {now}: the guest has been asked to let go of one and has not yet"
            return HotplugResult(device="vcpus", done=False, detail=detail)
        now -= 1
        _write_count(ledger, now)
        ledger.end(ident)
    return HotplugResult(device="vcpus", done=True, detail=f"it has {now}")


def settle_processor(ledger: Ledger, monitor: Monitor, change: Change, events: Iterable[QemuEvent]) -> HotplugResult:
    """Say what became of a virtual CPU that the guest was asked for, and write it down.

    Args:
        ledger: the instance's records.
        monitor: its monitor.
        change: the request.
        events: what QEMU has written down.
    """
    if change.uuid not in monitor.present():
        slots = monitor.execute("query-hotpluggable-cpus")
        _write_count(ledger, sum(slot["vcpus-count"] for slot in slots if "qom-path" in slot))
        detail = "removed"
    elif any(event.time >= change.since and _refuses(change.uuid, event.name, event.data) for event in events):
        detail = "the guest kept it"
    else:
        return HotplugResult(device=change.uuid, done=False, detail="the guest has not let go of it yet")
    ledger.end(change.uuid)
    return HotplugResult(device=change.uuid, done=True, detail=detail)


def _write_count(ledger: Ledger, count: int) -> None:
    if ledger.instance.vcpus != count:
        ledger.write(attrs.evolve(ledger.instance, vcpus=count))


def _wait_gone(monitor: Monitor, ident: str, guest: Deadline) -> bool:
    """Wait until a virtual CPU is gone; false when it is not in time.

    Raises:
        HypervisorRefused: the guest says that it does not let go.
    """
    while ident in monitor.present():
        if guest.expired:
            return False
        # QEMU sends no event when it is gone, only what the guest answers.
        answer = monitor.wait_event(functools.partial(_is_refusal, ident), guest.sooner(_LOOK_AGAIN))
        if answer is not None:
            raise HypervisorRefused("device_del", "ACPI_DEVICE_OST", "the guest does not let go of the virtual CPU")
    return True


def _is_refusal(ident: str, message: Mapping[str, Any]) -> bool:
    return _refuses(ident, message["event"], message.get("data", {}))


def _refuses(ident: str, name: str, data: Mapping[str, Any]) -> bool:
    info = data.get("info", {}) if name == "ACPI_DEVICE_OST" else {}
    # ACPI 6.5, 6.3.5 _OST: source 3 is an ejection request; of its statuses 0 is success and 0x84 "in progress".
    return bool(info.get("device") == ident and info.get("source") == 3 and info.get("status") not in (0, 0x84))
