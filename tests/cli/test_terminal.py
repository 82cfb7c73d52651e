"""Joining a terminal or a pipe to a socket, without any instance."""

from __future__ import annotations

import os
import socket
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.cli.serial_line import GuestSilent, SerialLine, listens
from hvcore.cli.terminal import Ended, connect, converse, raw_terminal

SOON = 30.0


class _Conversation:
    """A conversation in a thread, with the other ends of everything."""

    def __init__(self) -> None:
        self.guest, self._console = socket.socketpair()
        self.guest.settimeout(SOON)
        self._source, self.keys = os.pipe()
        self.screen, self._sink = os.pipe()
        self.ended: list[Ended] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.ended.append(converse(self._console.fileno(), self._source, self._sink))

    def typed(self, size: int) -> bytes:
        """So many bytes of what has arrived at the guest."""
        return self.guest.recv(size, socket.MSG_WAITALL)

    def shown(self, size: int) -> bytes:
        """So many bytes of what the screen shows; the rest of them at the end."""
        found = b""
        while len(found) < size and (part := os.read(self.screen, size - len(found))):
            found += part
        return found

    def close_keys(self) -> None:
        if self.keys >= 0:
            os.close(self.keys)
            self.keys = -1

    def result(self) -> Ended:
        self._thread.join(SOON)
        assert not self._thread.is_alive()
        return self.ended[0]

    def close(self) -> None:
        self.guest.close()
        self._thread.join(SOON)
        self.close_keys()
        self._console.close()
        for fd in (self._source, self.screen, self._sink):
            os.close(fd)


@pytest.fixture
def conversation() -> Iterator[_Conversation]:
    """A running conversation; it ends with the test."""
    made = _Conversation()
    yield made
    made.close()


def test_both_directions_are_copied_until_the_console_closes(conversation: _Conversation) -> None:
    """What is typed arrives, what is said is shown, and the end of the console is the end."""
    os.write(conversation.keys, b"typed")
    assert conversation.typed(5) == b"typed"
    conversation.guest.sendall(b"said")
    assert conversation.shown(4) == b"said"
    conversation.guest.close()
    assert conversation.result() is Ended.CLOSED


def test_the_end_of_a_pipe_is_not_the_end(conversation: _Conversation) -> None:
    """After the last byte of a pipe, what the console says goes on being shown."""
    os.write(conversation.keys, b"last")
    conversation.close_keys()
    assert conversation.typed(4) == b"last"
    conversation.guest.sendall(b"answer")
    assert conversation.shown(6) == b"answer"
    conversation.guest.close()
    assert conversation.result() is Ended.CLOSED


def test_the_escape_key_leaves_after_what_came_before_it(conversation: _Conversation) -> None:
    """What was typed before Ctrl-] arrives; what comes after it does not."""
    os.write(conversation.keys, b"before\x1dafter")
    assert conversation.result() is Ended.LEFT
    assert conversation.guest.recv(100) == b"before"


def test_what_was_said_before_the_end_is_shown(conversation: _Conversation) -> None:
    """A console that closes while something is being typed loses nothing it has said."""
    conversation.guest.sendall(b"last words")
    conversation.guest.shutdown(socket.SHUT_RD)
    os.write(conversation.keys, b"x")
    conversation.guest.sendall(b", really")
    conversation.guest.close()
    assert conversation.result() is Ended.CLOSED
    assert conversation.shown(18) == b"last words, really"


def test_a_guest_that_does_not_read_does_not_lose_a_byte(conversation: _Conversation) -> None:
    """More than fits into a socket is held back at the pipe, and arrives in the end."""
    wanted = os.urandom(1 << 20).replace(b"\x1d", b"\x1e")

    def type_it() -> None:
        view = memoryview(wanted)
        while view:
            view = view[os.write(conversation.keys, view) :]

    typist = threading.Thread(target=type_it)
    typist.start()
    got = b""
    while len(got) < len(wanted):
        got += conversation.guest.recv(1 << 16)
    typist.join(SOON)
    assert got == wanted


def test_a_terminal_is_put_back_after_an_error() -> None:
    """A terminal is raw inside the context and as before outside, also when something was raised."""
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)

    def fail_inside() -> None:
        with raw_terminal(slave) as is_terminal:
            assert is_terminal
            assert termios.tcgetattr(slave) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_a_pipe_is_no_terminal() -> None:
    """Nothing is done to what is no terminal."""
    reading, writing = os.pipe()
    with raw_terminal(reading) as is_terminal:
        assert not is_terminal
    os.close(reading)
    os.close(writing)


def listen(path: Path) -> socket.socket:
    """Listen on a UNIX socket with a path of any length."""
    directory = os.open(path.parent, os.O_PATH)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)
    server.listen(1)
    return server


def test_a_long_path_can_be_connected_to(tmp_path: Path) -> None:
    """UNIX sockets are reached whatever the length of their path, and no descriptor is left open."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with listen(deep / "serial"), connect(str(deep / "serial")) as client:
        assert client.fileno() >= 0
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        connect(str(deep / "other"))
    with pytest.raises(ConnectionRefusedError):
        connect(str(deep / "serial"))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not listens(str(deep / "serial"))


def test_a_serial_line_waits_for_markers(tmp_path: Path) -> None:
    """Lines are shown when they are complete; waiting is bounded; what is left is kept for the next wait."""
    shown: list[str] = []
    with listen(tmp_path / "serial") as server, SerialLine(str(tmp_path / "serial"), shown.append) as line:
        guest, _ = server.accept()
        guest.sendall(b"one\r\ntwo three")
        assert line.until(b"two", b"three", seconds=SOON) == b"one\r\ntwo"
        assert line.until(b"three", seconds=SOON) == b" three"
        assert shown == ["one\r"]
        assert line.stays_silent(0.01)
        with pytest.raises(GuestSilent, match="within"):
            line.until(b"four", seconds=0.01)
        guest.close()
        with pytest.raises(GuestSilent, match="closed"):
            line.until(b"four", seconds=SOON)
        line.finish(SOON)
        assert shown == ["one\r", "two three"]
