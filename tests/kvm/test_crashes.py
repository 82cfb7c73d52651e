"""The host application is killed at every cut of every operation: the instance is in the state before or after."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import InstanceState

PATIENCE = 30.0

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

OPERATIONS = {
    "start": "driver.start_instance(words[0])",
    "stop": "driver.stop_instance('web1', force=True)",
    "graceful": "driver.stop_instance('web1', timeout=30, escalate=False)",
    "pause": "driver.pause_instance('web1')",
    "reboot": "driver.reboot_instance('web1', mode='hard')",
    "save": "driver.save_instance('web1', words[1])",
    "restore": "driver.restore_instance(words[1])",
}


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
    "save": (InstanceState.RUNNING, InstanceState.SAVED),
    "restore": (InstanceState.RUNNING, InstanceState.SAVED),
}

STRIDES = {"save": 7, "restore": 13}
"""Of these not every cut is tried: there are many, and each takes a second."""


def _definition(host: Any, kind: str) -> dict[str, Any]:
    """The least there can be; or one whose start does all that a start can do on the host."""
    params: dict[str, Any] = {"machine": "pc", "accel": "tcg"}
    definition = {"name": "web1", "memory": "32MiB", "params": params}
    if kind == "plain":
        params["firmware_image"] = str(host.firmware)
        return definition
    secret = host.directory / "secret"
    secret.write_text("sesame\n")
    encrypted = host.luks_image("crypt.luks", "sesame")
    params |= {
        "firmware": "uefi",
        "tpm": "crb",
        "cpu_pin": "0",
        "memory_min": "32MiB",
        "balloon_stats_interval": 1,
        "chroot": os.geteuid() == 0,
    }
    disk = {"path": str(encrypted), "format": "raw", "params": {"encryption": True, "secret_file": str(secret)}}
    return {**definition, "disks": [disk], "nics": [{"params": {"link_up": False}}]}


_NEEDS = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/bin/swtpm")
_LACKING = [path for path in _NEEDS if not os.path.exists(path)]
_RICH = pytest.mark.skipif(bool(_LACKING), reason=f"there is no {', '.join(_LACKING)}")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        *((operation, "plain") for operation in ALLOWED),
        pytest.param("start", "rich", marks=_RICH),
        pytest.param("stop", "rich", marks=_RICH),
    ],
)
def test_killed_at_every_cut(host: Any, cut_short: Any, operation: str, kind: str) -> None:
    """After each cut, recovery accounts for the instance and nothing is left of what was half done."""
    definition = _definition(host, kind)
    # What the program can do is asked once and kept: otherwise the first runs would have more cuts than the last.
    host.driver.validate_parameters(definition)
    stride = STRIDES.get(operation, 1)
    cut = 1 - stride
    saved = host.directory / "saved"
    while True:
        cut += stride
        if operation != "start" and kind == "plain":
            host.start(hvcore.read_definition(definition)[0])
        elif operation != "start":
            host.driver.start_instance(definition)
        if operation == "restore":
            host.driver.save_instance("web1", str(saved))
        finished = cut_short(
            OPERATIONS[operation], definition, str(saved), cut=cut, before="driver.check_parameter_syntax(words[0])"
        )
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
        assert _strays(host, alive) == [], f"cut {cut}: stray processes"
        left = [f for f in host.files() if f.startswith("state")]
        assert not [f for f in left if f.endswith((".lock", "journal", "reboot.json"))], f"cut {cut}"
        if operation in STRIDES:
            assert (state is InstanceState.SAVED) <= saved.exists(), f"cut {cut}"
            assert operation == "restore" or saved.exists() == (state is InstanceState.SAVED), f"cut {cut}"
            assert not list(host.directory.glob(".*")), f"cut {cut}: a part of a file"
            if state is InstanceState.SAVED:
                host.driver.restore_instance(str(saved))
            saved.unlink(missing_ok=True)
        host.driver.stop_instance("web1", force=True)
        host.driver.cleanup_instance("web1")
        assert host.files() == set(), f"cut {cut}"
    assert cut - stride <= finished < cut
    assert finished > 5
    host.driver.stop_instance("web1", force=True)


def _strays(host: Any, alive: list[int]) -> list[int]:
    """Processes that have no reason to be there. A companion ends by itself, a moment after its QEMU."""
    strays = [pid for pid in _qemus(host) if pid not in alive and not (alive and _is_companion(pid))]
    left = []
    for pid in strays:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if not (_is_companion(pid) and select.select([fd], [], [], PATIENCE)[0]):
            left.append(pid)
        os.close(fd)
    return left


def _is_companion(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "swtpm"
    except OSError:
        return True  # it has ended


def _state(host: Any) -> InstanceState | None:
    try:
        state: InstanceState = host.driver.get_instance_info("web1").state
    except hvcore.InstanceNotFound:
        return None
    return state


def _button_missed(host: Any) -> bool:
    events = host.directory / "state/kvm/instances/web1/events"
    return not events.exists() or b"POWERDOWN" not in events.read_bytes()
