"""Processes that serve a QEMU process: they end with it, however it ends, and what they keep is kept."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Cause, InstanceState
from hvcore_kvm.companions import Companion, find_program

PATIENCE = 30.0
_NAMES = {"swtpm", "virtiofsd share"}
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(find_program("swtpm") is None, reason="swtpm is not installed"),
    pytest.mark.skipif(find_program("virtiofsd") is None, reason="virtiofsd is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="virtiofsd of QEMU 7.2 has to be started by root"),
]


@pytest.fixture
def served(host: Any, tmp_path: Path) -> Callable[..., hvcore.Instance]:
    """An instance with one companion of each kind."""

    def make(**params: Any) -> hvcore.Instance:
        (tmp_path / "share").mkdir(exist_ok=True)
        shares = [{"tag": "share", "path": str(tmp_path / "share")}]
        return host.instance(params={"tpm": "tis", "shares": shares, **params})

    return make


@contextlib.contextmanager
def _held(directory: Path, name: str = "web1") -> Iterator[dict[str, int]]:
    """A pidfd of each companion of an instance, by its program."""
    record = json.loads((directory / "state" / "kvm" / "instances" / name / "companions.json").read_text())
    rows = record.get("companions") or record["data"]["companions"]
    with contextlib.ExitStack() as stack:
        held = {}
        for row in rows:
            # One that is not there any more has ended.
            with contextlib.suppress(ProcessLookupError):
                held[row["name"]] = os.pidfd_open(row["identity"]["pid"])
                stack.callback(os.close, held[row["name"]])
        yield held


def _ended(pidfd: int) -> bool:
    """Whether a process ends soon."""
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


def test_they_run_beside_it_and_end_with_a_stop(host: Any, served: Callable[..., hvcore.Instance]) -> None:
    """Both are there while it runs; neither is after a stop."""
    host.driver.start_instance(served())
    with _held(host.directory) as held:
        assert set(held) == _NAMES
        assert not select.select(list(held.values()), [], [], 0)[0]
        host.driver.stop_instance("web1", force=True)
        # Not a wait: the stop has waited.
        assert len(select.select(list(held.values()), [], [], 0)[0]) == 2


@pytest.mark.parametrize("how", ["guest", "SIGKILL", "SIGTERM"])
def test_they_end_when_qemu_ends_by_itself(host: Any, served: Callable[..., hvcore.Instance], how: str) -> None:
    """Nobody of ours is needed: their connection closes, and that ends them."""
    console = host.start(served())
    with _held(host.directory) as held:
        if how == "guest":
            console.send(b"q")
        else:
            os.kill(host.pid(), signal.Signals[how])
        assert {name: _ended(pidfd) for name, pidfd in held.items()} == dict.fromkeys(_NAMES, True)
    host.wait_end()
    assert host.driver.get_instance_info("web1").pid is None


@pytest.mark.parametrize("name", sorted(_NAMES))
def test_qemu_outlives_a_companion(host: Any, served: Callable[..., hvcore.Instance], name: str) -> None:
    """When one of them dies, QEMU lives on and can be stopped; the guest has lost a device."""
    host.driver.start_instance(served(), paused=True)
    with _held(host.directory) as held:
        signal.pidfd_send_signal(held[name], signal.SIGKILL)
        assert _ended(held[name])
        host.driver.stop_instance("web1", force=True)
        assert all(_ended(pidfd) for pidfd in held.values())
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.STOPPED, Cause.HOST_FORCE_STOP)


def _companions() -> set[int]:
    """Every process of a companion's program."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.path.basename(os.readlink(f"/proc/{entry}/exe")) in ("swtpm", "virtiofsd"):
                    found.add(int(entry))
    return found


def _of(directory: Path) -> set[int]:
    """Those that have something of a test's directory in their arguments."""
    found = set()
    for pid in _companions():
        with contextlib.suppress(OSError):
            if os.fsencode(directory) in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def test_a_start_that_fails_takes_them_down(host: Any, served: Callable[..., hvcore.Instance]) -> None:
    """QEMU ends at once after they were started: none of them is left, and the next start works."""
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(served(extra_args="-device no-such-device"))
    assert _of(host.directory) == set()
    assert {path for path in host.files() if path.startswith("state")} == set()
    host.driver.start_instance(served())
    assert len(_of(host.directory)) >= 2


