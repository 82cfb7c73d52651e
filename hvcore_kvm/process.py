"""Processes: who they are, whether they live, how they begin and end.

A process is known by pid, start time and boot id, and held by a pidfd: a pid alone may belong to somebody else by the
time it is used. A zombie is dead: ``/proc`` and ``kill(pid, 0)`` call it alive until PID 1 reaps it, a pidfd does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from hvcore import Deadline, HostError, boot_id, process_start_time

ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""The whole environment of a QEMU process: nothing of the host application's leaks into it."""

FIRST_FD = 3
"""Number of the first descriptor a QEMU process inherits besides standard input, output and error."""

_CHDIR = ("/usr/bin/env", "--chdir=/")
"""Changes the working directory where a thread cannot have one of its own."""

_CLONE_FS = 0x200
_MOMENT = 3.0
_TERM_PATIENCE = 3.0


@attrs.frozen(kw_only=True)
class ProcessIdentity:
    """What tells one process from every other there ever was.

    Attributes:
        pid: process id.
        start_time: field 22 of ``/proc/PID/stat``, in clock ticks since boot.
        boot_id: ``/proc/sys/kernel/random/boot_id``.
    """

    pid: int
    start_time: int
    boot_id: str


def identify(pid: int) -> ProcessIdentity:
    """The identity of a process that is there.

    Raises:
        ProcessLookupError: it is not.
    """
    return ProcessIdentity(pid=pid, start_time=process_start_time(pid), boot_id=boot_id())


@contextlib.contextmanager
def held(identity: ProcessIdentity) -> Iterator[int | None]:
    """Hold a process by a pidfd: yields it, or ``None`` when the process is not there any more.

    The process may die while it is held; ask `is_dead`.
    """
    fd = _open(identity)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def is_alive(identity: ProcessIdentity) -> bool:
    """The process is there and has not ended."""
    with held(identity) as fd:
        return fd is not None and not is_dead(fd)


def is_dead(pidfd: int) -> bool:
    """The process has ended, reaped or not; reaps it if it is a child of ours."""
    return wait_dead(pidfd, Deadline.after(0))


def wait_dead(pidfd: int, deadline: Deadline) -> bool:
    """Wait for the end of a process; true when it has ended. Reaps it if it is a child of ours."""
    return end_of(pidfd, deadline) is not None


def ends(identity: ProcessIdentity) -> bool:
    """The process has ended, or does so in a moment: a QEMU that dies closes its monitor first."""
    with held(identity) as pidfd:
        return pidfd is None or wait_dead(pidfd, Deadline.after(_MOMENT))


@attrs.frozen(kw_only=True)
class End:
    """A process has ended; its exit status, negative for a signal, ``None`` if it was not our child."""

    status: int | None


def end_of(pidfd: int, deadline: Deadline) -> End | None:
    """Wait for the end of a process and say how it ended; ``None`` when it has not. Reaps it if it is our child."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    # Rounded up: a wait that ends early would find its deadline not yet over.
    if not poll.poll(math.ceil(deadline.timeout() * 1000)):
        return None
    return End(status=_reap(pidfd))


_CHILDREN: set[int] = set()
"""Pids of the processes `spawn` has started and nobody has reaped: they are this process's, whoever drives them."""

_CHILDREN_LOCK = threading.Lock()


def reap_children() -> None:
    """Reap processes of ours that somebody else has ended; they would stay zombies as long as this process lives."""
    with _CHILDREN_LOCK:
        for pid in tuple(_CHILDREN):
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                _CHILDREN.discard(pid)
                continue
            if ended is not None:
                _CHILDREN.discard(pid)


def _reap(pidfd: int) -> int | None:
    with _CHILDREN_LOCK:
        try:
            found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return None
        if found is None:
            return None
        # From here on the pid may become that of another child of the host application.
        _CHILDREN.discard(found.si_pid)
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def end(pidfd: int, deadline: Deadline, *, flush: bool = True) -> bool:
    """End a process: SIGTERM, so that it can flush, and SIGKILL soon after. True when it has ended.

    A stopped process does not hear SIGTERM; it is killed at once, and so is one that has nothing to flush.
    """
    with contextlib.suppress(ProcessLookupError):
        if flush:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if not _is_stopped(pidfd) and wait_dead(pidfd, deadline.sooner(_TERM_PATIENCE)):
                return True
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return wait_dead(pidfd, deadline.sooner(10.0) if deadline.expired else deadline)


