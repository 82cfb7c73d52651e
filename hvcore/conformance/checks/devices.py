"""Changing a running instance: its disks, their sizes, its memory and its parameters."""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.check import check
from hvcore.conformance.failure import expect, expect_equal, expect_error
from hvcore.conformance.subject import PATIENCE, Subject
from hvcore.errors import HypervisorError, HypervisorRefused, InvalidParameters, Refused
from hvcore.model.devices import LiveParameters
from hvcore.model.instance import Disk
from hvcore.model.state import DeviceInfo

_UUID = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"
_HOTPLUG = (Capability.HOTPLUG,)

_SOON = 0.5
"""Seconds that a guest which gives nothing back is given."""

_SOON_WITH_ANSWERS = 3.0
"""The same where the hypervisor has to answer within them, which takes longer on a host that is busy."""


def _devices(subject: Subject, name: str) -> tuple[DeviceInfo, ...]:
    return subject.info(name).devices


def _unwilling(subject: Subject) -> str:
    """Start an instance whose guest gives nothing back, and wait until it is ready."""
    make = subject.profile.unwilling
    definition = make(subject.name(), subject.directory) if make else subject.definition()
    subject.driver.start_instance(definition)
    subject.wait_ready(definition.name)
    return definition.name


def _plugged(subject: Subject) -> tuple[str, Disk]:
    """An instance whose guest gives nothing back, with a disk that was added."""
    name, disk = _unwilling(subject), attrs.evolve(subject.raw_disk(), uuid=_UUID)
    expect(subject.driver.hot_add_device(name, disk).done, "the disk was not added")
    return name, disk


def _holds(subject: Subject, name: str, disk: Disk) -> bool:
    look = subject.profile.holds
    return look is not None and look(subject.driver, name, disk.path or "")


@check("DE-01", capabilities=_HOTPLUG, needs=["holds"])
def a_disk_is_added(subject: Subject) -> None:
    """It is listed, by every host application, and the hypervisor has it open."""
    name, disk = _plugged(subject)
    for driver in (subject.driver, subject.load()):
        rows = [(row.kind, row.uuid, row.state) for row in subject.info(name, driver).devices]
        expect_equal(rows, [("disk", _UUID, "present")], "the devices after an addition")
    expect(_holds(subject, name, disk), "the hypervisor does not have the disk open")


@check("DE-01", capabilities=_HOTPLUG, needs=["holds", "unreadable"])
def an_addition_that_fails_changes_nothing(subject: Subject) -> None:
    """A disk that is not there, one that the hypervisor refuses, and one that the instance has already."""
    make = subject.profile.unreadable
    name, good = subject.start(), attrs.evolve(subject.raw_disk(), uuid=_UUID)
    refused = attrs.evolve(make(subject.directory)[0], uuid=_UUID) if make else good
    add = subject.driver.hot_add_device
    calls: tuple[tuple[type[HypervisorError], Callable[[], object], str, Disk], ...] = (
        (Refused, lambda: add(name, subject.missing_disk()), "a disk that is not there", good),
        (HypervisorRefused, lambda: add(name, refused), "a disk that the hypervisor refuses", refused),
    )
    for kind, call, what, disk in calls:
        expect_error(kind, call, what)
        expect_equal(_devices(subject, name), (), f"the devices after {what}")
        expect(not _holds(subject, name, disk), f"the hypervisor has the disk open after {what}")
    expect(add(name, good).done, "the disk cannot be added after what failed")
    expect_error(InvalidParameters, lambda: add(name, good), "a second disk with its uuid")
    expect_equal([row.uuid for row in _devices(subject, name)], [_UUID], "the devices after the second")


@check("DE-08", capabilities=_HOTPLUG)
def a_device_is_checked_as_one_of_a_definition(subject: Subject) -> None:
    """All that is wrong with it is said at once, and nothing is changed."""
    name = subject.start()
    bad = Disk(uuid="nobody", path="relative/disk.raw", format="raw", name="two\nlines")
    calls: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: subject.driver.hot_add_device(name, bad), "the addition of a disk that is described wrongly"),
        (lambda: subject.driver.hot_mod_device(name, bad), "a change to a disk that is described wrongly"),
    )
    for call, what in calls:
        paths = {finding.path for finding in expect_error(InvalidParameters, call, what).findings}
        wrong = {"device.uuid", "device.path", "device.name"}
        expect(wrong <= paths, f"{what}: the findings are about {sorted(paths)}, not about {sorted(wrong)}")
        expect_equal(_devices(subject, name), (), f"the devices after {what}")


