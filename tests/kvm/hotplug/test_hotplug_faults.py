"""Guests that do not let go, faults at every step, killed host applications, and a QEMU that does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Disk, Nic
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient, QmpRefused

pytestmark = pytest.mark.qemu

DISK = f"dd000000-0000-4000-8000-{os.getpid():012x}"
NIC = f"ee000000-0000-4000-8000-{os.getpid():012x}"
MACHINES = ["pc", "q35"]


def _disk(host: Any, **changes: Any) -> Disk:
    return Disk(uuid=DISK, path=host.raw_disk("hot.raw").path, format="raw", **changes)


def _devices(host: Any) -> dict[str, str]:
    return {device.uuid: device.state for device in host.driver.get_instance_info("web1").devices}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_guest_that_does_not_know_hotplug(host: Any, whole: Any, machine: str) -> None:
    """Removal is pending, recorded, and completed when the guest is reset; nothing is left of the devices."""
    host.start(host.instance(params={"machine": machine}))
    before = whole()
    host.driver.hot_add_device("web1", _disk(host))
    host.driver.hot_add_device("web1", Nic(uuid=NIC))
    added = whole()
    for uuid in (DISK, NIC):
        for _ in range(2):
            result = host.driver.hot_del_device("web1", uuid, timeout=1)
            assert (result.device, result.done) == (uuid, False)
    assert _devices(host) == {DISK: "removing", NIC: "removing"}
    pending = whole()
    assert (pending.nodes, pending.devices) == (added.nodes, added.devices), "nothing goes before the guest lets go"
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.hot_add_device("web1", _disk(host))
    assert [(f.code, f.message) for f in caught.value.findings] == [("already-there", "its removal is under way")]
    host.driver.reboot_instance("web1", mode="reset")
    assert _devices(host) == {}
    assert whole() == before


def test_a_reset_by_the_guest_is_noticed_by_another_application(host: Any, whole: Any) -> None:
    """What the guest let go of while nobody looked is completed by whoever recovers, in another process."""
    host.start(host.instance(params={"machine": "q35"}))
    before = whole()
    host.driver.hot_add_device("web1", _disk(host))
    assert not host.driver.hot_del_device("web1", DISK, timeout=1).done
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), hvcore.Deadline.after(30)) as client:
        client.execute("system_reset", deadline=hvcore.Deadline.after(30))
        client.wait_event(lambda m: m["event"] == "DEVICE_DELETED" and "device" in m["data"], hvcore.Deadline.after(30))
    code = (
        "import json, sys, hvcore\n"
        "found = hvcore.load_driver('kvm', json.loads(sys.argv[1])).recover()\n"
        "print([(one.operation, one.outcome) for one in found.instances])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(host.settings)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[('hotplug', 'completed')]"
    assert whole() == before


def test_a_nic_cut_off_by_force(host: Any, whole: Any, bridge: str) -> None:
    """Its connection is gone at once; the card stays until the guest lets go. A disk cannot be cut off."""
    host.start(host.instance(params={"machine": "q35"}))
    before = whole()
    host.driver.hot_add_device("web1", Nic(uuid=NIC, mode="bridged", link=bridge))
    assert len(os.listdir(f"/sys/class/net/{bridge}/brif")) == 1
    assert not host.driver.hot_del_device("web1", NIC, force=True, timeout=1).done
    assert os.listdir(f"/sys/class/net/{bridge}/brif") == []
    host.driver.hot_add_device("web1", _disk(host))
    with pytest.raises(hvcore.InvalidParameters, match="cannot be removed by force"):
        host.driver.hot_del_device("web1", DISK, force=True, timeout=1)
    assert _devices(host) == {DISK: "present", NIC: "removing"}
    assert not host.driver.hot_del_device("web1", DISK, timeout=1).done
    host.driver.reboot_instance("web1", mode="reset")
    assert whole() == before


def test_a_late_word_about_an_earlier_device(host: Any, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU may say that a device is deleted after one of the same name has come: that one stays."""
    host.start(host.instance(params={"machine": "q35"}))
    host.driver.hot_add_device("web1", _disk(host))
    added = whole()
    late: list[dict[str, Any]] = [{"event": "DEVICE_DELETED", "data": {"device": device_id("disk", DISK)}}]
    wait_event = QmpClient.wait_event

    def wait(self: QmpClient, wanted: Any, deadline: Any) -> Any:
        return late.pop() if late and wanted(late[0]) else wait_event(self, wanted, deadline)

    monkeypatch.setattr(QmpClient, "wait_event", wait)
    assert not host.driver.hot_del_device("web1", DISK, timeout=1).done
    assert late == []
    assert (whole().nodes, whole().devices) == (added.nodes, added.devices)
    assert _devices(host) == {DISK: "removing"}


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
def test_what_outlives_the_tap_goes_too(host: Any, whole: Any, bridge: str) -> None:
    """The rules of a limited NIC are there while it is, stay while its removal is pending, and then go."""
    host.start(host.instance(params={"machine": "q35"}))
    before = whole()
    nic = Nic(uuid=NIC, mode="bridged", link=bridge, params={"bandwidth_limit": 1 << 20})
    host.driver.hot_add_device("web1", nic)
    (tap,) = whole().taps

    def has_rules() -> bool:
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        return tap in tables

    assert has_rules()
    assert not host.driver.hot_del_device("web1", NIC, timeout=0.1).done
    assert has_rules()
    host.driver.reboot_instance("web1", mode="reset")
    assert not has_rules()
    assert whole() == before


