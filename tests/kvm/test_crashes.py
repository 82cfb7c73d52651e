"""The host application is killed at every cut of every operation: the instance is in the state before or after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import InstanceState

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

# Kills itself at the n-th thing it does to the host: a file opened for writing, renamed, removed, a directory made
# or removed, a process started, a signal or a message sent. Prints how many there were when it gets to the end.
_APPLICATION = """
import json, os, signal, sys
import hvcore
settings, definition, operation, cut = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
driver = hvcore.load_driver("kvm", settings)
seen = 0

def count(*_):
    global seen
    seen += 1
    if seen == cut:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(event, args):
    if event == "open":
        writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes:
            return
    elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.posix_spawn", "socket.bind",
                       "socket.connect", "signal.pidfd_send_signal"):
        return
    count()

from hvcore_kvm.qmp import client
send = client.QmpClient._send
def sending(self, *args):
    count()
    send(self, *args)
    count()
client.QmpClient._send = sending
write = hvcore.Journal._write
def writing(self, entry):
    write(self, entry)
    count()
hvcore.Journal._write = writing
driver.check_parameter_syntax(definition)
sys.addaudithook(watch)
if operation == "start":
    driver.start_instance(definition)
elif operation == "stop":
    driver.stop_instance(definition["name"], force=True)
elif operation == "graceful":
    driver.stop_instance(definition["name"], timeout=30, escalate=False)
elif operation == "pause":
    driver.pause_instance(definition["name"])
elif operation == "reboot":
    driver.reboot_instance(definition["name"], mode="hard")
print(seen)
"""


def _crash(host: Any, definition: dict[str, Any], operation: str, cut: int) -> int | None:
    """Run an operation in a host application that is killed at a cut; returns the number of cuts if it was not."""
    command = [sys.executable, "-c", _APPLICATION, json.dumps(host.settings), json.dumps(definition)]
    done = subprocess.run([*command, operation, str(cut)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == -9:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def _qemus(host: Any) -> list[int]:
    """Every process that has something of the host's directory open, other than us."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _holds(entry, str(host.directory))]


def _holds(pid: str, directory: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for fd in fds:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue  # closed since it was listed
        if target.startswith(f"{directory}/state") and state != "Z" and int(pid) != os.getpid():
            return True
    return False


ALLOWED = {
    "start": (None, InstanceState.RUNNING),
    "stop": (InstanceState.RUNNING, InstanceState.STOPPED),
    "graceful": (InstanceState.RUNNING, InstanceState.STOPPED),
    "pause": (InstanceState.RUNNING, InstanceState.PAUSED),
    "reboot": (InstanceState.RUNNING,),
}


@pytest.mark.parametrize("operation", ALLOWED)
def test_killed_at_every_cut(host: Any, operation: str) -> None:
    """After each cut, recovery accounts for the instance and nothing is left of what was half done."""
    params = {"machine": "pc", "accel": "tcg", "firmware_image": str(host.firmware)}
    definition = {"name": "web1", "memory": "32MiB", "params": params}
    cut = 0
    while True:
        cut += 1
        if operation != "start":
            host.start(hvcore.read_definition(definition)[0])
        finished = _crash(host, definition, operation, cut)
        for console in host.consoles:
            console.close()
        host.consoles.clear()
        if finished is not None:
            break
        if operation == "graceful" and "stop.json" in str(host.files()) and not _button_missed(host):
            # The button has been pressed: the guest ends in its own time.
            host.wait_end()
        recovered = host.driver.recover()
        assert all(one.outcome in ("completed", "undone") for one in recovered.instances), f"cut {cut}: {recovered}"
        state = _state(host)
        if operation == "graceful" and state is InstanceState.SHUTTING_DOWN:
            state = InstanceState.RUNNING
        assert state in ALLOWED[operation], f"cut {cut}: {state}, {recovered}"
        alive = [row.pid for row in host.driver.list_instances().instances if row.pid is not None]
        assert _qemus(host) == alive, f"cut {cut}: stray processes"
        assert not [f for f in host.files() if f.endswith((".lock", "journal", "reboot.json"))], f"cut {cut}"
        host.driver.stop_instance("web1", force=True)
        host.driver.cleanup_instance("web1")
        assert host.files() == set(), f"cut {cut}"
    assert finished == cut - 1
    assert finished > 5
    host.driver.stop_instance("web1", force=True)


def _state(host: Any) -> InstanceState | None:
    try:
        state: InstanceState = host.driver.get_instance_info("web1").state
    except hvcore.InstanceNotFound:
        return None
    return state


def _button_missed(host: Any) -> bool:
    events = host.directory / "state/kvm/instances/web1/events"
    return not events.exists() or b"POWERDOWN" not in events.read_bytes()
