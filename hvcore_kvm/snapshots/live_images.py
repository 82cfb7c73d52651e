"""Snapshots within the images of an instance that is alive, by QEMU's own jobs.

QEMU takes one of all images at the same moment, and stops the guest for it; while it does it answers nothing. The node
of the image is named, never a filter above it: QEMU 10.0 ends in an assertion for a throttle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from hvcore import DeadlineExceeded, HypervisorRefused, Instance, OperationFailed
from hvcore_kvm.block_job import dismiss_jobs, job_states, wait_jobs
from hvcore_kvm.block_nodes import attached_nodes
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.monitor import Monitor

JOB = "hvcore-snapshot"
"""The one job there is at a time."""

_LOOK_AGAIN = 0.25


@attrs.frozen(kw_only=True)
class LiveImage:
    """The image of a writable disk, as QEMU has it.

    Attributes:
        uuid: the disk.
        root: the block node that the device has: the image, or a filter above it.
        node: the block node of the image.
        format: what QEMU reads it as.
        tags: the snapshots in it: the size of the memory that is in each, by name.
        bitmaps: names of its dirty bitmaps.
    """

    uuid: str
    root: str
    node: str
    format: str
    tags: Mapping[str, int] = attrs.field(factory=dict)
    bitmaps: tuple[str, ...] = ()


def live_images(monitor: Monitor, instance: Instance) -> tuple[LiveImage, ...]:
    """The images of the writable disks of an instance, in their order; without those that QEMU does not have."""
    attached = attached_nodes(monitor)
    nodes = {row["node-name"]: row for row in monitor.execute("query-named-block-nodes", {"flat": True})}
    found = []
    for disk in instance.disks:
        if disk.read_only:
            continue
        uuid = disk.uuid or ""
        root = nodes.get(str(attached.get(device_id("disk", uuid), {}).get("node-name", "")))
        below = nodes.get(device_id("image", uuid))
        row = below if below is not None and root is not None and root["drv"] != below["drv"] == "qcow2" else root
        if row is not None:
            found.append(_image(uuid, root["node-name"] if root is not None else "", row))
    return tuple(found)


def _image(uuid: str, root: str, row: Mapping[str, Any]) -> LiveImage:
    tags = {str(one["name"]): int(one["vm-state-size"]) for one in (row.get("image") or {}).get("snapshots", ())}
    bitmaps = tuple(str(one.get("name", "")) for one in row.get("dirty-bitmaps", ()))
    return LiveImage(uuid=uuid, root=root, node=row["node-name"], format=row["drv"], tags=tags, bitmaps=bitmaps)


def save(monitor: Monitor, images: Sequence[LiveImage], tag: str, watch: Callable[[], None] | None = None) -> None:
    """Take a snapshot of all images, with the memory in the first of them. A guest that runs does so afterwards.

    Args:
        monitor: the connection.
        images: the images.
        tag: its name.
        watch: called time and again while it is taken.
    """
    arguments = {"tag": tag, "vmstate": images[0].node, "devices": [one.node for one in images]}
    _run(monitor, "snapshot-save", arguments, watch)


def load(monitor: Monitor, images: Sequence[LiveImage], tag: str) -> None:
    """Go back to a snapshot with memory. The guest must not run, and does not afterwards."""
    holder = next((one.node for one in images if one.tags.get(tag)), images[0].node)
    _run(monitor, "snapshot-load", {"tag": tag, "vmstate": holder, "devices": [one.node for one in images]})


def delete(monitor: Monitor, images: Sequence[LiveImage], tag: str) -> None:
    """Remove a snapshot from all images; one that is not there is no error."""
    _run(monitor, "snapshot-delete", {"tag": tag, "devices": [one.node for one in images]})


def take_of_disks(monitor: Monitor, images: Sequence[LiveImage], tag: str) -> None:
    """Take a snapshot of all images at the same moment, without memory; the guest is not stopped."""
    actions = [{"type": "blockdev-snapshot-internal-sync", "data": {"device": one.root, "name": tag}} for one in images]
    monitor.execute("transaction", {"actions": actions})


def settle_job(monitor: Monitor) -> None:
    """Wait until the job of whoever was here before is over, and let QEMU forget it.

    Raises:
        DeadlineExceeded: it is not over in time.
    """
    while (state := job_states(monitor).get(JOB)) is not None and not state.over:
        if monitor.deadline.expired:
            raise DeadlineExceeded(f"QEMU is not done with its snapshot ({state.status})")
        monitor.pause()
    dismiss_jobs(monitor, [JOB])


def _is_over(event: Mapping[str, Any]) -> bool:
    data = event.get("data")
    return (
        event["event"] == "JOB_STATUS_CHANGE"
        and isinstance(data, Mapping)
        and data.get("id") == JOB
        and data.get("status") == "concluded"
    )


def _run(monitor: Monitor, command: str, arguments: Mapping[str, Any], watch: Callable[[], None] | None = None) -> None:
    if monitor.deadline.expired:
        raise DeadlineExceeded("there was no time left for it", hint="give it more time")
    settle_job(monitor)
    monitor.execute(command, {"job-id": JOB, **arguments})
    while watch is not None and not monitor.deadline.expired:
        watch()
        # A question would not be answered before it is done.
        if monitor.wait_event(_is_over, monitor.deadline.sooner(_LOOK_AGAIN)) is not None:
            break
    try:
        wait_jobs(monitor, [JOB])
    except OperationFailed as error:
        words = job_states(monitor).get(JOB)
        dismiss_jobs(monitor, [JOB])
        if words is None or not words.error:
            raise
        hint = "make room where the images are" if "No space" in words.error else None
        raise HypervisorRefused(command, "GenericError", words.error, hint=hint) from error
    dismiss_jobs(monitor, [JOB])
