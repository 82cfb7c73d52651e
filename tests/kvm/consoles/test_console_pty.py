"""Console type pty: a terminal device for clients written by others, whoever QEMU runs as."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.guests import FIRMWARE_READY_MARKER, write_firmware
from hvcore.inotify import FileWatch

pytestmark = pytest.mark.qemu

PATIENCE = 30.0


def _instance(host: Any, **changes: Any) -> hvcore.Instance:
    found: hvcore.Instance = host.instance(consoles=["pty"], **changes)
    return found


def _wait_logged(path: str, words: bytes) -> None:
    """Wait until a log has something; QEMU writes to the client first, and then to the log."""
    with FileWatch(path) as watch:
        while words not in Path(path).read_bytes():
            assert select.select([watch], [], [], PATIENCE)[0]
            watch.clear()


def _exchange(console: hvcore.Console) -> None:
    """A conversation of socat with the guest, once that is ready: before, it may drop what is typed."""
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    assert console.log_path is not None
    _wait_logged(console.log_path, FIRMWARE_READY_MARKER)
    pipe = subprocess.PIPE
    command = ["socat", "STDIO", f"{console.device_path},raw,echo=0"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(b"e")
        seen = b""
        while not seen.endswith(b"ok\r\n"):
            seen += other.stdout.read(1)
        other.kill()


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
def test_a_client_talks_to_the_guest(host: Any, machine: str) -> None:
    """The device is named, and bytes go both ways."""
    if machine == "microvm":
        # Its firmware loads nothing of ours: only the device is looked at.
        host.driver.start_instance(
            hvcore.Instance(name="web1", memory="64MiB", consoles=["pty"], params={"machine": machine, "accel": "tcg"})
        )
    else:
        host.driver.start_instance(_instance(host, params={"machine": machine}))
    console = host.driver.get_instance_console("web1")
    assert console.kind == "pty"
    assert re.fullmatch(r"/dev/pts/[0-9]+", console.device_path or "")
    assert console.command[-1].startswith(console.device_path)
    if machine != "microvm":
        _exchange(console)


def test_on_aarch64(host: Any) -> None:
    """The port of the board is on the terminal."""
    if shutil.which("qemu-system-aarch64") is None:
        pytest.skip("qemu-system-aarch64 is not installed")
    params = {"machine": "virt", "arch": "aarch64", "accel": "tcg", "cpu_model": "cortex-a57"}
    host.driver.start_instance(hvcore.Instance(name="web1", memory="64MiB", consoles=["pty"], params=params))
    assert os.path.exists(host.driver.get_instance_console("web1").device_path)


def test_the_log(host: Any) -> None:
    """What the guest wrote while nobody was attached is kept; log off keeps nothing, log_size is checked."""
    host.driver.start_instance(_instance(host))
    _exchange(host.driver.get_instance_console("web1"))
    log = host.driver.get_instance_console("web1").log_path
    _wait_logged(log, b"ok\r\n")
    wrong = _instance(host, params={"pty": {"log_size": 1}})
    assert [finding.path for finding in host.driver.check_parameter_syntax(wrong)] == ["params.pty.log_size"]
    plan = host.driver.plan_start(_instance(host, params={"pty": {"log": False}}))
    assert not any("pty.log" in fd.name for fd in plan.fds)


def test_the_holder(host: Any) -> None:
    """Whoever has the device open is named."""
    host.driver.start_instance(_instance(host))
    console = host.driver.get_instance_console("web1")
    assert console.holder is None
    fd = os.open(console.device_path, os.O_RDWR | os.O_NOCTTY)
    try:
        assert host.driver.get_instance_console("web1").holder.pid == os.getpid()
    finally:
        os.close(fd)
    with pytest.raises(hvcore.UnsupportedOperation):
        host.driver.disconnect_console("web1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run QEMU as somebody else")
def test_as_another_user(host: Any, tmp_path: Path) -> None:
    """QEMU makes the terminal as its own user, and the host application can open it."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder) not in ("/", "/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    host.firmware = write_firmware(tmp_path / "readable.rom")
    host.firmware.chmod(0o644)
    params = {"user": {"name": "23456:23457"}}
    host.driver.start_instance(_instance(host, security_model="user", params=params))
    console = host.driver.get_instance_console("web1")
    assert os.stat(console.device_path).st_uid == 23456
    _exchange(console)


def test_what_cannot_be(host: Any) -> None:
    """Two first serial ports, and a terminal in an empty root."""
    wrong = host.instance(consoles=["serial", "pty"], params={"chroot": True})
    found = {(finding.code, finding.path) for finding in host.driver.check_parameter_syntax(wrong)}
    assert found == {("contradiction", "consoles"), ("contradiction", "params.chroot")}
