"""Changing devices and parameters of a running instance, each operation a transaction on the modelled world."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import (
    DeadlineExceeded,
    Device,
    Disk,
    Finding,
    HotplugResult,
    Instance,
    LiveParameters,
    Medium,
    Nic,
    Processors,
    WrongState,
    device_clashes,
    parameter_rows,
    with_other_device,
)
from hvcore_fake.account import record_key
from hvcore_fake.hotplug import PENDING, check_device, note, plug, refuse, running, unplug
from hvcore_fake.ledger import align
from hvcore_fake.parameters import check_syntax, guest_parameters, parameter_table
from hvcore_fake.plugging import as_backend, devices_of
from hvcore_fake.record import Attached, Change, Process, RuntimeRecord
from hvcore_fake.transaction import Call, transaction
from hvcore_fake.world import World

_CDROM = re.compile(r"cdroms\[([0-9]{1,3})\]")
_LIVE = frozenset(
    row.path.removeprefix("params.") for row in parameter_rows(parameter_table()) if row.declaration.changes == "live"
)


def modify(call: Call, name: str, device: Device, foreign: bool) -> HotplugResult:
    """Change a device; see the hook of the same name."""
    with call.world.store.locked(call.deadline):
        record, process = running(call, name)
        if isinstance(device, Medium):
            return _put_in(call, record, process, device)
        if isinstance(device, Processors):
            return _count_processors(call, record, process, device.count)
        if isinstance(device, LiveParameters):
            return _set_parameters(call, record, device, foreign)
        return _describe_anew(call, record, device, foreign)


def _describe_anew(call: Call, record: RuntimeRecord, device: Disk | Nic, foreign: bool) -> HotplugResult:
    """A modelled guest keeps its device, whatever changes behind it."""
    name, uuid = record.instance.name, (device.uuid or "").lower()
    known = attrs.evolve(device, uuid=uuid)
    own = record.instance.disks if isinstance(device, Disk) else record.instance.nics
    old = next((each for each in own if each.uuid == uuid), None)
    if old is None:
        has = ", ".join(str(each.uuid) for each in own) or "none"
        message = f"it has no such device {uuid[:60]}"
        refuse([Finding(code="no-such-device", path="device.uuid", message=message, hint=f"it has {has}")], _NO_DEVICE)
    if isinstance(known, Nic) and isinstance(old, Nic) and known.mac is None:
        known = attrs.evolve(known, mac=old.mac)
    found = [*device_clashes(record.instance, known), *check_device(call.world, record.instance, known, foreign)]
    refuse(found, "the device cannot be changed")
    if any(change.ident == uuid for change in record.changes):
        raise WrongState("the device is being removed", instance=name)
    _change(call, record, with_other_device(record.instance, known))
    return HotplugResult(device=uuid, done=True, detail="changed; the guest kept its device")


def _put_in(call: Call, record: RuntimeRecord, process: Process, medium: Medium) -> HotplugResult:
    found = _CDROM.fullmatch(medium.drive)
    number = int(found[1]) if found else -1
    drives = [dict(drive) for drive in record.instance.params.get("cdroms", ())]
    findings = []
    if not 0 <= number < len(drives):
        message = f"it has {len(drives)} CD-ROM drives, cdroms[0] and so on"
        findings.append(Finding(code="no-such-drive", path="device.drive", message=message))
    if medium.url is not None:
        message = "a modelled hypervisor reads nothing over the network"
        findings.append(Finding(code="not-possible", path="device.url", message=message))
    refuse(findings, "the medium cannot be changed")
    drives[number] = {key: value for key, value in drives[number].items() if key != "path"}
    if medium.path is not None:
        drives[number]["path"] = medium.path
    after = attrs.evolve(record.instance, params={**record.instance.params, "cdroms": drives})
    refuse([*check_syntax(after, True).errors], "the medium cannot be changed")
    if process.behaviour.tray_locked and not medium.force:
        call.world.advance(call.deadline.timeout())
        raise DeadlineExceeded("the guest has locked the tray and did not open it in time", hint="use force")
    _change(call, record, after)
    return HotplugResult(device=medium.drive, done=True, detail=f"{medium.path or 'nothing'} is in it")


def _count_processors(call: Call, record: RuntimeRecord, process: Process, count: int) -> HotplugResult:
    name, now = record.instance.name, record.instance.vcpus
    most = max(process.behaviour.vcpus_max or process.vcpus, process.vcpus)
    if type(count) is not int or not process.vcpus <= count <= most:
        message = f"it was started with {process.vcpus}, for at most {most}"
        refuse([Finding(code="out-of-range", path="device.count", message=message)], "it cannot have so many CPUs")
    has = {device.ident for device in process.attached}
    idents = [f"vcpu{number}" for number in range(process.vcpus, most)]
    done = True
    with transaction(call, name) as effects:
        if count > now:
            new = [ident for ident in idents if ident not in has][: count - now]
            added = tuple(Change(ident=ident, kind="vcpu", action="add") for ident in new)
            note(call.world, name, effects, added, attrs.evolve(record.instance, vcpus=count))
            plug(call.world, name, effects, tuple(Attached(ident=ident, kind="vcpu") for ident in new))
        elif count < now:
            old = [ident for ident in reversed(idents) if ident in has][: now - count]
            gone = tuple(Change(ident=ident, kind="vcpu", action="remove") for ident in old)
            done = unplug(call, effects, name, gone)
    return HotplugResult(device="vcpus", done=done, detail=f"it has {count}" if done else PENDING)


def _set_parameters(call: Call, record: RuntimeRecord, wanted: LiveParameters, foreign: bool) -> HotplugResult:
    given: Any = wanted.values
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        message = "expected a table of values by name"
        refuse([Finding(code="wrong-type", path="params", message=message)], _NO_PARAMETERS)
    before = record.instance
    values = {key: value for key, value in {**before.params, **given}.items() if value is not None}
    after = attrs.evolve(before, params=values)
    findings = [*check_syntax(after, foreign).errors]
    changed = sorted(key for key in given if before.params.get(key) != values.get(key))
    message, hint = "does not change while the guest runs", "start it again with it"
    for key in changed:
        if key not in _LIVE and not any(finding.path == f"params.{key}" for finding in findings):
            findings.append(Finding(code="not-possible", path=f"params.{key}", message=message, hint=hint))
    if len(after.params.get("cdroms", ())) != len(before.params.get("cdroms", ())):
        findings.append(Finding(code="not-possible", path="params.cdroms", message="drives neither come nor go"))
    refuse(findings, _NO_PARAMETERS)
    _change(call, record, after)
    return HotplugResult(device="params", done=True, detail=f"changed: {', '.join(changed) or 'nothing'}")


def _change(call: Call, record: RuntimeRecord, after: Instance) -> None:
    """Change what the guest has no part in: in the process, then in the record, which decides after a crash."""
    world, name = call.world, after.name

    def write() -> None:
        known = world.store.read(record_key(name), RuntimeRecord)
        if known is not None:
            world.store.write(record_key(name), attrs.evolve(known, instance=after))

    with transaction(call, name) as effects:
        undo = functools.partial(align, world, name)
        effects.effect("change", lambda: _carry_over(world, after), undo=undo)
        effects.effect("record", write, files=(record_key(name),))
        call.in_time()


def _carry_over(world: World, after: Instance) -> None:
    world.behave(after.name, guest_parameters(after))
    process = world.process(after.name)
    for device in devices_of(after):
        backend = as_backend(device)
        if process is not None and process.device(backend.ident) is not None and backend not in process.backends:
            world.open_backend(after.name, backend)


_NO_DEVICE = "there is no such device"
_NO_PARAMETERS = "the parameters cannot be changed"
