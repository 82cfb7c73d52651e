"""Console type serial: its log and the size of it, who holds it, and making room, with clients written by others."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.guests import FIRMWARE_READY_MARKER
from hvcore.inotify import FileWatch
from hvcore_kvm.ring_log import PAGE, SLACK, read_newest

pytestmark = pytest.mark.qemu

SMALLEST = 2**16


@pytest.fixture(params=["installed", "newer"])
def qemu_host(request: pytest.FixtureRequest, make_host: Any) -> Any:
    """A host with the installed QEMU, and one with a newer QEMU."""
    return make_host(**({"qemu": request.getfixturevalue("newer_qemu")} if request.param == "newer" else {}))


def _log(host: Any) -> Path:
    path = host.driver.get_instance_console("web1").log_path
    assert path is not None
    return Path(path)


def _newest(path: Path) -> bytes:
    with path.open("rb") as file:
        return read_newest(file.fileno(), 2**30)


def test_what_nobody_saw_is_in_the_log(qemu_host: Any) -> None:
    """The guest is let run without a client; what it said is in the file, for its owner only."""
    console = qemu_host.start(qemu_host.instance())
    console.send(b"e")
    console.expect(b"ok\r\n")
    console.close()
    path = _log(qemu_host)
    # QEMU writes to the client first, and then to the log.
    with FileWatch(str(path)) as watch:
        while not path.read_bytes().endswith(b"ok\r\n"):
            assert select.select([watch], [], [], 30)[0]
            watch.clear()
    assert path.read_bytes().startswith(FIRMWARE_READY_MARKER)
    assert path.stat().st_mode & 0o777 == 0o600
    watch = qemu_host.driver.get_instance_console("web1").watch
    assert watch[0] == "tail"
    assert watch[-1] == str(path)


def test_the_log_is_held_to_its_size(host: Any) -> None:
    """A guest that has talked a lot has filled log_size and little more once somebody has looked at the instance."""
    console = host.start(host.instance(params={"serial": {"log_size": SMALLEST}}))
    # No more at once than the guest's port holds: what is more, a guest under load may lose.
    batch = 14
    for _ in range((SMALLEST + SLACK) // 4 // batch + 4):
        console.send(b"e" * batch)
        for _ in range(batch):
            console.expect(b"ok\r\n")
    host.driver.get_instance_info("web1")
    path = _log(host)
    assert path.stat().st_size > SMALLEST + SLACK
    assert SMALLEST <= len(_newest(path)) <= SMALLEST + 2 * PAGE
    assert path.stat().st_blocks * 512 <= SMALLEST + 2 * PAGE
    console.send(b"c")
    console.expect(b"count=")
    assert _newest(path)[:SMALLEST].strip(b"ok\r\n") == b""


def test_no_log_if_none_is_wanted(host: Any) -> None:
    """With log off there is no file, no descriptor and nothing to watch."""
    instance = host.instance(params={"serial": {"log": False}})
    assert not any("serial.log" in fd.name for fd in host.driver.plan_start(instance).fds)
    host.start(instance)
    console = host.driver.get_instance_console("web1")
    assert (console.log_path, console.watch) == (None, ())
    assert not any(path.endswith("serial.log") for path in host.files())


@pytest.mark.parametrize("size", [SMALLEST - 1, 0, -1, "1MB!", True])
def test_a_size_that_makes_no_sense(host: Any, size: Any) -> None:
    """It is found before anything is started."""
    findings = host.driver.check_parameter_syntax(host.instance(params={"serial": {"log_size": size}}))
    assert [finding.path for finding in findings] == ["params.serial.log_size"]


def test_a_foreign_client_is_seen_and_has_to_go(qemu_host: Any) -> None:
    """A socat holds the console: it is named; after disconnect_console it has gone, and the next in line is served."""
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    qemu_host.start(qemu_host.instance()).close()
    console = qemu_host.driver.get_instance_console("web1")
    assert console.holder is None
    command = ["socat", "STDIO", f"UNIX-CONNECT:{console.socket_path}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(b"e")
        other.stdin.flush()
        assert other.stdout.readline() == b"ok\r\n"
        holder = qemu_host.driver.get_instance_console("web1").holder
        assert holder is not None
        assert (holder.pid, holder.program) == (other.pid, "socat")
        second = qemu_host.attach("web1")
        second.send(b"e")
        third = qemu_host.attach("web1")
        gone = qemu_host.driver.disconnect_console("web1").holder
        assert gone == holder
        assert other.wait(30) == 0
    second.expect(b"ok\r\n")
    now = qemu_host.driver.get_instance_console("web1").holder
    assert now is not None
    assert now.pid == os.getpid()
    second.close()
    third.send(b"e")
    third.expect(b"ok\r\n")
    assert qemu_host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING


def test_disconnecting_nobody_does_nothing(qemu_host: Any) -> None:
    """Without a client, and several times, it is no error; the console works as before."""
    qemu_host.start(qemu_host.instance()).close()
    for _ in range(3):
        qemu_host.driver.disconnect_console("web1", "serial")
    console = qemu_host.attach("web1")
    console.send(b"e")
    console.expect(b"ok\r\n")


def test_disconnecting_a_picture_is_refused(host: Any) -> None:
    """Clients of VNC do not keep others out."""
    host.driver.start_instance(host.instance(consoles=["serial", "vnc"]))
    with pytest.raises(hvcore.UnsupportedOperation):
        host.driver.disconnect_console("web1", "vnc")
    with pytest.raises(hvcore.InvalidParameters):
        host.driver.disconnect_console("web1", "telepathy")
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(hvcore.NotRunning):
        host.driver.disconnect_console("web1", "serial")


def test_a_client_that_reads_nothing_can_be_made_to_go(host: Any) -> None:
    """Its full socket holds the guest up, and does not stop QEMU from dropping it."""
    host.start(host.instance()).close()
    stuck = host.attach("web1")
    # Far more answers than fit into the socket, each byte of which QEMU writes by itself.
    stuck.send(b"e" * 5000)
    path = _log(host)
    with FileWatch(str(path)) as watch:
        while path.stat().st_size < 200:
            assert select.select([watch], [], [], 30)[0]
            watch.clear()
    host.driver.disconnect_console("web1")
    fresh = host.attach("web1")
    fresh.send(b"c")
    fresh.expect(b"count=")
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING
