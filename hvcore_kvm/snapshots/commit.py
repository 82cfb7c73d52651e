"""Writing overlays into the images below them. Source: QEMU QMP reference, ``block-commit``; qemu-img, ``commit``.

While QEMU does it the guest goes on. At the end each job waits, and so does what the guest writes: overlay and image
below are equal then, and on stable storage (QEMU flushes before it gets there), until the job is finalized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvcore import DeadlineExceeded, HypervisorRefused, OperationFailed
from hvcore_kvm.block_job import cancel_jobs, dismiss_jobs, job_states, wait_jobs
from hvcore_kvm.block_nodes import node_stacks
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.hardware.storage import layer_id
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.snapshots.growth import OnProgress


def job_id(uuid: str) -> str:
    """The name of the job of a disk."""
    return device_id("commit", uuid)


def node_below(stack: Sequence[str], uuid: str, number: int) -> str:
    """The node that an overlay lies upon.

    Args:
        stack: the nodes of the disk's device from the top, without those below an overlay.
        uuid: the disk.
        number: which overlay; see `layer_id`.
    """
    if number > 1:
        return layer_id(uuid, number - 1)
    top = device_id("disk", uuid)
    # A limit has the name that else the image has.
    limited = top in stack[:1] and stack[1:2] in (
        (device_id("image", uuid),),
        (layer_id(uuid, 1),),
    )
    return device_id("image", uuid) if limited else top


def refuse_jobs(monitor: Monitor) -> None:
    """Refuse while QEMU is at work on the disks for somebody else.

    Raises:
        OperationFailed: it is.
    """
    working = [str(row.get("type", "")) for row in monitor.execute("query-block-jobs")]
    if working:
        message = f"QEMU is at work on its disks ({', '.join(sorted(set(working)))})"
        raise OperationFailed(message, code="job-under-way", hint="wait until that is done, or end it")


def on_overlay(monitor: Monitor, numbers: Mapping[str, int]) -> set[str]:
    """The disks whose device uses the overlay of a number.

    Args:
        monitor: the connection.
        numbers: the number of the overlay, by uuid of the disk; see `layer_id`.
    """
    stacks = node_stacks(monitor)
    return {
        uuid for uuid, number in numbers.items() if layer_id(uuid, number) in stacks.get(device_id("disk", uuid), ())
    }


def commit_until_equal(monitor: Monitor, numbers: Mapping[str, int], on_progress: OnProgress) -> None:
    """Write the topmost overlays into what is below, until all are equal and nothing can be written to either.

    Args:
        monitor: the connection; its deadline bounds it.
        numbers: the number of the topmost overlay, by uuid of the disk.
        on_progress: told how far it is.

    Raises:
        HypervisorRefused: QEMU's own words. Others of the jobs may be under way.
        OperationFailed: the same.
        DeadlineExceeded: they are not equal in time; the same.
    """
    jobs = [job_id(uuid) for uuid in numbers]
    stacks = node_stacks(monitor)
    for uuid, number in numbers.items():
        stack = stacks[device_id("disk", uuid)]
        monitor.execute(
            "block-commit",
            {
                "job-id": job_id(uuid),
                "device": stack[0],
                "top-node": layer_id(uuid, number),
                "base-node": node_below(stack, uuid, number),
                "auto-finalize": False,
                "auto-dismiss": False,
            },
        )
    wait_jobs(monitor, jobs, until="ready", phase="committing", on_progress=on_progress)
    for job in jobs:
        monitor.execute("job-complete", {"id": job})
    wait_jobs(monitor, jobs, until="pending", phase="completing", on_progress=on_progress)
    ended = [states.type for states in job_states(monitor).values() if states.id in jobs and states.over]
    if ended:
        raise OperationFailed("somebody has ended what QEMU was doing", code="job-gone", hint="try again")


def cancel_commit(monitor: Monitor, numbers: Mapping[str, int]) -> None:
    """End commits where they are: the devices stay on the overlays, which lack nothing."""
    cancel_jobs(monitor, [job_id(uuid) for uuid in numbers])


def finish_commit(monitor: Monitor, numbers: Mapping[str, int]) -> set[str]:
    """Let the devices go on with what is below overlays that are equal to it; again what was done is no error.

    Returns:
        Disks whose device has stayed on its overlay.
    """
    states = job_states(monitor)
    jobs = [job_id(uuid) for uuid in numbers if job_id(uuid) in states]
    for job in jobs:
        if states[job].status == "pending":
            monitor.attempt("job-finalize", {"id": job})
        elif not states[job].over:
            # It was told to complete and has been prevented; what it has not copied is in the overlay.
            monitor.attempt("job-cancel", {"id": job})
    while jobs and not all(state.over for ident, state in job_states(monitor).items() if ident in jobs):
        _let_be(monitor, "QEMU does not end what it was told to complete")
    dismiss_jobs(monitor, jobs)
    return on_overlay(monitor, numbers)


def withdraw_nodes(monitor: Monitor, layers: Sequence[str]) -> None:
    """Let QEMU forget overlays that no device uses; what it has not is no error."""
    for layer in layers:
        while _has_node(monitor, layer):
            try:
                monitor.execute("blockdev-del", {"node-name": layer})
            except HypervisorRefused as error:
                # One that was the inner part of another goes with that; the others QEMU may still be letting go of.
                if "in use" not in error.text and "not owned" not in error.text:
                    raise
                _let_be(monitor, f"QEMU does not let go of the overlay {layer}: {error.text}")
    for row in monitor.execute("query-fdsets"):
        if any(fd.get("opaque") in layers for fd in row["fds"]):
            monitor.attempt("remove-fd", {"fdset-id": row["fdset-id"]})


def _let_be(monitor: Monitor, late: str) -> None:
    """Let QEMU do something for a moment, if there is time left."""
    if monitor.deadline.expired:
        raise DeadlineExceeded(late, hint="'hv recover' completes it")
    monitor.pause()


def _has_node(monitor: Monitor, name: str) -> bool:
    return any(row.get("node-name") == name for row in monitor.execute("query-named-block-nodes", {"flat": True}))
