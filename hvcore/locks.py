"""One mutating operation at a time per instance, over threads and processes, with a bounded wait.

A lock is a file with an exclusive ``flock``: the kernel releases it when its holder dies. The file says who holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator

from hvcore.deadline import Deadline
from hvcore.directories import private_directory
from hvcore.errors import InstanceBusy
from hvcore.model.units import format_seconds

_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05


@contextlib.contextmanager
def instance_lock(directory: str, name: str, operation: str, deadline: Deadline) -> Iterator[None]:
    """Hold the lock of one instance.

    Args:
        directory: where lock files are; made if needed.
        name: name of the instance, its grammar checked.
        operation: what the holder is doing, for those who have to wait.
        deadline: how long to wait.

    Raises:
        InstanceBusy: it was not free in time; names the holder's operation and pid.
        HostError: the directory cannot be used.
    """
    private_directory(directory)
    path = os.path.join(directory, f"{name}.lock")
    fd = _acquire(path, name, deadline)
    try:
        _write_holder(fd, operation)
        yield
    finally:
        # Unlinked while still held: whoever waits on this file sees that it is gone and opens the next one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


def sweep_locks(directory: str) -> None:
    """Remove the lock files of holders that were killed; those in use stay."""
    try:
        names = [name.removesuffix(".lock") for name in os.listdir(directory) if name.endswith(".lock")]
    except FileNotFoundError:
        return
    for name in names:
        with contextlib.suppress(InstanceBusy), instance_lock(directory, name, "recover", Deadline.after(0)):
            pass  # taking and leaving it removes the file


def _acquire(path: str, name: str, deadline: Deadline) -> int:
    wait = _FIRST_WAIT
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(fd)
            os.close(fd)
            if deadline.expired:
                raise InstanceBusy(
                    f"is busy: {holder}", instance=name, hint="try again when that has finished"
                ) from None
            # flock has no timeout; a signal to interrupt it would belong to the host application.
            time.sleep(min(wait, deadline.timeout()))
            wait = min(wait * 2, _LONGEST_WAIT)
            continue
        except BaseException:
            os.close(fd)
            raise
        if _is_current(fd, path):
            return fd
        os.close(fd)


def _is_current(fd: int, path: str) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _write_holder(fd: int, operation: str) -> None:
    # Only for those who wait: on a file system without room the lock is held all the same.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"operation": operation, "pid": os.getpid(), "since": time.time()}).encode(), 0)


def _read_holder(fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 512, 0))
        age = format_seconds(max(0.0, time.time() - holder["since"]))
        return f"{holder['operation']} by process {holder['pid']}, begun {age} ago"
    except (ValueError, KeyError, TypeError):
        # The holder has the lock and has not yet said who it is.
        return "another operation has just begun"
