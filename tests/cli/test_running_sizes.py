"""``hv resize``, ``hv balloon`` and ``hv stats``: what runs, from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hvcore.cli.resize import complete_disks
from hvcore.cli.root import hv as hv_group
from hvcore.cli.session import Session
from hvcore.cli.stats import amount, rows
from hvcore.model.state import BlockStats, InstanceStats, NicStats

Hv = Callable[..., subprocess.CompletedProcess[str]]

DISK = "dd000000-0000-4000-8000-000000000001"


@pytest.fixture
def with_disk(instance_file: Path, tmp_path: Path, hv: Hv) -> Path:
    """A running instance with a disk of 1 MiB."""
    image = tmp_path / "disk.raw"
    image.write_bytes(b"\0" * 2**20)
    with instance_file.open("a", encoding="utf-8") as file:
        file.write(f'[[disks]]\nuuid = "{DISK}"\npath = "{image}"\nformat = "raw"\n')
    started = hv("start", instance_file)
    assert started.returncode == 0, started.stderr
    return image


@pytest.mark.qemu
def test_a_disk_and_the_balloon(hv: Hv, with_disk: Path, instance_file: Path) -> None:
    """By name or file; what is wrong is said with its place, and a guest that does not obey ends with 4."""
    grown = hv("resize", instance_file, DISK, "2MiB")
    assert (grown.returncode, grown.stdout) == (0, f"{DISK}: 1MiB before, 2MiB now\n")
    assert with_disk.stat().st_size == 2**21
    shrunk = hv("resize", "web1", DISK, "1MiB", "--json")
    assert shrunk.returncode == 2
    assert [finding["code"] for finding in json.loads(shrunk.stderr)["error"]["findings"]] == ["shrinking"]
    for words in (["resize", "web1", DISK, "3"], ["balloon", "web1", "much"]):
        wrong = hv(*words)
        assert wrong.returncode == 2
        assert "is not a size" in wrong.stderr
    lagging = hv("balloon", "web1", "16MiB", "--timeout", "3s")
    assert (lagging.returncode, lagging.stdout) == (4, "the guest has 32MiB; it was asked for 16MiB\n")
    assert lagging.stderr == "waiting for the guest to follow\n"
    hostile = hv("hotplug", "remove", "web1", "\x1b[31mred")
    assert (hostile.returncode, "\x1b" in hostile.stderr, "waiting" in hostile.stderr) == (2, False, False)
    obeyed = hv("balloon", "web1", "32MiB", "--json")
    assert (obeyed.returncode, json.loads(obeyed.stdout)) == (0, {"requested": 2**25, "reached": 2**25})


@pytest.mark.qemu
@pytest.mark.usefixtures("heeds_signals")
def test_stats(hv: Hv, with_disk: Path, environment: dict[str, str]) -> None:
    """A table, one document, and looks that go on until Ctrl-C, the second with what has changed."""
    table = hv("stats", "web1")
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[0].split() == ["WHAT", "COUNTER", "TOTAL"]
    assert f"disk {DISK}" in table.stdout
    found = json.loads(hv("stats", "web1", "--json").stdout)
    assert [disk["device"] for disk in found["disks"]] == [DISK]
    assert hv("stats", "web1", "--json", "--watch").returncode == 2
    assert hv("stats", "web2").returncode == 3
    command = [sys.executable, "-m", "hvcore.cli", "stats", "web1", "--watch", "100ms"]
    watching = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert watching.stdout is not None
        looks: list[list[str]] = [[]]
        while len(looks) < 4:
            line = watching.stdout.readline()
            assert line, "it ended"
            if line.strip():
                looks[-1].append(line)
            else:
                looks.append([])
        shares = [next(line for line in look if line.startswith("process")).split()[-1] for look in looks[:2]]
        assert shares[0] == "-"
        assert shares[1].endswith("%")
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=60)
        assert watching.returncode == 130
        assert "interrupted" in said
    finally:
        if watching.poll() is None:
            watching.kill()
            watching.wait()


@pytest.mark.qemu
@pytest.mark.usefixtures("heeds_signals")
def test_on_a_terminal(hv: Hv, with_disk: Path, environment: dict[str, str]) -> None:
    """There the table is drawn anew in its place, and the terminal is put back at the end."""
    import pty
    import select

    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "hvcore.cli", "stats", "web1", "--watch", "100ms"]
    given = {**environment, "TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    watching = subprocess.Popen(command, env=given, stdin=end, stdout=end, stderr=end)
    os.close(end)
    said = b""
    try:
        while said.count(b"vcpu 0") < 3:
            assert select.select([terminal], [], [], 60)[0], said
            said += os.read(terminal, 65536)
        watching.send_signal(signal.SIGINT)
        while b"interrupted" not in said:
            assert select.select([terminal], [], [], 60)[0], said
            said += os.read(terminal, 65536)
        assert watching.wait(60) == 130
        # The cursor is hidden while it draws.
        assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")
    finally:
        os.close(terminal)
        if watching.poll() is None:
            watching.kill()
            watching.wait()


@pytest.mark.qemu
def test_disks_are_completed(with_disk: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell offers the disks of the instance that stands before."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    session = Session()
    session.directories = {f"{k}_directory": environment[f"HV_{k.upper()}_DIRECTORY"] for k in ("state", "data")}
    context: Any = hv_group.make_context("hv", ["resize", "web1"], obj=session)
    context.params["name"] = "web1"
    assert [item.value for item in complete_disks(context, context.command.params[0], "dd")] == [DISK]
    assert complete_disks(context, context.command.params[0], "ee") == []
    context.params["name"] = "../x"
    assert complete_disks(context, context.command.params[0], "") == []


def test_a_watch_that_makes_no_sense() -> None:
    """Nothing looks a thousand times a second."""
    result = CliRunner().invoke(hv_group, ["stats", "web1", "--watch", "1ms"])
    assert result.exit_code == 2
    assert "every 100ms" in result.stderr


def test_rates_and_amounts() -> None:
    """What changed a second; a counter that went back has no rate."""

    def stats(read: int, cpu: float, received: int) -> InstanceStats:
        disk = BlockStats(
            device="d",
            read_bytes=read,
            written_bytes=0,
            reads=0,
            writes=0,
            flushes=0,
            read_time=0,
            write_time=0,
            errors=0,
        )
        nic = NicStats(
            device="n",
            received_bytes=received,
            sent_bytes=0,
            received_packets=0,
            sent_packets=0,
            received_drops=1,
            sent_drops=2,
        )
        return InstanceStats(
            name="web1", vcpu_times=(cpu,), memory_balloon=2**30, memory_resident=0, disks=(disk,), nics=(nic,)
        )

    found = {row[:2]: row[2:] for row in rows(stats(5 * 2**20, 2.5, 10), stats(2**20, 2.0, 20), 2.0)}
    assert found["disk d", "read"] == ("5.0MiB", "2.0MiB")
    assert found["vcpu 0", "CPU"] == ("2.5s", "25%")
    assert found["nic n", "received"] == ("10B", "-")
    assert found["nic n", "drops"] == ("3", "0.0")
    assert found["memory", "guest has"] == ("1.0GiB", "")
    assert [amount(value) for value in (0, 1023, 1024, 150 * 2**20, 2**70)] == [
        "0B",
        "1023B",
        "1.0KiB",
        "150MiB",
        "1048576PiB",
    ]
