"""What is asked of QEMU about consoles: the picture of the display, passwords, and whatever a console type asks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from hvcore import (
    Deadline,
    DeadlineExceeded,
    Finding,
    FindingSet,
    HypervisorRefused,
    InvalidParameters,
    OutcomeUnknown,
    PasswordResult,
    Screenshot,
)
from hvcore_kvm.directory import CONTROL, QUERY, InstanceDirectory
from hvcore_kvm.qmp import QmpClient, QmpConnectError, QmpError, QmpRefused

PASSWORD_CONSOLES = ("vnc", "spice")
"""Console types that know passwords."""

_FDSET = 1_000_000
"""Number of the descriptor set of a picture; those of the command line begin with 1."""


def take_screenshot(directory: InstanceDirectory, deadline: Deadline) -> Screenshot:
    """The picture on the display, as PNG.

    Raises:
        HypervisorRefused: the instance has no display.
        DeadlineExceeded: QEMU did not answer in time.
    """
    picture = os.memfd_create("screenshot", os.MFD_CLOEXEC)
    try:
        with _monitor(directory, QUERY, deadline) as client, _passed(client, picture, deadline) as path:
            client.execute("screendump", {"filename": path, "format": "png"}, deadline=deadline)
        size = os.fstat(picture).st_size
        return Screenshot(media_type="image/png", data=os.pread(picture, size, 0))
    finally:
        os.close(picture)


@contextlib.contextmanager
def _passed(client: QmpClient, fd: int, deadline: Deadline) -> Iterator[str]:
    """Give QEMU a file to write to, wherever its root is and whoever it runs as; yields the path it opens."""
    # QEMU wants a descriptor whose access mode is the one it opens with.
    writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        client.execute("add-fd", {"fdset-id": _FDSET, "opaque": "screenshot"}, deadline=deadline, fds=[writable])
    finally:
        os.close(writable)
    try:
        yield f"/dev/fdset/{_FDSET}"
    finally:
        with contextlib.suppress(QmpError):
            client.execute("remove-fd", {"fdset-id": _FDSET}, deadline=deadline)


def ask(directory: InstanceDirectory, deadline: Deadline, command: str, arguments: Mapping[str, Any]) -> Any:
    """Give a command to the monitor for questions.

    Raises:
        HypervisorRefused: QEMU refused it.
        DeadlineExceeded: QEMU does not answer.
        OutcomeUnknown: it took the command and did not answer.
    """
    with _monitor(directory, QUERY, deadline) as client:
        return client.execute(command, arguments, deadline=deadline)


def set_password(
    directory: InstanceDirectory, kind: str, password: str, expires: float | None, deadline: Deadline
) -> PasswordResult:
    """Set the password of a graphical console; an empty one locks it.

    Args:
        directory: the instance's directory.
        kind: ``vnc`` or ``spice``.
        password: the new one.
        expires: seconds from now after which it is not accepted any more; ``None`` for never.
        deadline: by when to be done.

    Raises:
        InvalidParameters: the console type knows no passwords.
        HypervisorRefused: the console was started without.
        OutcomeUnknown: QEMU did not say whether it was set.
    """
    if kind not in PASSWORD_CONSOLES:
        message = f"console type {kind} knows no passwords"
        raise InvalidParameters(message, FindingSet([Finding(code="no-password", path="kind", message=message)]))
    until = None if expires is None else time.time() + expires
    # Locked first: an old deadline must not hold for the new password, nor the new one before its own is set.
    # QEMU counts in whole seconds, and lets in during the last one.
    over = not password or (expires is not None and expires < 1)
    when = "now" if over else "never" if until is None else str(int(until))
    with _monitor(directory, CONTROL, deadline) as client:
        client.execute("expire_password", {"protocol": kind, "time": "now"}, deadline=deadline)
        client.execute("set_password", {"protocol": kind, "password": password}, deadline=deadline)
        client.execute("expire_password", {"protocol": kind, "time": when}, deadline=deadline)
    return PasswordResult(kind=kind, expires=until if password else None)


@contextlib.contextmanager
def _monitor(directory: InstanceDirectory, name: str, deadline: Deadline) -> Iterator[QmpClient]:
    try:
        with QmpClient.connect(directory.join(name), deadline) as client:
            yield client
    except QmpRefused as error:
        hint = "start it with a password: password_file" if "password" in error.command else None
        raise HypervisorRefused(
            error.command, error.error_class, error.text, instance=directory.name, hint=hint
        ) from error
    except QmpConnectError as error:
        raise DeadlineExceeded(f"QEMU does not answer, nothing was asked of it: {error}") from error
    except QmpError as error:
        raise OutcomeUnknown(f"QEMU did not answer: {error}", instance=directory.name) from error
