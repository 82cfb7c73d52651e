"""Persistent reservations: QEMU reaches the helper, and the helper ends with QEMU.

A SCSI device of the host is needed for the rest: here, a loop device stands in its place, as a disk that QEMU makes up.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kvm_effect import PATIENCE, needs, proves

import hvcore
from hvcore_kvm import device_checks
from hvcore_kvm.hardware import storage

pytestmark = [
    pytest.mark.qemu,
    *needs("root"),
    pytest.mark.skipif(shutil.which("qemu-pr-helper") is None, reason="qemu-pr-helper is not installed"),
]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device of this test alone."""
    image = tmp_path / "loop.raw"
    image.write_bytes(bytes(1 << 20))
    made = subprocess.run(["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be made: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that QEMU makes up instead of the host's SCSI device."""
    monkeypatch.setitem(storage._SCSI_DEVICES, "scsi-block", "scsi-hd")


def _disk(path: str, where: str = "disk") -> dict[str, Any]:
    given = {"bus": "scsi-block", "reservations": True}
    disk = {"path": path, "format": "raw", "params": given if where == "disk" else {}}
    return {"disks": [disk], "params": {"disk": given} if where == "defaults" else {}}


def _helpers(directory: Path) -> list[int]:
    """The processes of the helper whose socket is in a directory: its shell, and what that has started."""
    record = json.loads((directory / "companions.json").read_text())
    (row,) = record.get("companions") or record["data"]["companions"]
    shell = int(row["identity"]["pid"])
    children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return [shell, *map(int, children)]


@contextlib.contextmanager
def _held(pids: list[int]) -> Iterator[list[int]]:
    fds = [os.pidfd_open(pid) for pid in pids]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def _all_end(fds: list[int]) -> bool:
    return all(select.select([fd], [], [], PATIENCE)[0] for fd in fds)


@proves("disks[].params.reservations", "params.disk.reservations")
@pytest.mark.parametrize("where", ["disk", "defaults"])
def test_qemu_is_connected_and_the_helper_ends_with_it(begin: Any, loop: str, stand_in: None, where: str) -> None:
    """There is one helper while QEMU runs, and none after."""
    with begin(_disk(loop, where)) as probe:
        assert probe.qmp("query-pr-managers") == [{"id": "reservations0", "connected": True}]
        helpers = _helpers(probe.directory)
        assert len(helpers) == 2
        with _held(helpers) as fds:
            assert not select.select(fds, [], [], 0)[0]
            os.kill(probe.pid, signal.SIGKILL)
            assert _all_end(fds)


def test_without_reservations_there_is_no_helper(begin: Any, loop: str, stand_in: None) -> None:
    """Nothing is started for a disk that does not ask for it."""
    with begin({"disks": [{"path": loop, "format": "raw", "params": {"bus": "scsi-block"}}]}) as probe:
        assert probe.qmp("query-pr-managers") == []
        assert not (probe.directory / "companions.json").exists()


def test_a_helper_whose_shell_is_killed_ends(begin: Any, loop: str, stand_in: None) -> None:
    """As when a start is undone: it is not left behind."""
    with begin(_disk(loop)) as probe:
        helpers = _helpers(probe.directory)
        with _held(helpers) as fds:
            os.kill(helpers[0], signal.SIGKILL)
            assert _all_end(fds)


def test_a_user_without_rights_reaches_it(make_host: Any, begin_on: Any, loop: str, stand_in: None) -> None:
    """QEMU connects by a descriptor, whoever it runs as."""
    given = _disk(loop)
    with begin_on(make_host(), {**given, "security_model": "user", "params": {"user": {"name": "nobody"}}}) as probe:
        assert probe.status("Uid").split()[0] != "0"
        assert probe.qmp("query-pr-managers") == [{"id": "reservations0", "connected": True}]


def test_a_device_that_is_no_scsi_device(host: Any, resolve: Callable[..., Any], loop: str) -> None:
    """QEMU refuses it in its own words, and nothing is left of the start."""
    with pytest.raises(hvcore.SpawnFailed, match="scsi|SCSI|SG_IO|ioctl"):
        host.driver.start_instance(resolve(_disk(loop)))
    assert host.driver.list_instances().instances == ()


def test_what_it_needs(host: Any, resolve: Callable[..., Any], loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program, and root; and a disk that is passed through."""
    monkeypatch.setattr(device_checks, "find_program", lambda name: None)
    monkeypatch.setattr(device_checks.os, "geteuid", lambda: 1000)
    findings = host.driver.validate_parameters(resolve(_disk(loop)))
    assert {(f.code, f.path) for f in findings} == {
        ("no-program", "disks[0].params.reservations"),
        ("needs-root", "disks[0].params.reservations"),
    }
    given = {"disks": [{"path": loop, "format": "raw", "params": {"bus": "scsi", "reservations": True}}]}
    findings = host.driver.check_parameter_syntax(resolve(given))
    assert [(f.code, f.path) for f in findings] == [("contradiction", "disks[0].params.reservations")]
