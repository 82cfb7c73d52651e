"""Starts real QEMU processes for the tests of the guests and stops each of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore.guests import LinuxGuest, build_linux_guest, write_firmware

# Generous: it only bounds a test that fails.
DEADLINE = 120.0


class RunningGuest:
    """One QEMU process with its first serial port and its monitor on socket pairs."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.serial, serial_end = socket.socketpair()
        self._monitor, monitor_end = socket.socketpair()
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *arguments]
        command += ["-chardev", f"socket,id=com1,fd={serial_end.fileno()}", "-serial", "chardev:com1"]
        command += ["-chardev", f"socket,id=qmp,fd={monitor_end.fileno()}"]
        command += ["-mon", "chardev=qmp,mode=control"]
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[serial_end.fileno(), monitor_end.fileno()],
                start_new_session=True,
            )
        serial_end.close()
        monitor_end.close()
        self.serial.settimeout(DEADLINE)
        self._monitor.settimeout(DEADLINE)
        self._lines = self._monitor.makefile("rb")
        self._text = b""
        self._events: list[dict[str, Any]] = []
        try:
            self._message()
            self.qmp("qmp_capabilities")
        except BaseException:
            self.stop()
            raise

    def _message(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, f"QEMU has closed its monitor: {self._log.read_text(errors='replace')}"
        message: dict[str, Any] = json.loads(line)
        return message

    def qmp(self, command: str, **arguments: object) -> Any:
        """Run one QMP command and return its result."""
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._message()
            if "event" in message:
                self._events.append(message)
                continue
            assert "return" in message, message
            return message["return"]

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event, drop the ones before it, and return its data."""
        while True:
            message = self._events.pop(0) if self._events else self._message()
            if message.get("event") == name:
                data: dict[str, Any] = message.get("data", {})
                return data

    def send(self, text: str) -> None:
        """Type on the serial port."""
        self.serial.sendall(text.encode())

    def until(self, marker: str | bytes) -> str:
        """Read the serial port up to the marker and return the text before it."""
        wanted = marker.encode() if isinstance(marker, str) else marker
        end = time.monotonic() + DEADLINE
        while wanted not in self._text:
            if time.monotonic() >= end:
                pytest.fail(f"no {wanted!r} in {self._text[-2000:]!r}")
            data = self.serial.recv(65536)
            assert data, f"the guest is gone, no {wanted!r} in {self._text[-2000:]!r}"
            self._text += data
        before, _, self._text = self._text.partition(wanted)
        return before.decode(errors="replace")

    def ask(self, letter: str, label: str) -> int:
        """Send a one-letter command and return the number of its answer."""
        self.send(letter)
        self.until(label)
        return int(self.until("\r\n"), 16)

    def wait(self) -> int:
        """Wait for the end of the process and return its exit status."""
        return self.process.wait(DEADLINE)

    def stop(self) -> None:
        """Kill the process, if it still runs, and free its resources."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._lines.close()
        self._monitor.close()
        self.serial.close()


@pytest.fixture
def start_guest(tmp_path: Path) -> Iterator[Callable[[list[str]], RunningGuest]]:
    """A function that starts QEMU with more arguments; all its processes end with the test."""
    guests: list[RunningGuest] = []
    numbers = itertools.count()

    def start(arguments: list[str]) -> RunningGuest:
        guest = RunningGuest(arguments, tmp_path / f"qemu-{next(numbers)}.log")
        guests.append(guest)
        return guest

    yield start
    for guest in guests:
        guest.stop()


@pytest.fixture(scope="session")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of the firmware guest as a file."""
    return write_firmware(tmp_path_factory.mktemp("firmware") / "firmware.rom")


@pytest.fixture(scope="session")
def linux_guest() -> LinuxGuest:
    """The Linux guest, built once and kept between sessions."""
    cache = os.environ.get("HVCORE_TEST_CACHE") or str(Path.home() / ".cache" / "hvcore" / "guests")
    return build_linux_guest(Path(cache) / "linux", progress=print)
