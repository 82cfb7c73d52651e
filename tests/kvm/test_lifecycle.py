"""Starting, pausing, restarting and stopping real guests."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

import hvcore
from hvcore import InstanceState

pytestmark = pytest.mark.qemu

ACCELERATORS = ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)]


@pytest.mark.parametrize("accel", ACCELERATORS)
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_guest_runs_answers_and_powers_off(host: Any, machine: str, accel: str) -> None:
    """A started guest boots on its devices, answers on the console, and obeys the power button."""
    instance = host.instance(
        accel=accel,
        params={"machine": machine},
        disks=[host.raw_disk(), host.qcow2_disk()],
        nics=[hvcore.Nic(), hvcore.Nic(params={"model": "e1000"})],
    )
    console = host.start(instance)
    console.send(b"e")
    console.expect(b"ok")
    info = host.driver.get_instance_info("web1")
    assert info.state is InstanceState.RUNNING
    assert (info.memory, info.vcpus, info.accelerator) == (64 << 20, 1, accel)
    assert info.machine is not None
    assert info.machine.startswith("pc-")
    assert host.driver.verify_instance("web1").codes == ()
    stopped = host.driver.stop_instance("web1", timeout=30, escalate=False)
    assert (stopped.before, stopped.after, stopped.changed) == (InstanceState.RUNNING, InstanceState.STOPPED, True)
    assert host.driver.list_instances().instances == ()


def test_a_paused_start_runs_nothing_until_resumed(host: Any) -> None:
    """A paused start leaves the guest before its first instruction, and is not remembered at a restart."""
    started = host.driver.start_instance(host.instance(), paused=True)
    assert started.after is InstanceState.PRELAUNCH
    assert host.driver.get_instance_info("web1").state is InstanceState.PRELAUNCH
    console = host.attach("web1")
    assert host.driver.resume_instance("web1").before is InstanceState.PRELAUNCH
    console.expect(b"ready")
    host.driver.reboot_instance("web1", timeout=30)
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_pause_and_resume(host: Any) -> None:
    """A paused guest does not answer until it is resumed; doing either twice changes nothing."""
    console = host.start(host.instance())
    assert host.driver.pause_instance("web1").changed
    assert not host.driver.pause_instance("web1").changed
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.PAUSED, hvcore.Cause.HOST_PAUSE)
    console.send(b"e")
    assert host.driver.resume_instance("web1").changed
    assert not host.driver.resume_instance("web1").changed
    console.expect(b"ok")


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_cold_reboot_is_a_new_process(host: Any, mode: Any) -> None:
    """Soft and hard reboots end the process and start another from the same definition."""
    host.start(host.instance())
    before = host.pid()
    result = host.driver.reboot_instance("web1", mode=mode, timeout=30)
    assert result.after is InstanceState.RUNNING
    assert host.pid() != before


def test_a_reboot_takes_a_new_definition(host: Any) -> None:
    """A cold reboot with an instance starts the new definition."""
    host.start(host.instance())
    host.driver.reboot_instance(host.instance(vcpus=2, memory="96MiB"), mode="hard")
    info = host.driver.get_instance_info("web1")
    assert (info.vcpus, info.memory) == (2, 96 << 20)


def test_a_reboot_with_a_bad_definition_leaves_the_old_life_alone(host: Any) -> None:
    """What is wrong with the new start is found before the old one ends."""
    host.start(host.instance())
    before = host.pid()
    bad = host.instance(disks=[hvcore.Disk(path="/nowhere/at/all", format="raw")])
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.reboot_instance(bad, mode="hard")
    assert caught.value.findings.codes == ("disk-missing",)
    assert host.pid() == before


def test_reset_keeps_the_process(host: Any) -> None:
    """The reset button starts the guest again in the same process."""
    console = host.start(host.instance())
    before = host.pid()
    assert host.driver.reboot_instance("web1", mode="reset").after is InstanceState.RUNNING
    console.expect(b"ready")
    assert host.pid() == before


def test_reset_of_a_paused_guest_leaves_it_before_its_first_instruction(host: Any) -> None:
    """A paused guest that is reset waits to be resumed; until then it cannot be asked to power off."""
    console = host.start(host.instance())
    host.driver.pause_instance("web1")
    assert host.driver.reboot_instance("web1", mode="reset").after is InstanceState.PRELAUNCH
    assert host.driver.get_instance_info("web1").state is InstanceState.PRELAUNCH
    with pytest.raises(hvcore.UnsupportedOperation, match="prelaunch"):
        host.driver.reboot_instance("web1", mode="soft", timeout=30)
    host.driver.resume_instance("web1")
    console.expect(b"ready")


def test_a_guest_that_ignores_the_button_is_stopped_by_force(host: Any) -> None:
    """A graceful stop whose time is over goes on with force and says so."""
    console = host.start(host.instance())
    console.send(b"n")
    console.expect(b"ok")
    stopped = host.driver.stop_instance("web1", timeout=0.5)
    assert stopped.after is InstanceState.STOPPED
    assert "force" in stopped.detail
    assert host.driver.get_instance_info("web1").reason.cause is hvcore.Cause.HOST_FORCE_STOP


def test_a_stop_that_must_not_escalate_leaves_the_guest_running(host: Any) -> None:
    """Without escalation the caller is told, the guest runs on, and a retry is heard once it obeys again."""
    console = host.start(host.instance())
    console.send(b"n")
    console.expect(b"ok")
    with pytest.raises(hvcore.DeadlineExceeded) as caught:
        host.driver.stop_instance("web1", timeout=3, escalate=False)
    assert caught.value.retryable
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
    console.send(b"N")
    console.expect(b"ok")
    assert host.driver.stop_instance("web1", timeout=30, escalate=False, retry=True).changed


def test_while_the_guest_is_asked_it_is_shutting_down(host: Any) -> None:
    """During a graceful stop the state is shutting-down, and a second operation is told who is at work."""
    console = host.start(host.instance())
    console.send(b"n")
    console.expect(b"ok")
    stopping = threading.Thread(target=host.driver.stop_instance, args=("web1",), kwargs={"timeout": 120})
    stopping.start()
    try:
        console.expect(b"ignored power button")
        assert host.driver.get_instance_info("web1").state is InstanceState.SHUTTING_DOWN
        with pytest.raises(hvcore.InstanceBusy, match=f"stop_instance by process {os.getpid()}"):
            host.driver.pause_instance("web1", timeout=0.5)
    finally:
        console.send(b"q")
        stopping.join(30)
    assert not stopping.is_alive()


def test_a_guest_without_acpi_cannot_be_asked(host: Any) -> None:
    """Without ACPI a graceful stop is refused, and an escalating one goes straight to force."""
    host.driver.start_instance(host.instance(params={"acpi": False}))
    with pytest.raises(hvcore.UnsupportedOperation):
        host.driver.stop_instance("web1", timeout=30, escalate=False)
    assert host.driver.stop_instance("web1", timeout=30).changed


def test_force_stops_a_frozen_qemu(host: Any) -> None:
    """A QEMU that was stopped with SIGSTOP is reported as not answering, and force ends it."""
    host.start(host.instance())
    pid = host.pid()
    os.kill(pid, signal.SIGSTOP)
    info = host.driver.get_instance_info("web1", timeout=0.5)
    assert (info.state, info.reason.cause) == (InstanceState.UNKNOWN, hvcore.Cause.NOT_ANSWERING)
    with pytest.raises(hvcore.DeadlineExceeded):
        host.driver.pause_instance("web1", timeout=0.5)
    assert host.driver.stop_instance("web1", force=True).changed


def test_start_of_a_running_instance_is_refused(host: Any) -> None:
    """A second start names the process that runs and changes nothing, even with another definition."""
    host.start(host.instance())
    pid = host.pid()
    with pytest.raises(hvcore.AlreadyRunning, match=str(pid)):
        host.driver.start_instance(host.instance(vcpus=2))
    assert host.pid() == pid
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_two_starts_at_once_give_one_process(host: Any) -> None:
    """Of two simultaneous starts one wins and the other is told that it runs."""
    results: list[object] = []

    def start() -> None:
        try:
            results.append(host.driver.start_instance(host.instance()))
        except hvcore.HypervisorError as error:
            results.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(isinstance(result, hvcore.Transition) for result in results) == 1
    assert sum(isinstance(result, hvcore.AlreadyRunning) for result in results) == 3


@pytest.mark.parametrize("force", [False, True])
def test_stop_of_an_absent_instance_changes_nothing(host: Any, force: bool) -> None:
    """Stopping what nobody knows is no error and leaves no trace."""
    stopped = host.driver.stop_instance("nobody", force=force)
    assert (stopped.before, stopped.after, stopped.changed) == (None, None, False)
    assert host.files() == set()


@pytest.mark.parametrize("operation", ["pause_instance", "resume_instance", "reboot_instance", "get_instance_console"])
def test_operations_on_an_absent_instance_say_so(host: Any, operation: str) -> None:
    """What needs a live instance refuses one that is not there."""
    with pytest.raises(hvcore.NotRunning) as caught:
        getattr(host.driver, operation)("nobody")
    assert (caught.value.instance, caught.value.operation, caught.value.driver) == ("nobody", operation, "kvm")


def test_another_host_application_can_take_over(host: Any, make_host: Any) -> None:
    """An instance started by one driver object is seen, paused and stopped by another."""
    host.start(host.instance())
    other = make_host()
    assert other.driver.list_instances() == host.driver.list_instances()
    assert other.driver.pause_instance("web1").changed
    assert other.driver.stop_instance("web1", force=True).changed
    assert host.driver.list_instances().instances == ()


def test_cleanup_forgets_a_dead_instance_and_refuses_a_live_one(host: Any) -> None:
    """After a cleanup there is no account of the name; a running instance cannot be forgotten."""
    host.start(host.instance())
    with pytest.raises(hvcore.AlreadyRunning):
        host.driver.cleanup_instance("web1")
    host.driver.stop_instance("web1", force=True)
    assert host.driver.get_instance_info("web1").state is InstanceState.STOPPED
    assert host.driver.cleanup_instance("web1").changed
    with pytest.raises(hvcore.InstanceNotFound):
        host.driver.get_instance_info("web1")
    assert host.files() == set()


def test_devices_keep_their_places_over_restarts(host: Any) -> None:
    """A device added in front of others does not move them: a place belongs to a uuid."""
    uuids = ("0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11", "1c9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11")
    old, new = (hvcore.Disk(path=host.raw_disk(u).path, format="raw", uuid=u) for u in uuids)

    def address(plan: hvcore.Plan, uuid: str) -> str:
        words = next(w for o in plan.options for w in o.words if "virtio-blk-pci" in w and uuid[:8] in w)
        return str(json.loads(words)["addr"])

    before = host.driver.plan_start(host.instance(disks=[old]))
    host.driver.start_instance(host.instance(disks=[old]))
    host.driver.stop_instance("web1", force=True)
    after = host.driver.plan_start(host.instance(disks=[new, old]))
    assert address(after, uuids[0]) == address(before, uuids[0])
    assert address(after, uuids[1]) != address(before, uuids[0])


_START_AND_SAY = """
import json, sys
import hvcore
settings, path = json.loads(sys.argv[1]), sys.argv[2]
driver = hvcore.load_driver("kvm", settings)
driver.start_instance(json.loads(open(path).read()))
"""


@pytest.mark.parametrize("recorded", [True, False])
def test_a_start_whose_host_application_was_killed_is_put_away(make_host: Any, tmp_path: Any, recorded: bool) -> None:
    """A QEMU left behind by a killed start is found, by its record or its event file, and ended by the next."""
    script = tmp_path / "qemu"
    real = "/usr/bin/qemu-system-x86_64"
    started = tmp_path / "started"
    os.mkfifo(started)
    # The first start hangs before its monitor is up; later ones are the real program.
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"-machine none"*) exec {real} "$@";; esac\n'
        f"if mkdir {tmp_path}/once 2>/dev/null; then echo $$ > {started}; exec sleep 600; fi\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    host = make_host(qemu=str(script))
    definition = tmp_path / "web1.json"
    params = {"accel": "tcg", "machine": "pc", "firmware_image": str(host.firmware)}
    definition.write_text(json.dumps({"name": "web1", "memory": "64MiB", "security_model": "none", "params": params}))
    command = [sys.executable, "-c", _START_AND_SAY, json.dumps(host.settings), str(definition)]
    application = subprocess.Popen(command)
    stray = int(started.read_text())
    process_file = tmp_path / "state/kvm/instances/web1/process.json"
    while not process_file.exists():
        os.sched_yield()
    application.kill()
    application.wait()
    if not recorded:
        process_file.unlink()
    assert [row.name for row in host.driver.list_instances().instances] == ["web1"]
    assert host.driver.get_instance_info("web1").state in (InstanceState.UNKNOWN, InstanceState.CRASHED)
    fd = os.pidfd_open(stray)
    try:
        host.driver.start_instance(json.loads(definition.read_text()))
        assert select.select([fd], [], [], 0)[0], "the stray process lives"
    finally:
        os.close(fd)
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
    assert host.pid() != stray


def test_an_interrupted_start_leaves_the_account_of_the_life_before(make_host: Any, tmp_path: Any) -> None:
    """After a killed start that a stop puts away, the instance is what it was before: stopped by us, or unknown."""
    script = tmp_path / "qemu"
    started = tmp_path / "started"
    os.mkfifo(started)
    real = "/usr/bin/qemu-system-x86_64"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"-machine none"*) exec {real} "$@";; *"guest=first"*) exec {real} "$@";; esac\n'
        f"echo $$ > {started}; exec sleep 600\n"
    )
    script.chmod(0o755)
    host = make_host(qemu=str(script))
    definition = tmp_path / "web1.json"
    params = {"accel": "tcg", "machine": "pc", "firmware_image": str(host.firmware)}
    definition.write_text(json.dumps({"name": "web1", "memory": "64MiB", "security_model": "none", "params": params}))
    application = subprocess.Popen([sys.executable, "-c", _START_AND_SAY, json.dumps(host.settings), str(definition)])
    stray = os.pidfd_open(int(started.read_text()))
    history = tmp_path / "data/kvm/instances/web1/history.json"
    while not history.exists():
        os.sched_yield()
    application.kill()
    application.wait()
    try:
        host.driver.stop_instance("web1", force=True)
        assert select.select([stray], [], [], 0)[0], "the stray process lives"
    finally:
        os.close(stray)
    with pytest.raises(hvcore.InstanceNotFound):
        host.driver.get_instance_info("web1")


@pytest.mark.parametrize("damage", [None, "", "{", '{"schema": 99}', '{"schema": 1}'])
def test_an_instance_is_not_lost_with_its_records(host: Any, damage: str | None) -> None:
    """With every record missing or damaged it is listed, asked, refused a second start, and stopped by name."""
    host.start(host.instance())
    pid = host.pid()
    for name in ("stop.json", "reboot.json", "history-before.json"):
        (host.directory / "state/kvm/instances/web1" / name).touch()
    for path in (host.directory / "state/kvm/instances/web1").glob("*.json"):
        path.unlink() if damage is None else path.write_text(damage)
    for path in (host.directory / "data/kvm/instances/web1").glob("history.json"):
        path.unlink() if damage is None else path.write_text(damage)
    assert host.pid() == pid
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.pid) == (InstanceState.RUNNING, pid)
    with pytest.raises(hvcore.AlreadyRunning):
        host.driver.start_instance(host.instance())
    assert host.driver.recover().instances == ()
    assert host.pid() == pid
    assert "record-damaged" in host.driver.verify_instance("web1").codes or damage is None
    stopped = host.driver.stop_instance("web1", timeout=30, escalate=False)
    assert (stopped.changed, stopped.after) == (True, InstanceState.STOPPED)
    assert host.driver.get_instance_info("web1").reason.cause is hvcore.Cause.HOST_STOP


def test_a_damaged_account_does_not_keep_an_instance_from_starting(host: Any) -> None:
    """What is left of an earlier life, damaged or not, is replaced by the new one."""
    host.driver.start_instance(host.instance())
    host.driver.stop_instance("web1", force=True)
    (host.directory / "data/kvm/instances/web1/history.json").write_text("{")
    with pytest.raises(hvcore.RecordError):
        host.driver.get_instance_info("web1")
    assert host.driver.start_instance(host.instance()).changed
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_while_it_is_being_started_it_is_prelaunch(make_host: Any, tmp_path: Any) -> None:
    """A query during a start says that it is being started, at once; never that it has crashed."""
    script = tmp_path / "qemu"
    started = tmp_path / "started"
    os.mkfifo(started)
    real = "/usr/bin/qemu-system-x86_64"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *"-machine none"*) exec {real} "$@";; esac\necho > {started}; exec sleep 600\n'
    )
    script.chmod(0o755)
    host = make_host(qemu=str(script), start_timeout=600)
    failed: list[hvcore.HypervisorError] = []

    def start() -> None:
        try:
            host.driver.start_instance(host.instance(security_model="none"), timeout=600)
        except hvcore.HypervisorError as error:
            failed.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    try:
        started.read_text()
        info = host.driver.get_instance_info("web1")
        assert (info.state, info.pid is not None) == (InstanceState.PRELAUNCH, True)
        assert f"being started by process {os.getpid()}" in info.reason.detail
        assert [each.state for each in host.driver.get_all_instances_info().instances] == [InstanceState.PRELAUNCH]
    finally:
        os.kill(host.pid(), signal.SIGKILL)
        starting.join(60)
    assert [type(error) for error in failed] == [hvcore.SpawnFailed]
    assert host.files() == set()
