"""Changing what is in a removable drive."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from hvcore import (
    DeadlineExceeded,
    Finding,
    FindingSet,
    HotplugResult,
    HypervisorRefused,
    Instance,
    InvalidParameters,
    Journal,
    Medium,
    Step,
)
from hvcore_kvm.hotplug.addition import pass_images
from hvcore_kvm.hotplug.device_plan import DevicePlan, medium_of, with_sets
from hvcore_kvm.hotplug.ledger import Ledger
from hvcore_kvm.hotplug.monitor import Monitor
from hvcore_kvm.launch_plan import LaunchPlan

_CDROM = re.compile(r"cdroms\[([0-9]{1,3})\]")


def change_medium(
    ledger: Ledger, monitor: Monitor, medium: Medium, replan: Callable[[Instance], LaunchPlan]
) -> HotplugResult:
    """Take out what is in a drive, and put something else in.

    Raises:
        InvalidParameters: there is no such drive, or the medium cannot be used.
        DeadlineExceeded: the guest has locked the tray and did not open it in time; everything is as before.
    """
    after, wanted = plan_medium(ledger, medium, replan)
    ident = "floppy0" if medium.drive == "floppy" else f"cdrom{_index(medium.drive)}"
    before = _node_of(monitor, ident)
    with Journal(None, f"changing {medium.drive}") as journal:
        new = _insertable(journal, monitor, wanted, before)
        undo = functools.partial(monitor.take_back, "blockdev-close-tray", {"id": ident})
        journal.run(Step(name="open the tray", do=lambda: _open(monitor, ident, medium.force), undo=undo))
        if before is not None:
            back = functools.partial(monitor.take_back, "blockdev-insert-medium", {"id": ident, "node-name": before})
            out = functools.partial(monitor.execute, "blockdev-remove-medium", {"id": ident})
            journal.run(Step(name="take out the medium", do=out, undo=back))
        if new is not None:
            monitor.execute("blockdev-insert-medium", {"id": ident, "node-name": new})
        monitor.execute("blockdev-close-tray", {"id": ident})
        ledger.write(after)
    if before is not None:
        _forget(monitor, before, keep=wanted.ident if new is not None else None)
    detail = f"{medium.path or medium.url} is in it" if new is not None else "it is empty"
    return HotplugResult(device=medium.drive, done=True, detail=detail)


def plan_medium(
    ledger: Ledger, medium: Medium, replan: Callable[[Instance], LaunchPlan]
) -> tuple[Instance, DevicePlan]:
    """The definition with a medium in its drive, and what makes it; touches nothing.

    Raises:
        InvalidParameters: there is no such drive, or the medium cannot be used.
    """
    after = _with_medium(ledger.instance, medium)
    return after, medium_of(replan(after), f"params.{medium.drive}")


def _index(drive: str) -> int:
    found = _CDROM.fullmatch(drive)
    return int(found[1]) if found else -1


def _with_medium(instance: Instance, medium: Medium) -> Instance:
    params = dict(instance.params)
    if medium.drive == "floppy":
        if "floppy" not in params:
            raise _no_drive(medium.drive, "it was started without a floppy drive")
        params["floppy"] = medium.path
        return attrs.evolve(instance, params=params)
    drives = [dict(drive) for drive in params.get("cdroms", ())]
    index = _index(medium.drive)
    if not 0 <= index < len(drives):
        raise _no_drive(medium.drive, f"it has {len(drives)} CD-ROM drives, cdroms[0] and so on")
    drive = {key: value for key, value in drives[index].items() if key not in ("path", "url")}
    given = {"path": medium.path, "url": medium.url}
    drives[index] = {**drive, **{key: value for key, value in given.items() if value is not None}}
    params["cdroms"] = drives
    return attrs.evolve(instance, params=params)


def _no_drive(drive: str, hint: str) -> InvalidParameters:
    finding = Finding(code="no-such-device", path="drive", message=f"it has no drive {drive[:40]!r}", hint=hint)
    return InvalidParameters("there is no such drive", FindingSet([finding]))


def _drive(monitor: Monitor, ident: str) -> Mapping[str, Any]:
    rows = monitor.execute("query-block")
    found = next((row for row in rows if ident in str(row.get("qdev", "")).split("/")), None)
    if found is None:
        raise HypervisorRefused("query-block", "DeviceNotFound", f"QEMU has no drive {ident}")
    return dict(found)


def _node_of(monitor: Monitor, ident: str) -> str | None:
    inserted = _drive(monitor, ident).get("inserted")
    return str(inserted["node-name"]) if inserted else None


def _insertable(journal: Journal, monitor: Monitor, wanted: DevicePlan, before: str | None) -> str | None:
    """Make the block node of the new medium; it has another name than that of the old one."""
    if not wanted.nodes:
        return None
    sets = pass_images(journal, monitor, wanted)
    (node,) = wanted.nodes
    name = f"{wanted.ident}b" if before == wanted.ident else wanted.ident
    values = {**with_sets(node, sets), "node-name": name}
    undo = functools.partial(monitor.take_back, "blockdev-del", {"node-name": name})
    do = functools.partial(monitor.execute, "blockdev-add", values)
    journal.run(Step(name=f"block node {name}", do=do, undo=undo))
    return name


def _open(monitor: Monitor, ident: str, force: bool) -> None:
    if _drive(monitor, ident).get("tray_open") is True:
        return
    try:
        monitor.execute("blockdev-open-tray", {"id": ident, "force": force})
    except HypervisorRefused as error:
        if "is locked" not in str(error):
            raise
    # A guest that has locked the tray has been asked to open it, and may do so in a moment.
    while _drive(monitor, ident).get("tray_open") is False:
        moved = monitor.wait_event(lambda m: m["event"] == "DEVICE_TRAY_MOVED" and m["data"].get("tray-open") is True)
        if moved is None:
            hint = "let the guest unmount it, or use force"
            raise DeadlineExceeded("the guest has locked the tray and does not open it", hint=hint)


def _forget(monitor: Monitor, node: str, keep: str | None) -> None:
    """Delete the node of a medium that is out, and its descriptors."""
    ident = node.removesuffix("b") if node.startswith("cdrom") else node
    monitor.take_back("blockdev-del", {"node-name": node})
    sets = [row["fdset-id"] for row in monitor.execute("query-fdsets") if _is_of(row, ident)]
    # The newest is that of the medium that is in now.
    for number in sorted(sets)[: -1 if keep is not None and len(sets) > 1 else None]:
        monitor.take_back("remove-fd", {"fdset-id": number})


def _is_of(row: Mapping[str, Any], ident: str) -> bool:
    return any(fd.get("opaque") == ident for fd in row["fds"])