@pytest.mark.parametrize("machine", MACHINES)
def test_a_hundred_cycles(host: Any, whole: Any, machine: str) -> None:
    """A disk and a NIC come and go a hundred times: no descriptor, object, tap or memory more than after the first."""
    host.start(host.instance(params={"machine": machine}))
    before = whole()
    resident = []
    for cycle in range(100):
        host.driver.hot_add_device("web1", _disk(host, params={"throttle": {"iops_total": 100}}))
        host.driver.hot_add_device("web1", Nic(uuid=NIC))
        for uuid in (DISK, NIC):
            # The firmware guest lets go of nothing but by its reset.
            assert not host.driver.hot_del_device("web1", uuid, timeout=0.01).done
        host.driver.reboot_instance("web1", mode="reset")
        if cycle in (9, 99):
            status = Path(f"/proc/{host.pid()}/status").read_text()
            resident.append(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")))
    assert whole() == before
    assert resident[1] - resident[0] < 4096, "kB between the tenth and the hundredth"


REFUSED = ["object-add", "add-fd", "blockdev-add", "getfd", "netdev_add", "device_add"]


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_at_every_step(
    host: Any, whole: Any, command: str, address: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever QEMU refuses, it has its own words in the error, and QEMU, host and record are as before."""
    nic = Nic(uuid=NIC)
    if command == "getfd":
        if os.geteuid() != 0:
            pytest.skip("only root makes taps")
        nic = Nic(uuid=NIC, mode="routed", ip=address(2))
    host.start(host.instance(params={"machine": "q35"}))
    before = whole()
    execute = QmpClient.execute

    def refuse(self: QmpClient, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == command:
            raise QmpRefused(name, "GenericError", "not today")
        return execute(self, name, *args, **kwargs)

    monkeypatch.setattr(QmpClient, "execute", refuse)
    for device in (_disk(host, params={"throttle": {"iops_total": 100}}), nic):
        with contextlib.suppress(hvcore.HypervisorRefused):
            host.driver.hot_add_device("web1", device)
            continue
    monkeypatch.undo()
    for uuid, state in _devices(host).items():
        assert state == "present"
        host.driver.hot_del_device("web1", uuid, timeout=0.01)
    host.driver.reboot_instance("web1", mode="reset")
    assert whole() == before


def test_the_words_of_a_refusal(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the command and QEMU's own text."""
    host.start(host.instance(params={"machine": "q35", "hotplug_ports": 0}))
    support = host.driver.verify_hotplug_support("web1", "remove", Disk(uuid=DISK, path="/x", format="raw"))
    assert not support.supported
    with pytest.raises(hvcore.HypervisorRefused, match="does not support hotplugging") as caught:
        host.driver.hot_add_device("web1", _disk(host))
    assert "hotplug_ports" in (caught.value.hint or "")
    assert _devices(host) == {}


def test_another_mtu_where_nothing_can_be_plugged(host: Any, whole: Any) -> None:
    """The MTU a guest is told of is the card's, which stays: QEMU's words, what to do, and nothing is changed."""
    nic = Nic(uuid=NIC, mac="52:54:00:00:00:01", params={"mtu": 1400})
    host.start(host.instance(params={"machine": "q35", "hotplug_ports": 0}, nics=[nic]))
    before = whole()
    with pytest.raises(hvcore.HypervisorRefused, match="does not support hotplugging") as caught:
        host.driver.hot_mod_device("web1", attrs.evolve(nic, params={"mtu": 1300}))
    assert "hotplug_ports" in (caught.value.hint or "")
    assert _devices(host) == {NIC: "present"}
    assert whole() == before


_KILLED = """
import json, os, signal, sys
import hvcore
from hvcore_kvm.qmp import QmpClient
settings, name, action, device, cut = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5])
count = 0
execute = QmpClient.execute
def killed(self, command, *args, **kwargs):
    global count
    count += 1
    if count == cut:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        return execute(self, command, *args, **kwargs)
    finally:
        count += 1
        if count == cut:
            os.kill(os.getpid(), signal.SIGKILL)
QmpClient.execute = killed
driver = hvcore.load_driver("kvm", json.loads(settings))
if action == "add":
    kind = hvcore.Disk if "path" in device else hvcore.Nic
    driver.hot_add_device(name, kind(**device))
else:
    driver.hot_del_device(name, device["uuid"], timeout=0.01)
"""


@pytest.mark.parametrize("kind", ["disk", "nic"])
@pytest.mark.parametrize("action", ["add", "remove"])
def test_killed_at_every_command(host: Any, whole: Any, action: str, kind: str) -> None:
    """Killed before or after any command, it leaves a device that is there or not, and nothing between."""
    host.start(host.instance(params={"machine": "q35"}))
    before = whole()
    disk = _disk(host, params={"throttle": {"iops_total": 100}})
    device: dict[str, Any] = {"uuid": NIC}
    if kind == "disk":
        device = {"uuid": DISK, "path": disk.path, "format": "raw", "params": {"throttle": {"iops_total": 100}}}
    uuid = device["uuid"]
    outcomes = set()
    for cut in range(1, 80):
        if action == "remove":
            host.driver.hot_add_device("web1", disk if kind == "disk" else Nic(uuid=NIC))
        command = [
            sys.executable,
            "-c",
            _KILLED,
            json.dumps(host.settings),
            "web1",
            action,
            json.dumps(device),
            str(cut),
        ]
        killed = subprocess.run(command, timeout=60, check=False, capture_output=True).returncode == -9
        host.driver.recover()
        state = _devices(host).get(uuid, "gone")
        outcomes.add(state)
        assert (state != "gone") is (device_id(kind, uuid) in whole().devices), f"cut {cut}: what is said is not so"
        assert state in {"add": ("present", "gone"), "remove": ("present", "removing")}[action], f"cut {cut}"
        if state != "gone":
            host.driver.hot_del_device("web1", uuid, timeout=0.01)
            host.driver.reboot_instance("web1", mode="reset")
        assert whole() == before, f"cut {cut}"
        if not killed:
            break
    else:
        raise AssertionError("it was killed each time")
    assert len(outcomes) == 2


def test_a_qemu_that_does_not_answer(host: Any, whole: Any) -> None:
    """Each operation ends in its time with a typed error; nothing is lost, another instance is not affected."""
    host.start(host.instance(params={"machine": "q35"}))
    host.start(host.instance("other", params={"machine": "q35"}))
    nic = Nic(uuid=NIC)
    host.driver.hot_add_device("web1", nic)
    before = whole()
    pid = host.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        for operation in (
            lambda: host.driver.hot_add_device("web1", _disk(host), timeout=3),
            lambda: host.driver.hot_mod_device("web1", attrs.evolve(nic, params={"link_up": False}), timeout=1),
            lambda: host.driver.hot_del_device("web1", NIC, timeout=1),
        ):
            with pytest.raises(hvcore.DeadlineExceeded, match="nothing was asked of it"):
                operation()
        host.driver.hot_add_device("other", attrs.evolve(nic, uuid=DISK))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert whole() == before


def test_stopped_in_the_middle(host: Any, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer to a command leaves the outcome unknown; the next who looks finds it, one way or the other."""
    host.start(host.instance(params={"machine": "q35"}))
    before = whole()
    pid = host.pid()
    execute = QmpClient.execute
    for command in ("blockdev-add", "device_add"):

        def stop(self: QmpClient, name: str, *args: Any, command: str = command, **kwargs: Any) -> Any:
            if name == command:
                os.kill(pid, signal.SIGSTOP)
                # What came before has had all the time it needed.
                kwargs["deadline"] = hvcore.Deadline.after(1)
            return execute(self, name, *args, **kwargs)

        monkeypatch.setattr(QmpClient, "execute", stop)
        try:
            with pytest.raises(hvcore.OutcomeUnknown):
                host.driver.hot_add_device("web1", _disk(host))
        finally:
            os.kill(pid, signal.SIGCONT)
        monkeypatch.undo()
        assert _devices(host) == {DISK: "adding"}
        host.driver.recover()
        if _devices(host):
            host.driver.hot_del_device("web1", DISK, timeout=0.01)
            host.driver.reboot_instance("web1", mode="reset")
        assert whole() == before


BAD = [
    (Disk(uuid=DISK, path="/nowhere/at/all", format="raw"), "device.path"),
    (Disk(uuid=DISK, path="relative", format="raw"), "device.path"),
    (Nic(uuid=NIC, mode="no-such"), "device.mode"),
    (Nic(uuid=NIC, params={"model": "nothing"}), "device.params.model"),
    (Disk(uuid=DISK, path="/dev/null", format="raw", params={"bus": "ide"}), "device.path"),
]


@pytest.mark.parametrize(("device", "path"), BAD, ids=[path + str(index) for index, (_, path) in enumerate(BAD)])
def test_bad_devices(host: Any, whole: Any, device: Any, path: str) -> None:
    """What is wrong is found before anything is done, all at once, and said of the device."""
    host.start(host.instance(params={"machine": "pc"}))
    before = whole()
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.hot_add_device("web1", device)
    assert path in [finding.path for finding in caught.value.findings]
    support = host.driver.verify_hotplug_support("web1", "add", device)
    assert not support.supported
    assert support.reasons
    assert whole() == before


def test_where_nothing_can_be_plugged(host: Any) -> None:
    """A machine without such a bus says so; and so does an instance that does not run."""
    with pytest.raises(hvcore.InstanceNotFound):
        host.driver.hotplug_supported("web1")
    host.driver.start_instance(host.instance(params={"machine": "microvm", "acpi": False}))
    found = host.driver.hotplug_supported("web1")
    assert (found.supported, "microvm" in found.reasons[0]) == (False, True)
    with pytest.raises(hvcore.NotRunning):
        host.driver.hot_add_device("web2", _disk(host))
    with pytest.raises(hvcore.InvalidParameters, match="no such device"):
        host.driver.hot_del_device("web1", DISK)


@pytest.mark.kvm
def test_under_kvm(host: Any, whole: Any) -> None:
    """The plumbing is the same under KVM."""
    host.start(host.instance(accel="kvm", params={"machine": "q35"}))
    before = whole()
    host.driver.hot_add_device("web1", _disk(host))
    host.driver.hot_add_device("web1", Nic(uuid=NIC))
    for uuid in (DISK, NIC):
        assert not host.driver.hot_del_device("web1", uuid, timeout=0.1).done
    host.driver.reboot_instance("web1", mode="reset")
    assert whole() == before


def test_an_encrypted_disk(host: Any, whole: Any) -> None:
    """Its passphrase reaches QEMU by the monitor, and stands in no file of ours."""
    secret = host.directory / "secret"
    secret.write_text("sesame\n")
    image = host.luks_image("hot.luks", "sesame")
    host.start(host.instance(params={"machine": "q35"}))
    params = {"encryption": True, "secret_file": str(secret)}
    host.driver.hot_add_device("web1", Disk(uuid=DISK, path=str(image), format="raw", params=params))
    found = whole()
    assert any(name.startswith("secret-") for name in found.objects)
    for path in (host.directory / "state").rglob("*"):
        assert not path.is_file() or b"sesame" not in path.read_bytes()
