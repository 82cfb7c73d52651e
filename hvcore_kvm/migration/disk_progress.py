"""How far the copy of disks to another host is; changes nothing."""

from __future__ import annotations

import time

from hvcore import MigrationPhase, MigrationStatus
from hvcore_kvm.block_job import JobState, job_states
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.runtime import MigrationRecord

KIND = "moving"
"""What ids of all that copies a disk begin with."""


def mirror_id(uuid: str) -> str:
    """Id of the job that copies a disk, of the node it copies to, and of the export on the destination."""
    return device_id(KIND, uuid)


def mirror_states(monitor: Monitor, record: MigrationRecord) -> list[JobState]:
    """What QEMU says of the jobs that copy disks."""
    wanted = {mirror_id(uuid) for uuid in record.disks}
    return [state for ident, state in job_states(monitor).items() if ident in wanted]


def copy_status(monitor: Monitor, record: MigrationRecord) -> MigrationStatus:
    """How far the copy of disks is, or how it ended.

    Args:
        monitor: of the QEMU that runs the guest.
        record: of the migration, which has not gone on to the guest itself, or has failed because of a disk.
    """
    if record.ended:
        phase = MigrationPhase.FAILED if record.ended == "failed" else MigrationPhase.CANCELLED
        return MigrationStatus(phase=phase, error=record.error)
    states = {state.id: state for state in mirror_states(monitor, record)}
    done = sum(state.done for state in states.values())
    total = done
    for uuid, size in zip(record.disks, record.sizes, strict=False):
        state = states.get(mirror_id(uuid))
        # A mirror looks through its disk before it says how much there is.
        total += size if state is None or not state.total else max(0, state.total - state.done)
    elapsed = max(1e-3, time.time() - record.began)
    return MigrationStatus(
        phase=MigrationPhase.DISKS,
        transferred=done,
        remaining=total - done,
        total=total,
        rate=done / elapsed,
        total_time=elapsed,
    )


def broken_mirror(monitor: Monitor, record: MigrationRecord) -> str:
    """Why the copy of a disk does not go on; empty while all of them do."""
    states = {state.id: state for state in mirror_states(monitor, record)}
    for uuid in record.disks:
        state = states.get(mirror_id(uuid))
        if state is None:
            return f"the copy of disk {uuid} is not there any more"
        if state.error:
            return f"disk {uuid} could not be copied: {state.error}"
        if state.over:
            return f"the copy of disk {uuid} has ended"
    return ""


def all_ready(monitor: Monitor, record: MigrationRecord) -> bool:
    """Every disk has been copied once, and what the guest writes follows."""
    states = mirror_states(monitor, record)
    return len(states) == len(record.disks) and all(state.ready for state in states)
