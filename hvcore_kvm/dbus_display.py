"""A connection to the display of an instance with console type ``dbus``, for clients that speak D-Bus."""

from __future__ import annotations

import contextlib
import socket
import uuid

from hvcore import Console, Deadline, DeadlineExceeded, HypervisorRefused, UnsupportedOperation
from hvcore_kvm.qmp import QmpClient, QmpError, QmpRefused

PROTOCOL = "@dbus-display"


def open_dbus_display(console: Console, *, timeout: float = 10.0) -> socket.socket:
    """Connect to a display peer to peer; a client that was connected before is dropped.

    QEMU is the server of the connection: the client begins with the authentication of the D-Bus specification, and
    finds the objects below ``/org/qemu/Display1`` (QEMU's document "D-Bus display").

    Args:
        console: of type ``dbus``, as `Driver.get_instance_console` described it.
        timeout: seconds QEMU may take.

    Returns:
        The client's end; the caller closes it.

    Raises:
        UnsupportedOperation: it is another type of console.
        HypervisorRefused: QEMU refused the connection.
        DeadlineExceeded: QEMU does not answer.
    """
    if console.kind != "dbus" or console.socket_path is None:
        raise UnsupportedOperation(f"console type {console.kind} is not reached by D-Bus", instance=console.instance)
    deadline = Deadline.after(timeout)
    ours, theirs = socket.socketpair()
    name = f"display-{uuid.uuid4().hex}"
    try:
        with theirs, QmpClient.connect(console.socket_path, deadline) as client:
            client.execute("getfd", {"fdname": name}, deadline=deadline, fds=[theirs.fileno()])
            try:
                client.execute("add_client", {"protocol": PROTOCOL, "fdname": name}, deadline=deadline)
            except QmpRefused:
                with contextlib.suppress(QmpError):
                    client.execute("closefd", {"fdname": name}, deadline=deadline)
                raise
    except QmpRefused as error:
        ours.close()
        raise HypervisorRefused(
            error.command, error.error_class, error.text, instance=console.instance, hint=None
        ) from error
    except QmpError as error:
        ours.close()
        raise DeadlineExceeded(f"QEMU does not answer: {error}", instance=console.instance) from error
    return ours