def test_a_companion_that_does_not_start(
    host: Any, served: Callable[..., hvcore.Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that cannot be executed ends the start in words, and those that were started are ended."""
    monkeypatch.setattr("hvcore_kvm.launch.start_companion", _failing)
    with pytest.raises(hvcore.HypervisorError, match="virtiofsd"):
        host.driver.start_instance(served())
    assert _of(host.directory) == set()
    assert {path for path in host.files() if path.startswith("state")} == set()


def _failing(companion: Companion, *more: Any) -> Any:
    from hvcore_kvm.companions import start_companion

    if companion.name.startswith("virtiofsd"):
        raise hvcore.HostError("virtiofsd cannot be started")
    return start_companion(companion, *more)


# Starts an instance, and is killed when QEMU itself is about to be spawned.
_DYING = """
import json, os, signal, sys
import hvcore
from hvcore_kvm import process
settings, definition = json.loads(sys.argv[1]), json.loads(sys.argv[2])
real = process.spawn
def spawn(argv, *more):
    if "qemu-system" in argv[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(argv, *more)
process.spawn = spawn
with hvcore.load_driver("kvm", settings) as driver:
    driver.start_instance(definition)
"""


def test_the_host_application_dies_before_qemu_is_there(host: Any, served: Callable[..., hvcore.Instance]) -> None:
    """Their connection is closed, which ends them or lets recovery end them; nothing is left, and it can be started."""
    params = dict(served().params)
    definition = {"name": "web1", "memory": "64MiB", "params": params}
    command = [sys.executable, "-c", _DYING, json.dumps(host.settings), json.dumps(definition)]
    done = subprocess.run(command, timeout=120, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with _held(host.directory) as held:
        assert set(held) <= _NAMES
        # A swtpm that QEMU has never spoken to does not mind that its connection is closed (seen with 0.7).
        assert all(_ended(pidfd) for name, pidfd in held.items() if name != "swtpm")
        host.driver.recover()
        assert all(_ended(pidfd) for pidfd in held.values())
    assert _of(host.directory) == set()
    assert host.driver.list_instances().instances == ()
    host.driver.start_instance(served())
    assert len(_of(host.directory)) >= 2


def test_tpm_state_is_kept_until_it_is_cleaned_up(host: Any, served: Callable[..., hvcore.Instance]) -> None:
    """The state survives a stop and is what the next start begins with; after a clean-up there is none."""
    state = host.directory / "data" / "kvm" / "instances" / "web1" / "tpm"
    host.start(served())
    host.driver.stop_instance("web1", force=True)
    (kept,) = (path for path in state.iterdir() if path.suffix == ".permall")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    content = kept.read_bytes()
    host.start(served())
    host.driver.stop_instance("web1", force=True)
    assert len(kept.read_bytes()) == len(content)
    # It is what is used: with other content there is no TPM.
    kept.write_bytes(b"no state of a TPM")
    with pytest.raises(hvcore.HypervisorError):
        host.driver.start_instance(served())
    kept.write_bytes(content)
    host.driver.start_instance(served())
    host.driver.stop_instance("web1", force=True)
    host.driver.cleanup_instance("web1")
    assert not state.exists()


def test_the_plan_names_them(host: Any, served: Callable[..., hvcore.Instance]) -> None:
    """Each is a step of the plan, with its whole command."""
    steps = [step for step in host.driver.plan_start(served()).steps if step.startswith("start ")]
    assert [step.split(":")[0] for step in steps if "QEMU" not in step] == [f"start {name}" for name in sorted(_NAMES)]


def test_a_connection_is_taken_once() -> None:
    """A companion that was not started has none, and letting go of nothing does no harm."""
    companion = Companion(name="swtpm", argv=("/bin/true",))
    companion.let_go()
    with pytest.raises(hvcore.HostError, match="has not been started"):
        companion.take()
