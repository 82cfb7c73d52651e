"""Running a program of the host that is expected to end soon: bounded in time and output, in a clean environment."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hvcore import Deadline, HostError
from hvcore_kvm import process

if TYPE_CHECKING:
    import subprocess

_TAIL = 4096
_LIMIT = 1 << 20


def run_command(argv: Sequence[str], *, timeout: float, environment: Mapping[str, str] | None = None) -> str:
    """Run a program in ``/``, without input, in a session of its own; return what it prints, errors included.

    A process that it leaves behind is not waited for when it succeeds, and ended with it at the timeout.

    Args:
        argv: program and arguments.
        timeout: seconds it may take.
        environment: variables beside PATH and LC_ALL=C; nothing else is there.

    Returns:
        Its output, the last MiB at most.

    Raises:
        HostError: it could not be started, failed, or was killed at the timeout; the end of its output is in the
            message.
    """
    import subprocess  # not before it is needed: loading a driver is quick

    deadline = Deadline.after(timeout)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.set_blocking(writer, True)
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                cwd="/",
                env={**process.ENVIRONMENT, **(environment or {})},
                umask=0o022,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"cannot run {argv[0]}: {error.strerror}", code="command-failed") from error
        finally:
            os.close(writer)
        output, ended = _follow(child, reader, deadline)
    finally:
        os.close(reader)
    name = " ".join(argv)
    said = _tail(output)
    if not ended:
        message = f"{name} did not end within {timeout:g} seconds and was killed{said}"
        raise HostError(message, code="command-timeout", hint="see what it waits for, or give it more time")
    if child.returncode:
        code = child.returncode
        how = f"ended with status {code}" if code > 0 else f"was killed by signal {-code}"
        raise HostError(f"{name} {how}{said}", code="command-failed")
    return output.decode(errors="replace")


def _follow(child: subprocess.Popen[bytes], reader: int, deadline: Deadline) -> tuple[bytes, bool]:
    """Read what a program prints until it has ended; one that does not is killed with all its group."""
    output = b""
    ended = closed = False
    try:
        pidfd = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            while not ended and not deadline.expired:
                ready = dict(poll.poll(deadline.timeout() * 1000 + 1))
                # What it printed before it ended is in the pipe by then.
                ended = pidfd in ready
                if not closed and (reader in ready or ended):
                    output, closed = _drain(reader, output)
                    if closed:
                        poll.unregister(reader)
        finally:
            os.close(pidfd)
    finally:
        if not ended:
            # Not reaped yet, so the group is still its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return output, ended


def _drain(reader: int, output: bytes) -> tuple[bytes, bool]:
    # A bounded number of times: a program that never stops printing must not keep us from the time.
    for _ in range(16):
        try:
            data = os.read(reader, 65536)
        except BlockingIOError:
            return output, False
        if not data:
            return output, True
        output = (output + data)[-_LIMIT:]
    return output, False


def _tail(output: bytes) -> str:
    text = output[-_TAIL:].decode(errors="replace").strip()
    printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return f": {printable}" if printable else " without a word"
