"""QEMU without hvcore: the same command line and descriptors, with as little around it as there can be."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import tempfile
from types import TracebackType
from typing import Self

import hvcore

_TARGETS_END = 64
"""Descriptors of ours are moved above this, so that none is overwritten before it has its number in QEMU."""


class Monitor:
    """A connection to a monitor that only knows answers, in order."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, *commands: str) -> None:
        """Send commands without arguments."""
        self._socket.sendall(b"".join(b'{"execute":"%s"}' % command.encode() for command in commands))

    def answers(self, count: int) -> list[object]:
        """Read that many answers; the greeting and events are none."""
        found: list[object] = []
        while len(found) < count:
            line = self._file.readline()
            if not line:
                raise ConnectionError("QEMU closed its monitor")
            message = json.loads(line)
            if "error" in message:
                raise ValueError(str(message))
            if "return" in message:
                found.append(message["return"])
        return found

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self._socket.close()


class BareQemu:
    """One QEMU process made from a plan. A context manager: the process is ended by its pid.

    Args:
        plan: of the driver, for its command line and the descriptors it inherits.
        arguments: what else is on the command line.
    """

    def __init__(self, plan: hvcore.Plan, arguments: tuple[str, ...] = ()) -> None:
        self._plan = plan
        self._arguments = arguments
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._pid is not None
        return self._pid

    @property
    def monitor(self) -> str:
        """Path of its monitor."""
        return f"{self._directory}/control"

    def __enter__(self) -> Self:
        self._directory = tempfile.mkdtemp(prefix="hvb-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        shutil.rmtree(self._directory)

    def start(self) -> None:
        """Spawn it, take its greeting, let the guest run, and wait for the answer."""
        self.spawn()
        with Monitor(self.monitor) as monitor:
            monitor.send("qmp_capabilities", "cont")
            monitor.answers(2)

    def spawn(self) -> None:
        """Spawn it; its monitor can be connected to from now on."""
        plan, directory = self._plan, self._directory
        output = os.open(f"{directory}/stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        fds = [output]
        actions: list[tuple[int, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),  # type: ignore[list-item]
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
        try:
            for planned in plan.fds:
                fd = self._open(planned)
                fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _TARGETS_END))
                os.close(fd)
                actions.append((os.POSIX_SPAWN_DUP2, fds[-1], planned.number))
            self._pid = os.posix_spawn(
                plan.program,
                [*plan.argv, *self._arguments],
                dict(plan.environment),
                file_actions=actions,
                setsid=True,
            )
        finally:
            for fd in fds:
                os.close(fd)

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        os.kill(self.pid, signal.SIGTERM)
        pid, self._pid = self.pid, None
        os.waitpid(pid, 0)

    def _open(self, planned: hvcore.PlannedFd) -> int:
        path = f"{self._directory}/{planned.name}"
        if "socket" not in planned.purpose:
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(16)
            return listener.detach()
