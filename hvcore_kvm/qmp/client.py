"""A synchronous QMP client: one connection, a deadline on everything, events kept until somebody wants them.

QEMU serves one client per monitor: a second connection is accepted and then greeted only when the first has closed
(seen on 7.2 and 10.0). So connections are short, and the wait for the greeting has a deadline of its own.
"""

from __future__ import annotations

import array
import enum
import itertools
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from hvcore import Deadline
from hvcore_kvm.qmp.errors import QmpClosed, QmpConnectError, QmpProtocolError, QmpRefused, QmpTimeout
from hvcore_kvm.qmp.wire import Decoder, Message, encode

EVENT_LIMIT = 4096
"""Events kept for later on one connection; older ones are dropped, the journal file has them all."""


class State(enum.Enum):
    """What a connection can be used for."""

    CONNECTED = "connected"
    READY = "ready"
    BROKEN = "broken"
    CLOSED = "closed"


class QmpClient:
    """One connection to a monitor. A context manager; for one thread at a time.

    Args:
        connection: a connected stream socket; the client owns it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._decoder = Decoder()
        self._events: deque[Message] = deque(maxlen=EVENT_LIMIT)
        # Not those of a client that was here before: what it asked may be answered late, to whoever is here then.
        self._ids = itertools.count(1 + random.getrandbits(40))
        self.state = State.CONNECTED
        self.version: tuple[int, int, int] = (0, 0, 0)
        self.package = ""

    @classmethod
    def connect(cls, path: str, deadline: Deadline) -> Self:
        """Connect to a monitor's UNIX socket, take its greeting and negotiate.

        Raises:
            QmpConnectError: nothing listens there, or no greeting came in time.
        """
        connection = connect_unix(path, deadline)
        client = cls(connection)
        try:
            client.negotiate(deadline)
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self.state = State.CLOSED
        self._socket.close()

    def negotiate(self, deadline: Deadline) -> None:
        """Take the greeting and leave negotiation mode.

        Raises:
            QmpConnectError: no greeting, or what came is none.
        """
        try:
            # Both at once: QEMU reads the command when it has greeted, which saves a turn.
            self._send(encode("qmp_capabilities", None, 0), (), deadline)
            greeting = self._receive(deadline, sent=False)
            while "event" in greeting or _is_answer(greeting):
                if "event" in greeting:
                    self._events.append(greeting)
                greeting = self._receive(deadline, sent=False)
            version = greeting["QMP"]["version"]
            qemu = version["qemu"]
            self.version = (int(qemu["major"]), int(qemu["minor"]), int(qemu["micro"]))
            self.package = str(version.get("package", ""))
            self._await_answer(0, "qmp_capabilities", deadline, late=True)
        except (QmpTimeout, QmpClosed) as error:
            self.state = State.BROKEN
            raise QmpConnectError(f"the monitor did not greet: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            self.state = State.BROKEN
            raise QmpConnectError("what answered is not a QEMU monitor") from error
        self.state = State.READY

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        deadline: Deadline,
        fds: Sequence[int] = (),
    ) -> Any:
        """Carry out one command and return what it returned.

        Args:
            command: for example ``query-status``.
            arguments: its arguments.
            deadline: by when the answer must be there.
            fds: file descriptors to send with it.

        Raises:
            QmpRefused: QEMU said no.
            QmpTimeout: no answer in time; the connection cannot be used any more.
            QmpClosed: QEMU closed the connection.
        """
        if self.state is not State.READY:
            raise QmpClosed(f"{command}: the connection is {self.state.value}", sent=False)
        ident = next(self._ids)
        try:
            self._send(encode(command, arguments, ident), fds, deadline)
            return self._await_answer(ident, command, deadline)
        except (QmpTimeout, QmpClosed, QmpProtocolError):
            # A late answer would be taken for that of the next command.
            self.state = State.BROKEN
            raise

    def events(self) -> tuple[Message, ...]:
        """Take the events that have come so far."""
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def wait_event(self, wanted: Callable[[Message], bool], deadline: Deadline) -> Message:
        """Wait for an event, also among those that have come already. Others are kept.

        Raises:
            QmpTimeout: it did not come in time.
            QmpClosed: QEMU closed the connection first.
        """
        kept: list[Message] = []
        while self._events:
            event = self._events.popleft()
            if wanted(event):
                self._events.extendleft(reversed(kept))
                return event
            kept.append(event)
        self._events.extend(kept)
        while True:
            message = self._receive(deadline, sent=False)
            if "event" not in message:
                raise QmpProtocolError("QEMU answered something nobody asked")
            if wanted(message):
                return message
            self._events.append(message)

    def _send(self, data: bytes, fds: Sequence[int], deadline: Deadline) -> None:
        self._socket.settimeout(max(deadline.timeout(), 0.001))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = 0
        try:
            sent = self._socket.sendmsg([data], ancillary) if fds else self._socket.send(data)
            while sent < len(data):
                sent += self._socket.send(data[sent:])
        except TimeoutError as error:
            raise QmpTimeout("QEMU does not read its monitor", sent=sent > 0) from error
        except OSError as error:
            raise QmpClosed(f"the monitor is gone: {error.strerror}", sent=sent > 0) from error

    def _await_answer(self, ident: int, command: str, deadline: Deadline, *, late: bool = False) -> Any:
        """Take the answer to a command; ``late`` says that before it some may come to what others have asked.

        QEMU answers in order. A client that was killed while QEMU was busy leaves one answer, that of negotiating among
        them, to the next.
        """
        while True:
            message = self._receive(deadline, sent=True)
            if "event" in message:
                self._events.append(message)
                continue
            answered = message.get("id")
            if answered != ident and "id" in message and (late or answered == 0):
                continue
            if answered != ident:
                raise QmpProtocolError(f"{command}: QEMU answered something else")
            return answer_of(command, message)

    def _receive(self, deadline: Deadline, *, sent: bool) -> Message:
        while True:
            message = self._decoder.next()
            if message is not None:
                return message
            self._socket.settimeout(max(deadline.timeout(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                raise QmpTimeout("QEMU did not answer in time", sent=sent) from error
            except OSError as error:
                raise QmpClosed(f"the monitor is gone: {error.strerror}", sent=sent) from error
            if not data:
                raise QmpClosed("QEMU closed its monitor", sent=sent)
            self._decoder.feed(data)


def _is_answer(message: Message) -> bool:
    return "return" in message or "error" in message


def answer_of(command: str, message: Message) -> Any:
    """What an answer returned.

    Raises:
        QmpRefused: it is an error.
        QmpProtocolError: it is neither.
    """
    if "return" in message:
        return message["return"]
    error = message.get("error")
    if not isinstance(error, dict):
        raise QmpProtocolError(f"{command}: QEMU's answer is neither a result nor an error")
    raise QmpRefused(command, str(error.get("class", "")), str(error.get("desc", "")))


def connect_unix(path: str, deadline: Deadline, *, blocking: bool = True) -> socket.socket:
    """Connect to a UNIX socket, however long its path: through a descriptor of its directory.

    Raises:
        QmpConnectError: nothing listens there.
    """
    directory_fd = -1
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        directory_fd = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.settimeout(max(deadline.timeout(), 0.001) if blocking else 0)
        connection.connect(f"/proc/self/fd/{directory_fd}/{os.path.basename(path)}")
    except OSError as error:
        connection.close()
        raise QmpConnectError(f"nothing answers at {path}: {error.strerror or error}") from error
    finally:
        if directory_fd >= 0:
            os.close(directory_fd)
    return connection
