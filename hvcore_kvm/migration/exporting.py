"""The destination of copied disks: its QEMU offers them by NBD, each under its uuid, until the guest is let run."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterable

from hvcore import HostError, MigrationPolicy
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.migration.disk_progress import mirror_id
from hvcore_kvm.migration.monitor import Monitor

_LISTENER = "moving"
_DISTRESS = 30_000
"""Milliseconds without an answer after which the kernel gives a connection up; by itself it takes many minutes."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def export_disks(
    monitor: Monitor, address: Address, policy: MigrationPolicy, disks: Iterable[str], security: dict[str, str]
) -> int:
    """Let the source write to disks.

    Args:
        monitor: of the QEMU that waits for the guest.
        address: where to listen.
        policy: which ports may be used.
        disks: uuids of the disks.
        security: ``tls-creds`` and ``tls-authz`` of the server, empty without TLS.

    Returns:
        The port.

    Raises:
        HostError: none of the ports is free.
        HypervisorRefused: QEMU's own words.
    """
    with _listen(address, policy) as listener:
        port: int = listener.getsockname()[1]
        # Given as a descriptor: QEMU does not tell which of several ports it has taken.
        monitor.execute("getfd", {"fdname": _LISTENER}, (listener.fileno(),))
        where = {"type": "fd", "data": {"str": _LISTENER}}
        monitor.execute("nbd-server-start", {"addr": where, **security})
    for uuid in disks:
        export = {"type": "nbd", "id": mirror_id(uuid), "node-name": device_id("disk", uuid)}
        monitor.execute("block-export-add", {**export, "name": uuid, "writable": True})
    return port


def stop_exports(monitor: Monitor) -> None:
    """Nobody writes to the disks from elsewhere any more. May be done again."""
    # Its exports end with it.
    monitor.attempt("nbd-server-stop")


def connect_disks(address: str, port: int, timeout: float) -> socket.socket:
    """Connect to the exported disks.

    Raises:
        HostError: that is not possible.
    """
    try:
        connection = socket.create_connection((address, port), timeout=max(0.1, min(timeout, _DISTRESS / 1000)))
    except OSError as error:
        reason = error.strerror or str(error)
        raise HostError(
            f"cannot connect to {address} port {port}, where the destination takes disks: {reason}",
            code="unreachable",
            hint="every port from first_port to last_port of the policy has to be open",
        ) from error
    connection.settimeout(None)
    _give_up_in_time(connection)
    return connection


def _listen(address: Address, policy: MigrationPolicy) -> socket.socket:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    problem: OSError | None = None
    for port in range(policy.first_port, policy.last_port + 1):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _give_up_in_time(listener)
            listener.bind((str(address), port))
            listener.listen()
        except OSError as error:
            listener.close()
            problem = error
            if error.errno != errno.EADDRINUSE:
                break
        else:
            return listener
    why = os.strerror(problem.errno or 0) if problem is not None else ""
    raise HostError(
        f"cannot listen on {address} port {policy.first_port} to {policy.last_port} for disks: {why}",
        code="no-port",
        hint="give the policy more ports",
    )


def _give_up_in_time(connection: socket.socket) -> None:
    """A peer that is gone without a word is noticed, also when nothing is sent to it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DISTRESS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
