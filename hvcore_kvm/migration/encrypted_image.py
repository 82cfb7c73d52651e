"""An empty encrypted image, made by a QEMU that runs nothing: the keys are made there, and only QEMU has the cipher.

What it is given it gets by descriptor: the image, which may be one that another user cannot open, and the secret.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from typing import Any

from hvcore import Deadline, DeadlineExceeded, OperationFailed, OutcomeUnknown
from hvcore_kvm import process
from hvcore_kvm.block_job import wait_jobs
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.qmp import QmpClient, QmpError
from hvcore_kvm.secrets import open_secret

HEADER = 2 << 20
"""Bytes that the header of a LUKS image takes at most, as QEMU makes it."""

_ITERATION_TIME = 2000
"""Milliseconds that trying one secret takes on this host; QEMU's own default."""

_JOB = "encrypt"
_ATTEMPTS = 5
_UNMEASURED = "Unable to get accurate CPU usage"
"""QEMU's words when it has seen no time pass on trying a secret, where the kernel counts that in coarse steps."""

_LIMITED = ("/usr/bin/timeout", "--kill-after=1", "120")
"""Ends it, should the host application be killed meanwhile."""


def make_encrypted(qemu: str, fd: int, kind: str, size: int, secret_file: str, deadline: Deadline) -> None:
    """Make an empty image whose content is encrypted (LUKS).

    Args:
        qemu: path of the program.
        fd: the image, open for reading and writing.
        kind: ``luks``, or ``qcow2`` for one with an encrypted content.
        size: bytes that the guest sees.
        secret_file: file with the secret that opens it.
        deadline: by when to be done.

    Raises:
        HostError: the secret cannot be read.
        OperationFailed: it cannot be made; QEMU's own words.
        DeadlineExceeded: it was not made in time.
    """
    driver = "host_device" if stat.S_ISBLK(os.fstat(fd).st_mode) else "file"
    secret = open_secret(secret_file)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with ours, theirs, tempfile.TemporaryFile() as output:
            first = process.FIRST_FD
            argv = [
                qemu,
                *("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"),
                *("-chardev", f"socket,id=control,fd={first}", "-mon", "chardev=control,mode=control"),
                *("-add-fd", f"set=1,fd={first + 1}"),
                *("-object", f"secret,id=key,file=/proc/self/fd/{first + 2}"),
                *("-blockdev", f"driver={driver},node-name=image,filename=/dev/fdset/1"),
            ]
            pidfd = os.pidfd_open(process.spawn(argv, [theirs.fileno(), fd, secret], output.fileno(), _LIMITED))
            try:
                theirs.close()
                client = QmpClient(ours)
                client.negotiate(deadline)
                _create(Monitor(client, deadline), kind, size)
            except (QmpError, OutcomeUnknown) as error:
                # Nothing depends on this QEMU, so nobody has to find out how far it was.
                if deadline.expired:
                    hint = "give it more time; trying a secret is slow on purpose"
                    raise DeadlineExceeded("an encrypted image was not made in time", hint=hint) from error
                output.seek(0)
                words = output.read(4096).decode(errors="replace").strip()
                raise OperationFailed(f"QEMU could not make an encrypted image: {words or error}") from error
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.end(pidfd, Deadline.after(5))
                os.close(pidfd)
    finally:
        os.close(secret)


def _create(monitor: Monitor, kind: str, size: int) -> None:
    luks = {"key-secret": "key", "iter-time": _ITERATION_TIME}
    options: dict[str, Any] = {"driver": kind, "file": "image", "size": size}
    options |= luks if kind == "luks" else {"encrypt": {"format": "luks", **luks}}
    for attempt in range(_ATTEMPTS):
        job = f"{_JOB}{attempt}"
        monitor.execute("blockdev-create", {"job-id": job, "options": options})
        try:
            wait_jobs(monitor, [job])
        except OperationFailed as error:
            if _UNMEASURED not in str(error) or attempt == _ATTEMPTS - 1:
                raise
        else:
            return
