"""Writing overlays into the images below them. Source: QEMU QMP reference, ``block-commit``; qemu-img, ``commit``.

While QEMU does it the guest goes on. At the end each job waits, and so does what the guest writes: overlay and image
below are equal then, and on stable storage (QEMU flushes before it gets there), until the job is finalized.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from hvcore import DeadlineExceeded, HypervisorRefused, OperationFailed
from hvcore_kvm.block_job import cancel_jobs, dismiss_jobs, job_states, wait_jobs
from hvcore_kvm.block_nodes import block_chains, node_names, node_stacks
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.hardware.storage import layer_id, top_nodes
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.snapshots.growth import OnProgress


def job_id(uuid: str) -> str:
    """The name of the job of a disk."""
    return device_id("commit", uuid)


def node_below(names: Container[str], uuid: str, lower: str | None) -> str:
    """The node that an overlay lies upon.

    Args:
        names: the nodes that QEMU has.
        uuid: the disk.
        lower: path of the overlay below it; ``None`` for the image that the definition names.
    """
    return top_nodes(names, uuid, lower)[1]


def refuse_jobs(monitor: Monitor) -> None:
    """Refuse while QEMU is at work on the disks for somebody else.

    Raises:
        OperationFailed: it is.
    """
    working = [str(row.get("type", "")) for row in monitor.execute("query-block-jobs")]
    if working:
        message = f"QEMU is at work on its disks ({', '.join(sorted(set(working)))})"
        raise OperationFailed(message, code="job-under-way", hint="wait until that is done, or end it")


def on_overlay(monitor: Monitor, overlays: Mapping[str, str]) -> set[str]:
    """The disks whose device uses an overlay, with none upon it.

    Args:
        monitor: the connection.
        overlays: path of the overlay, by uuid of the disk.
    """
    stacks = node_stacks(monitor)
    return {uuid for uuid, path in overlays.items() if layer_id(uuid, path) in stacks.get(device_id("disk", uuid), ())}


def commit_until_equal(
    monitor: Monitor, overlays: Mapping[str, str], lower: Mapping[str, str | None], on_progress: OnProgress
) -> None:
    """Write the topmost overlays into what is below, until all are equal and nothing can be written to either.

    Args:
        monitor: the connection; its deadline bounds it.
        overlays: path of the topmost overlay, by uuid of the disk.
        lower: what each lies upon; see `lower_overlays`.
        on_progress: told how far it is.

    Raises:
        HypervisorRefused: QEMU's own words. Others of the jobs may be under way.
        OperationFailed: the same.
        DeadlineExceeded: they are not equal in time; the same.
    """
    jobs = [job_id(uuid) for uuid in overlays]
    stacks, names = node_stacks(monitor), node_names(monitor)
    for uuid, path in overlays.items():
        monitor.execute(
            "block-commit",
            {
                "job-id": job_id(uuid),
                "device": stacks[device_id("disk", uuid)][0],
                "top-node": layer_id(uuid, path),
                "base-node": node_below(names, uuid, lower[uuid]),
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


def in_chain(monitor: Monitor, overlays: Mapping[str, str]) -> set[str]:
    """The disks whose device reads through an overlay, whatever lies upon that.

    Args:
        monitor: the connection.
        overlays: path of the overlay, by uuid of the disk.
    """
    chains = block_chains(monitor)
    return {uuid for uuid, path in overlays.items() if layer_id(uuid, path) in chains.get(device_id("disk", uuid), ())}


def left_out(monitor: Monitor, overlays: Mapping[str, str]) -> set[str]:
    """The disks whose device does not read through an overlay any more; see `in_chain`."""
    chains = block_chains(monitor)
    return {uuid for uuid in overlays if device_id("disk", uuid) in chains} - in_chain(monitor, overlays)


def commit_below(
    monitor: Monitor, overlays: Mapping[str, str], lower: Mapping[str, str | None], on_progress: OnProgress
) -> None:
    """Write overlays upon which others lie into what is below, and let QEMU leave them out.

    What is read through the others is the same before, meanwhile and afterwards, with these overlays and without them.
    The guest's writes do not wait. When it returns, what was written is on stable storage: QEMU opens the images anew,
    for reading, and flushes them for that.

    Args:
        monitor: the connection; its deadline bounds it.
        overlays: path of the overlay, by uuid of the disk.
        lower: what each lies upon; see `lower_overlays`.
        on_progress: told how far it is.

    Raises:
        HypervisorRefused: QEMU's own words. Others of the jobs may be under way.
        OperationFailed: the same.
        DeadlineExceeded: they are not written in time; the same.
    """
    jobs = [job_id(uuid) for uuid in overlays]
    chains, names = block_chains(monitor), node_names(monitor)
    for uuid, path in overlays.items():
        monitor.execute(
            "block-commit",
            {
                "job-id": job_id(uuid),
                "device": chains[device_id("disk", uuid)][0],
                "top-node": layer_id(uuid, path),
                "base-node": node_below(names, uuid, lower[uuid]),
                # QEMU would write into the header of the overlay above what it has opened below.
                "backing-file": "",
                "auto-finalize": False,
                "auto-dismiss": False,
            },
        )
    wait_jobs(monitor, jobs, until="pending", phase="committing", on_progress=on_progress)
    for job in jobs:
        monitor.execute("job-finalize", {"id": job})
    wait_jobs(monitor, jobs, phase="completing", on_progress=on_progress)
    there = in_chain(monitor, overlays)
    if there:
        message = f"QEMU has not let go of the overlay of disk {', '.join(sorted(there))}"
        raise OperationFailed(message, code="not-done", hint="try again")
    dismiss_jobs(monitor, jobs)


def cancel_commit(monitor: Monitor, overlays: Mapping[str, str]) -> None:
    """End commits where they are: the devices stay on the overlays, which lack nothing."""
    cancel_jobs(monitor, [job_id(uuid) for uuid in overlays])


def finish_commit(monitor: Monitor, overlays: Mapping[str, str]) -> set[str]:
    """Let the devices go on with what is below overlays that are equal to it; again what was done is no error.

    Returns:
        Disks whose device has stayed on its overlay.
    """
    states = job_states(monitor)
    jobs = [job_id(uuid) for uuid in overlays if job_id(uuid) in states]
    for job in jobs:
        if states[job].status == "pending":
            monitor.attempt("job-finalize", {"id": job})
        elif not states[job].over:
            # It was told to complete and has been prevented; what it has not copied is in the overlay.
            monitor.attempt("job-cancel", {"id": job})
    while jobs and not all(state.over for ident, state in job_states(monitor).items() if ident in jobs):
        _let_be(monitor, "QEMU does not end what it was told to complete")
    dismiss_jobs(monitor, jobs)
    return on_overlay(monitor, overlays)


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
    return name in node_names(monitor)
