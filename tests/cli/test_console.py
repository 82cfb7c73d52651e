"""``hv console`` through a real terminal and through pipes, on a running firmware guest."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from guest_console import READY, piped, start_guest

from hvcore import Console
from hvcore.cli.attachment import successor

pytestmark = pytest.mark.qemu

SOON = 60.0

Hv = Callable[..., Any]


class _Terminal:
    """``hv`` on a terminal of its own; this side types and reads."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._master, self._slave = os.openpty()
        self.before = termios.tcgetattr(self._slave)
        self.text = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hvcore.cli", *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**environment, "TERM": "xterm"},
        )

    def until(self, marker: bytes) -> None:
        """Read up to a marker."""
        end = time.monotonic() + SOON
        while marker not in self.text:
            # This side has the terminal open too, so its end is not seen here: what has been said is always readable.
            ready, _, _ = select.select([self._master], [], [], max(0.0, end - time.monotonic()))
            assert ready, self.text
            self.text += os.read(self._master, 65536)
        self.text = self.text.partition(marker)[2]

    def type(self, keys: bytes) -> None:
        """Type keys."""
        os.write(self._master, keys)

    def settings(self) -> list[Any]:
        """How the terminal is set now."""
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)


@pytest.fixture
def terminal(environment: dict[str, str], instance_file: Path) -> Iterator[Callable[..., _Terminal]]:
    """A function that runs ``hv`` on a terminal."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: object) -> _Terminal:
            made = _Terminal(environment, *map(str, arguments))
            stack.callback(made.close)
            return made

        yield run


def test_a_person_talks_to_a_guest_and_leaves(hv: Hv, terminal: Callable[..., _Terminal], instance_file: Path) -> None:
    """Keys go through one by one; Ctrl-] leaves, the guest runs on and the terminal is as it was."""
    start_guest(hv, instance_file)
    person = terminal("console", "web1")
    person.until(b"Ctrl-]")
    person.until(b"\n")
    person.type(b"e")
    person.until(b"ok\r\n")
    assert person.settings() != person.before
    person.type(b"\x1d")
    person.until(b"web1 runs on")
    assert person.process.wait(SOON) == 0
    assert person.settings() == person.before
    assert "state        running" in hv("info", "web1").stdout


@pytest.mark.usefixtures("heeds_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_puts_the_terminal_back(
    hv: Hv, terminal: Callable[..., _Terminal], instance_file: Path, number: signal.Signals
) -> None:
    """However it ends, the terminal is as it was, and the exit status names the signal."""
    start_guest(hv, instance_file)
    person = terminal("console", instance_file)
    person.until(b"Ctrl-]")
    person.type(b"e")
    person.until(b"ok\r\n")
    person.process.send_signal(number)
    assert person.process.wait(SOON) == 128 + number
    assert person.settings() == person.before


def test_the_first_byte_is_seen_and_the_end_is_explained(
    terminal: Callable[..., _Terminal], instance_file: Path
) -> None:
    """With ``start --console`` nothing the guest says is missed, and its end is told with the reason."""
    person = terminal("start", instance_file, "--console")
    person.until(b"Ctrl-]")
    person.until(b"HVCORE-GUEST ready firmware")
    person.type(b"q")
    person.until(b"web1 is shutdown-by-user")
    assert person.process.wait(SOON) == 0
    assert person.settings() == person.before


def test_a_pipe_is_answered(hv: Hv, instance_file: Path, environment: dict[str, str]) -> None:
    """Without a terminal, input is copied; standard output has only what the guest said."""
    start_guest(hv, instance_file)
    command = [sys.executable, "-m", "hvcore.cli", "console", "web1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"e")
        assert process.stdout.readline() == b"ok\r\n"
        process.stdin.write(b"\x1d")
        assert process.wait(SOON) == 0
        assert process.stdout.read() == b""
        assert b"web1 runs on" in process.stderr.read()


def test_a_pipe_that_switches_the_guest_off_ends_with_it(instance_file: Path, environment: dict[str, str]) -> None:
    """The end of the input is not the end; the end of the guest is."""
    command = [sys.executable, "-m", "hvcore.cli", "start", str(instance_file), "--console"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # Before this line, the guest's serial port may drop what is typed.
        assert process.stdout.readline() == READY
        process.stdin.write(b"eq")
        process.stdin.close()
        assert process.stdout.read() == b"ok\r\n"
        assert b"the guest powered itself off" in process.stderr.read()
        assert process.wait(SOON) == 0


def test_the_log_is_shown_without_attaching(hv: Hv, instance_file: Path) -> None:
    """With --log, everything the guest wrote is printed, also what nobody saw; the console stays free."""
    start_guest(hv, instance_file)
    with piped(hv, "console", "web1") as process:
        process.stdin.write(b"e")
        assert process.stdout.readline() == b"ok\r\n"
        shown = hv("console", "web1", "--log")
        while "ok" not in shown.stdout:
            shown = hv("console", "web1", "--log")
        assert shown.stdout == "HVCORE-GUEST ready firmware\nok\n"
        assert shown.returncode == 0
        process.stdin.write(b"\x1d")
    assert hv("console", "web1", "--follow").returncode == 2
    assert hv("console", "web1", "--watch", "--take-over").returncode == 2


def test_many_read_along_and_one_writes(hv: Hv, instance_file: Path) -> None:
    """Watchers see what the guest says to the one who types, from the start or from now on, until it ends."""
    start_guest(hv, instance_file)
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(piped(hv, "console", "web1"))
        writer.stdin.write(b"e")
        assert writer.stdout.readline() == b"ok\r\n"
        early = stack.enter_context(piped(hv, "console", "web1", "--log", "--follow"))
        assert early.stdout.readline() == READY
        # QEMU writes to the client first and then to the log: only from here on is it in the past of who comes now.
        assert early.stdout.readline() == b"ok\r\n"
        late = [stack.enter_context(piped(hv, "console", "web1", "--watch")) for _ in range(2)]
        for watcher in (early, *late):
            assert b"Reading along" in watcher.stderr.readline()
        writer.stdin.write(b"c")
        for watcher in (early, *late):
            assert b"count=" in watcher.stdout.readline()
        writer.stdin.write(b"q")
        for watcher in (*late, early):
            assert b"shutdown-by-user" in watcher.stderr.read()
            assert watcher.wait(SOON) == 0


def test_a_watcher_leaves(terminal: Callable[..., _Terminal], hv: Hv, instance_file: Path) -> None:
    """Ctrl-] ends reading along, what is typed goes nowhere, and the terminal is as it was."""
    hv("start", instance_file)
    person = terminal("console", "web1", "--log", "--follow")
    person.until(b"HVCORE-GUEST ready firmware")
    person.type(b"q")
    person.type(b"\x1d")
    person.until(b"web1 runs on")
    assert person.process.wait(SOON) == 0
    assert person.settings() == person.before
    assert "state        running" in hv("info", "web1").stdout


def test_the_second_is_told_who_is_first_and_may_take_over(hv: Hv, instance_file: Path) -> None:
    """One console, one client: the next one is told at once who holds it; with --take-over the first leaves."""
    start_guest(hv, instance_file)
    with piped(hv, "console", "web1") as first, contextlib.ExitStack() as stack:
        first.stdin.write(b"e")
        assert first.stdout.readline() == b"ok\r\n"
        refused = hv("console", "web1")
        assert refused.returncode == 4
        assert f"held by process {first.pid} (" in refused.stderr
        assert "--take-over" in refused.stderr
        second = stack.enter_context(piped(hv, "console", "web1", "--take-over"))
        second.stdin.write(b"e")
        assert second.stdout.readline() == b"ok\r\n"
        told = first.stderr.read()
        assert f"taken over by process {second.pid} (".encode() in told
        assert first.wait(SOON) == 0
        second.stdin.write(b"\x1d")
        assert second.wait(SOON) == 0


def test_who_has_been_shut_out_is_not_its_own_successor(tmp_path: Path) -> None:
    """The server may not have closed our connection yet; who waits behind it is who comes next."""
    path = str(tmp_path / "console")
    console = Console(instance="web1", kind="serial", socket_path=path)
    with socket.create_server(path, family=socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as ours:
        ours.connect(path)
        with server.accept()[0]:
            assert successor(console, ours.fileno()) is None
            with socket.socket(socket.AF_UNIX) as next_one:
                next_one.connect(path)
                found = successor(console, ours.fileno())
                assert found is not None
                assert found.pid == os.getpid()


def test_a_client_of_another_program_is_named_and_replaced(hv: Hv, instance_file: Path) -> None:
    """One that knows nothing of hv holds the console: it is found by the kernel, and made to go."""
    start_guest(hv, instance_file)
    path = json.loads(hv("console", "web1", "--json").stdout)["socket_path"]
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
        other.sendall(b"e")
        assert other.recv(1) == b"o"
        refused = hv("console", "web1")
        assert f"held by process {os.getpid()} (" in refused.stderr
        with piped(hv, "console", "web1", "--take-over") as process:
            process.stdin.write(b"c")
            line = process.stdout.readline()
            while b"count=" not in line:
                assert line, process.stderr.read()
                line = process.stdout.readline()
            while other.recv(64):
                pass
            process.stdin.write(b"\x1d")


def test_the_first_byte_after_a_paused_start(hv: Hv, instance_file: Path) -> None:
    """Started paused, attached with --resume: the first byte of the guest is the first that is shown."""
    hv("start", instance_file, "--paused")
    with piped(hv, "console", "web1", "--resume") as process:
        assert process.stdout.readline() == READY
        process.stdin.write(b"\x1d")
    assert "state        running" in hv("info", "web1").stdout


def test_a_pty_is_attached_to(hv: Hv, instance_file: Path) -> None:
    """A console on a terminal device is used as one on a socket; it is the first text console when VNC stands first."""
    text = instance_file.read_text().replace("[params]", 'consoles = ["vnc", "pty"]\n[params]')
    instance_file.write_text(text)
    start_guest(hv, instance_file)
    with piped(hv, "console", "web1") as process:
        process.stdin.write(b"e")
        assert process.stdout.readline() == b"ok\r\n"
        refused = hv("console", "web1", "--type", "pty")
        assert refused.returncode == 4
        assert f"held by process {process.pid}" in refused.stderr
        process.stdin.write(b"\x1d")
        assert process.wait(SOON) == 0


def test_a_console_of_an_unknown_type_is_invalid(hv: Hv, instance_file: Path) -> None:
    """A console type that the instance does not offer is invalid input."""
    hv("start", instance_file, "--paused")
    assert hv("console", "web1", "--type", "telepathy").returncode == 2


def test_a_start_without_a_console_leaves_nothing(hv: Hv, instance_file: Path, state_files: Any) -> None:
    """What was started to be watched, and cannot be, is stopped again."""
    text = instance_file.read_text(encoding="utf-8")
    instance_file.write_text(f"consoles = []\n{text}", encoding="utf-8")
    started = hv("start", instance_file, "--console")
    assert started.returncode == 2
    assert hv("list", "--json").stdout == '{\n  "instances": []\n}\n'
    assert state_files() == []


@pytest.mark.qemu
def test_a_picture_of_the_display(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """``hv screenshot`` writes a PNG; without a display it says so and leaves no file."""
    target = tmp_path / "web1.png"
    assert hv("start", instance_file).returncode == 0
    refused = hv("screenshot", "web1", "-o", target)
    assert refused.returncode != 0
    assert "screendump" in refused.stderr
    assert not target.exists()
    assert hv("stop", "web1", "--force").returncode == 0
    instance_file.write_text(instance_file.read_text() + 'display_device = "std"\n')
    assert hv("start", instance_file).returncode == 0
    done = hv("screenshot", "web1", "-o", target)
    assert done.returncode == 0, done.stderr
    assert target.read_bytes().startswith(b"\x89PNG")


@pytest.mark.qemu
def test_a_graphical_console_is_no_text(hv: Hv, instance_file: Path) -> None:
    """A terminal is not attached to it, also where it is on a socket; a client is named."""
    instance_file.write_text(instance_file.read_text().replace("[params]", 'consoles = ["vnc"]\n[params]'))
    assert hv("start", instance_file).returncode == 0
    done = hv("console", "web1", "--type", "vnc")
    assert done.returncode != 0
    assert "not text" in done.stderr
    assert "vncviewer" in done.stderr
