"""Jobs of a real QEMU: ready, concluded, failed, cancelled, gone."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore import Deadline, DeadlineExceeded, OperationFailed, Progress
from hvcore_kvm.block_job import cancel_jobs, dismiss_jobs, job_states, wait_jobs
from hvcore_kvm.monitor import Monitor
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

SIZE = 4 << 20
SLOW = 1 << 16
"""Bytes a second: more than a minute for all of it."""


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    """The monitor of a QEMU without a machine, with an image of 4 MiB to copy and two to copy it to."""
    program = shutil.which("qemu-system-x86_64")
    assert program is not None
    ours, theirs = socket.socketpair()
    with theirs:
        command = [program, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-chardev", f"socket,id=m,fd={theirs.fileno()}", "-mon", "chardev=m,mode=control"]
        qemu = subprocess.Popen(command, pass_fds=(theirs.fileno(),))
    try:
        client = QmpClient(ours)
        client.negotiate(Deadline.after(30))
        with client:
            made = Monitor(client, Deadline.after(60))
            for name, content in (("source", b"\x5a" * SIZE), ("target", b"\0" * SIZE)):
                (tmp_path / name).write_bytes(content)
                _add(made, {"driver": "file", "node-name": name, "filename": str(tmp_path / name)})
            yield made
    finally:
        qemu.kill()
        qemu.wait()


def _add(monitor: Monitor, node: dict[str, Any]) -> None:
    monitor.execute("blockdev-add", node)


def _backup(monitor: Monitor, ident: str = "copy", **more: Any) -> None:
    arguments = {"job-id": ident, "device": "source", "target": "target", "sync": "full", "auto-dismiss": False}
    monitor.execute("blockdev-backup", arguments | more)


def _mirror(monitor: Monitor) -> None:
    arguments = {"job-id": "copy", "device": "source", "target": "target", "sync": "full", "auto-dismiss": False}
    monitor.execute("blockdev-mirror", arguments)


def test_a_job_is_waited_for_and_stays_until_it_is_dismissed(monitor: Monitor, tmp_path: Path) -> None:
    told: list[Progress] = []
    _backup(monitor)
    wait_jobs(monitor, ["copy"], phase="backup", on_progress=told.append)
    assert (tmp_path / "target").read_bytes() == b"\x5a" * SIZE
    assert told[-1] == Progress(phase="backup", done=SIZE, total=SIZE)
    assert job_states(monitor)["copy"].over
    dismiss_jobs(monitor, ["copy", "of nobody"])
    assert job_states(monitor) == {}


def test_a_mirror_that_is_ready_goes_on_and_ends_where_it_is_when_cancelled(monitor: Monitor) -> None:
    _mirror(monitor)
    wait_jobs(monitor, ["copy"], until="ready")
    state = job_states(monitor)["copy"]
    assert state.ready
    assert not state.over
    assert (state.type, state.done) == ("mirror", SIZE)
    cancel_jobs(monitor, ["copy"])
    assert job_states(monitor) == {}


def test_what_is_not_done_in_time_is_said_and_can_be_cancelled(monitor: Monitor) -> None:
    _backup(monitor, speed=SLOW)
    with pytest.raises(DeadlineExceeded, match="backup running"):
        wait_jobs(Monitor(monitor.client, Deadline.after(0)), ["copy"])
    assert not job_states(monitor)["copy"].over
    cancel_jobs(monitor, ["copy", "of nobody"])
    assert job_states(monitor) == {}


def test_a_job_that_fails_is_told_in_its_own_words(monitor: Monitor) -> None:
    _add(monitor, {
        "driver": "blkdebug", "node-name": "broken", "image": "target",
        "inject-error": [{"event": "none", "iotype": "write", "errno": 28}],
    })  # fmt: skip
    _backup(monitor, target="broken")
    with pytest.raises(OperationFailed, match="backup: No space left on device") as refused:
        wait_jobs(monitor, ["copy"])
    assert refused.value.code == "job-failed"
    dismiss_jobs(monitor, ["copy"])


def test_a_job_that_somebody_has_ended_is_missed(monitor: Monitor) -> None:
    with pytest.raises(OperationFailed, match="no longer has the job copy") as refused:
        wait_jobs(monitor, ["copy"])
    assert refused.value.code == "job-gone"
