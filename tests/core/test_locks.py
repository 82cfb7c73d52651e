"""One mutating operation at a time per instance, over threads and processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvcore import Deadline, InstanceBusy
from hvcore.locks import instance_lock

_HOLD = """
import sys
from hvcore import Deadline
from hvcore.locks import instance_lock
with instance_lock(sys.argv[1], "web1", "start_instance", Deadline.after(30)):
    print("held", flush=True)
    sys.stdin.read()
"""


def _hold(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLD, str(directory)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_busy_instance_names_its_holder(tmp_path: Path) -> None:
    """Waiting is bounded, and the error says which operation of which process holds the instance."""
    with _hold(tmp_path) as holder:
        with (
            pytest.raises(InstanceBusy, match=f"start_instance by process {holder.pid}") as caught,
            instance_lock(str(tmp_path), "web1", "stop_instance", Deadline.after(0.05)),
        ):
            pass
        assert caught.value.retryable
        holder.communicate("")


def test_other_instances_are_free(tmp_path: Path) -> None:
    """A lock is about one instance."""
    with (
        instance_lock(str(tmp_path), "web1", "a", Deadline.after(0)),
        instance_lock(str(tmp_path), "web2", "b", Deadline.after(0)),
    ):
        assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    """The kernel releases the lock of a process that dies."""
    with _hold(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with instance_lock(str(tmp_path), "web1", "stop_instance", Deadline.after(30)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_threads_one_at_a_time(tmp_path: Path) -> None:
    """However many wait, only one is inside, and no file and no descriptor is left."""
    inside = 0
    most = 0
    rounds = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, rounds
        for _ in range(20):
            with instance_lock(str(tmp_path), "web1", "work", Deadline.after(60)):
                with guard:
                    inside += 1
                    most = max(most, inside)
                os.sched_yield()
                with guard:
                    inside -= 1
                    rounds += 1

    before = len(os.listdir("/proc/self/fd"))
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, rounds) == (1, 160)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
