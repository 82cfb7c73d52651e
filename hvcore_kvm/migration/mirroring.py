"""The source of copied disks: QEMU mirrors each to the destination, while the guest runs and until it has stopped.

The guest never waits for the other host: what it writes is written here, and copied afterwards (``copy-mode``
``background``). Once it has stopped to go over, what is left is copied and the mirrors end; from then on both sides
have the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from hvcore import Deadline, MigrationPolicy, MigrationTarget, OperationFailed
from hvcore_kvm.block_job import cancel_jobs, job_states, wait_jobs
from hvcore_kvm.block_nodes import attached_nodes
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.migration.disk_progress import KIND, mirror_id, mirror_states
from hvcore_kvm.migration.exporting import connect_disks
from hvcore_kvm.migration.monitor import Monitor
from hvcore_kvm.runtime import MigrationRecord

_CONNECTION = "moving"
_PATIENCE = 20.0
"""Seconds that mirrors may take to end once they are cancelled."""


def start_mirrors(
    monitor: Monitor, target: MigrationTarget, policy: MigrationPolicy, disks: Collection[str], credentials: str | None
) -> None:
    """Begin to copy disks.

    Args:
        monitor: of the QEMU that runs the guest.
        target: where the destination takes them.
        policy: how fast they may be copied.
        disks: their uuids.
        credentials: id of QEMU's object with the certificates; ``None`` without TLS.

    Raises:
        HostError: the destination cannot be reached.
        HypervisorRefused: QEMU's own words.
    """
    security = {} if credentials is None else {"tls-creds": credentials, "tls-hostname": target.tls_hostname}
    # All of them together take no more than is allowed.
    speed = 0 if policy.max_bandwidth is None else max(1, policy.max_bandwidth // max(1, len(disks)))
    nodes = attached_nodes(monitor)
    for uuid in disks:
        ident, device = mirror_id(uuid), device_id("disk", uuid)
        top = nodes.get(device, {}).get("node-name", device)
        # Connected here and not by QEMU, so that a host that is gone without a word is noticed in time.
        with connect_disks(target.address, target.disks_port or 0, monitor.deadline.remaining()) as connection:
            monitor.execute("getfd", {"fdname": _CONNECTION}, (connection.fileno(),))
        server = {"type": "fd", "str": _CONNECTION}
        node = {"driver": "nbd", "node-name": ident, "server": server, "export": uuid, "discard": "unmap", **security}
        monitor.execute("blockdev-add", node)
        mirror: dict[str, Any] = {"job-id": ident, "device": top, "target": ident, "sync": "full"}
        mirror |= {"speed": speed, "on-source-error": "report", "on-target-error": "report", "auto-dismiss": False}
        monitor.execute("blockdev-mirror", mirror)


def finish_mirrors(monitor: Monitor, record: MigrationRecord) -> None:
    """Copy what is left of disks whose guest has stopped, and end the mirrors. May be done again.

    Raises:
        OperationFailed: something could not be copied; QEMU's own words.
        DeadlineExceeded: it takes too long; the guest has not gone over.
    """
    idents = [mirror_id(uuid) for uuid in record.disks]
    states = {state.id: state for state in mirror_states(monitor, record)}
    for ident in idents:
        state = states.get(ident)
        if state is not None and not state.over:
            if not state.ready:
                raise OperationFailed(f"{ident} is {state.status}, and was not copied completely")
            monitor.attempt("block-job-set-speed", {"device": ident, "speed": 0})
            # One that somebody has paused would not be ended.
            monitor.attempt("block-job-resume", {"device": ident})
            # One that is ready ends with what is on both sides the same; the guest's node stays the local one.
            monitor.execute("block-job-cancel", {"device": ident, "force": False})
    wait_jobs(monitor, idents)
    for ident in idents:
        monitor.attempt("blockdev-del", {"node-name": ident})


def remove_mirrors(monitor: Monitor) -> None:
    """Take away all that copies disks; the guest runs on with what is here. May be done again.

    Raises:
        DeadlineExceeded: they do not end.
        OutcomeUnknown: QEMU does not answer.
    """
    for ident in _nodes(monitor):
        # QEMU would wait for an answer of the other side, which may be gone, and its guest's disks with it.
        monitor.attempt("yank", {"instances": [{"type": "block-node", "node-name": ident}]})
    idents = [ident for ident in job_states(monitor) if ident.startswith(f"{KIND}-")]
    if idents:
        before, monitor.deadline = monitor.deadline, Deadline.after(_PATIENCE)
        try:
            cancel_jobs(monitor, idents)
        finally:
            monitor.deadline = before
    for ident in _nodes(monitor):
        monitor.attempt("blockdev-del", {"node-name": ident})


def _nodes(monitor: Monitor) -> Iterable[str]:
    rows = monitor.execute("query-named-block-nodes", {"flat": True})
    names = [str(row.get("node-name", "")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [name for name in names if name.startswith(f"{KIND}-")]