@check("DE-02", capabilities=_HOTPLUG, needs=["unwilling", "lets_go", "holds"])
def what_is_behind_a_device_stays_as_long_as_the_guest_has_it(subject: Subject) -> None:
    """The image is open until the guest has let go of the disk, and not longer than until that is finished."""
    name, disk = _plugged(subject)
    subject.driver.hot_del_device(name, _UUID, timeout=_SOON)
    expect(_holds(subject, name, disk), "the disk was taken from under a guest that had not let go of it")
    subject.provoke("lets_go", name)
    expect(subject.driver.hot_del_device(name, _UUID, timeout=PATIENCE).done, "the removal is not finished")
    expect(not _holds(subject, name, disk), "the hypervisor has the disk open after its removal")


@check("DE-03", capabilities=_HOTPLUG, needs=["unwilling", "lets_go"])
def a_guest_that_does_not_let_go_makes_a_removal_wait(subject: Subject) -> None:
    """The result says that it is not done, every host application sees it, and it is finished later by any."""
    name, _ = _plugged(subject)
    result = subject.driver.hot_del_device(name, _UUID, timeout=_SOON)
    expect_equal((result.device, result.done), (_UUID, False), "device and done of the removal")
    other = subject.load()
    rows = [(row.uuid, row.state) for row in subject.info(name, other).devices]
    expect_equal(rows, [(_UUID, "removing")], "the devices while the guest has not let go")
    subject.provoke("lets_go", name)
    expect(other.hot_del_device(name, _UUID, timeout=PATIENCE).done, "the removal is not finished")
    expect_equal(_devices(subject, name), (), "the devices after the removal")


@check("DE-04", capabilities=[Capability.RESIZE_DISK])
def a_disk_only_grows(subject: Subject) -> None:
    """Less is refused, the same changes nothing, and more is what it has then."""
    size, disk = 1 << 20, attrs.evolve(subject.raw_disk(), uuid=_UUID)
    name, resize = subject.start(disks=[disk]), subject.driver.resize_disk
    expect_error(InvalidParameters, lambda: resize(name, _UUID, size - 512), "a smaller size")
    expect_equal(os.path.getsize(disk.path or ""), size, "the size of the image after what was refused")
    same, more = resize(name, _UUID, size), resize(name, _UUID, 2 * size)
    expect_equal((same.before, same.after), (size, size), "before and after of the same size")
    expect_equal((more.before, more.after), (size, 2 * size), "before and after of a larger size")
    expect_error(InvalidParameters, lambda: resize(name, _UUID, size), "the size it had before it grew")


@check("DE-07", capabilities=[Capability.RESIZE_DISK, Capability.SNAPSHOT, Capability.SNAPSHOT_EXTERNAL])
def a_disk_with_overlays_grows(subject: Subject) -> None:
    """Upon two of them, and it keeps the size when they are deleted one after the other."""
    size, disk = 1 << 20, attrs.evolve(subject.raw_disk(), uuid=_UUID)
    name, driver = subject.start(disks=[disk]), subject.driver
    for one in ("first", "second"):
        driver.create_snapshot(name, one, external=True)
        grown = driver.resize_disk(name, _UUID, size + (1 << 20))
        expect_equal((grown.before, grown.after), (size, size + (1 << 20)), "before and after")
        size = grown.after
    for one in ("second", "first"):
        driver.delete_snapshot(name, one)
        same = driver.resize_disk(name, _UUID, size)
        expect_equal((same.before, same.after), (size, size), f"its size after the deletion of {one}")


@check("DE-05", capabilities=[Capability.BALLOON], needs=["unwilling"])
def what_was_reached_is_told(subject: Subject) -> None:
    """A guest that gives nothing back has what it had, and the result says so."""
    name = _unwilling(subject)
    full = subject.info(name).memory
    result = subject.driver.balloon_instance_memory(name, full // 2, timeout=_SOON_WITH_ANSWERS)
    expect_equal(result.requested, full // 2, "what was asked for")
    expect_equal((result.reached, subject.info(name).memory), (full, full), "what was reached, and what it has")
    for memory in (2 * full, 512):
        expect_error(
            InvalidParameters,
            lambda memory=memory: subject.driver.balloon_instance_memory(name, memory),  # type: ignore[misc]
            f"{memory} bytes of memory",
        )


@check("DE-06", capabilities=_HOTPLUG, needs=["live"])
def parameters_change_all_or_none(subject: Subject) -> None:
    """One that is wrong beside one that is right: none changes. The right one alone does."""
    live = subject.profile.live
    expect(live is not None, "the profile has no parameter that changes")
    if live is None:
        return
    name = subject.start(ready=True)
    before = live.read(subject.driver, name)
    both = LiveParameters(values={live.name: live.value, "no_such_parameter": 1})
    expect_error(InvalidParameters, lambda: subject.driver.hot_mod_device(name, both), "a change with a mistake in it")
    expect_equal(live.read(subject.driver, name), before, f"{live.name} after what was refused")
    done = subject.driver.hot_mod_device(name, LiveParameters(values={live.name: live.value}))
    expect(done.done, "the change is not done")
    expect_equal(live.read(subject.driver, name), live.value, f"{live.name} after its change")