def holders(path: str) -> tuple[int, ...]:
    """Pids of other processes that append to a file, found by its inode. For recovery; reads all of ``/proc``.

    One that only reads it, as somebody who looks at a log, is not meant, nor one that holds it to its size.
    """
    try:
        wanted = os.stat(path)
    except FileNotFoundError:
        return ()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            fds = os.listdir(f"/proc/{entry}/fd")
        except OSError:
            continue  # gone, a zombie, or somebody else's
        for fd in fds:
            try:
                seen = os.stat(f"/proc/{entry}/fd/{fd}")
            except OSError:
                continue
            if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino) and _appends(entry, fd):
                found.append(int(entry))
                break
    return tuple(found)


def _appends(pid: str, fd: str) -> bool:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
            flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), 0)
    except OSError:
        return False  # closed meanwhile
    return bool(flags & os.O_APPEND)


def spawn(
    argv: Sequence[str],
    fds: Sequence[int],
    output_fd: int,
    launcher: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
) -> int:
    """Start a process in a session of its own with exactly the given descriptors and a clean environment.

    Args:
        argv: program and arguments.
        fds: descriptors of ours; they become numbers 3, 4, ... of the new process, in this order.
        output_fd: where its standard output and error go; its standard input is ``/dev/null``.
        launcher: argument words put before ``argv``.
        prepare: called by the thread that starts the process, which is used for nothing else: what it changes of
            itself the process inherits.

    Returns:
        Its pid. It is a child of this process; `wait_dead` reaps it.

    Raises:
        HostError: the kernel refused.
    """
    moved: list[int] = []
    try:
        # Above every target number, so that no target overwrites a source that is still needed.
        for fd in (*fds, output_fd):
            moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + len(fds) + 1))
        output = moved[-1]
        actions: list[tuple[int, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),  # type: ignore[list-item]
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
        actions += [(os.POSIX_SPAWN_DUP2, fd, FIRST_FD + index) for index, fd in enumerate(moved[:-1])]
        # Python's own descriptors close on exec; those of C libraries in the host application may not.
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd >= FIRST_FD + len(fds)]
        pid = _spawn_in_root([*launcher, *argv], actions, prepare)
    except OSError as error:
        raise HostError(f"cannot start a process: {error.strerror}", code="spawn-refused") from error
    finally:
        for fd in moved:
            os.close(fd)
    with _CHILDREN_LOCK:
        _CHILDREN.add(pid)
    return pid


def _spawn_in_root(words: list[str], actions: Sequence[tuple[int, ...]], prepare: Callable[[], None] | None) -> int:
    """Start a process with ``/`` as its working directory and a umask that gives nothing to others.

    posix_spawn has neither, and both belong to the whole host application. But Linux lets a thread have its own
    (unshare with CLONE_FS), which the process it starts inherits: a thread for this one call costs a tenth of executing
    another program in between. Where that is not allowed, as in some containers, the other program does it.

    Raises:
        OSError: the kernel refused to start the program.
    """
    outcome: list[int | OSError | HostError] = []

    def run() -> None:
        try:
            prefix: tuple[str, ...] = _CHDIR
            if _unshare_fs():
                os.chdir("/")
                os.umask(0o077)
                prefix = ()
            if prepare is not None:
                prepare()
            outcome.append(_posix_spawn([*prefix, *words], actions))
        except (OSError, HostError) as error:
            outcome.append(error)

    thread = threading.Thread(target=run, name="hvcore spawn")
    thread.start()
    thread.join()
    (result,) = outcome
    if isinstance(result, OSError | HostError):
        raise result
    return result


def _unshare_fs() -> bool:
    """Give this thread a working directory and a umask of its own; false where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)  # os.unshare comes with Python 3.12
    return bool(libc.unshare(_CLONE_FS) == 0)


def _posix_spawn(words: list[str], actions: Sequence[tuple[int, ...]]) -> int:
    return os.posix_spawn(
        words[0],
        words,
        dict(ENVIRONMENT),
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
    )


def _open(identity: ProcessIdentity) -> int | None:
    if identity.boot_id != boot_id():
        return None
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return None
        raise
    # Compared after opening: the pidfd cannot move to another process any more.
    try:
        same = process_start_time(identity.pid) == identity.start_time
    except ProcessLookupError:
        same = False
    if not same:
        os.close(fd)
        return None
    return fd


def _is_stopped(pidfd: int) -> bool:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


def _inheritable() -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(entry)):
                found.append(int(entry))
        except OSError:
            continue  # the descriptor of the listing itself
    return found
