"""The source of randomness and ports on virtio are plugged while the guest runs: all or none, whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import hvcore
from hvcore import LiveParameters
from hvcore_kvm.qmp import QmpClient, QmpRefused

pytestmark = pytest.mark.qemu

BASE = {"machine": "q35", "rng": False, "usb_controller": "xhci"}
PORT, CONSOLE = {"name": "org.example.0"}, {"name": "second", "console": True}
EVERYTHING: dict[str, Any] = {
    "on_panic": "pause",
    "rng": True,
    "rng_rate": 1000,
    "usb": [{"type": "tablet"}],
    "virtio_ports": [PORT, CONSOLE],
}
NOTHING = {**dict.fromkeys(EVERYTHING), "rng": False}
PLUGGED = {"rng0", "virtio-port-org.example.0", "virtio-port-second"}


def _set(host: Any, timeout: float = 30, **values: Any) -> hvcore.HotplugResult:
    return host.driver.hot_mod_device("web1", LiveParameters(values=values), timeout=timeout)


def _nothing(host: Any) -> None:
    """Take everything away again; a firmware guest lets go of nothing but by its reset."""
    _set(host, 0.01, **NOTHING)
    host.driver.reboot_instance("web1", mode="reset")


def _peripherals(host: Any) -> list[tuple[str, dict[str, Any], str]]:
    found = host.driver.get_instance_info("web1").peripherals
    return [(one.kind, dict(one.given), one.state) for one in found]


def _consistent(host: Any, whole: Any) -> None:
    """QEMU has what is written down, and nothing of anything else."""
    found = whole()
    params = found.record["params"]
    has_rng = params["rng"] is not False
    assert ("rng0" in found.devices, "rng-source0" in found.objects) == (has_rng, has_rng)
    ports = {f"virtio-port-{port['name']}" for port in params.get("virtio_ports") or ()}
    for names in (found.devices, found.chardevs, found.rest):
        assert {name for name in names if name.startswith("virtio-port-")} == ports
    assert sum(name.startswith("usb-device-") for name in found.devices) == len(params.get("usb") or ())
    assert "hotplug.json" not in found.rest


def test_everything_at_once(host: Any, whole: Any, serial: Any) -> None:
    """All of it is there, on the host as well, and listed; the next start has the very same; and it goes again."""
    host.start(host.instance(params=BASE))
    before = whole()
    wanted = host.instance(params={**BASE, **EVERYTHING})
    changes = {change.path: change.effect for change in host.driver.plan_start(wanted).changes}
    assert changes == {
        "params.on_panic": "live",
        "params.rng": "hotplug",
        "params.rng_rate": "hotplug",
        "params.usb": "hotplug",
        "params.virtio_ports": "hotplug",
    }
    assert _set(host, **EVERYTHING).done
    found = whole()
    assert set(found.devices) >= PLUGGED
    _consistent(host, whole)
    for name in ("virtio-port-org.example.0", "virtio-port-second"):
        serial(str(host.directory / "state/kvm/instances/web1" / name)).close()
    assert _peripherals(host) == [
        ("rng", {"rate": 1000}, "present"),
        ("port", PORT, "present"),
        ("port", CONSOLE, "present"),
        ("usb", {"type": "tablet"}, "present"),
    ]
    plan = host.driver.plan_start(wanted)
    assert plan.changes == ()
    cold = {option.value["id"]: option.value for option in plan.options if option.name == "device"}
    kept = json.loads((host.directory / "data/kvm/instances/web1/placement.json").read_text())
    places = kept.get("addresses") or kept["data"]["addresses"]
    assert places["driver/rng"] == f"{cold['rng0']['bus']}/0"
    assert cold["rng0"]["bus"].startswith("port")
    assert [cold[f"virtio-port-{name}"]["nr"] for name in ("org.example.0", "second")] == [8, 9]
    _nothing(host)
    assert whole() == before


def test_one_by_one(host: Any, whole: Any) -> None:
    """Entries come to a list and go from it by what they say; one that is not there is named with those that are."""
    host.start(host.instance(params=BASE))
    before = whole()

    def change(**values: Any) -> hvcore.HotplugResult:
        return host.driver.hot_mod_device("web1", LiveParameters(**values), timeout=30)

    for port in (PORT, CONSOLE):
        assert change(add={"virtio_ports": [port]}).done
    assert [given for kind, given, _ in _peripherals(host)] == [PORT, CONSOLE]
    with pytest.raises(hvcore.InvalidParameters) as caught:
        change(remove={"virtio_ports": [{"name": "third"}], "usb": [{}]})
    assert {(f.code, f.path) for f in caught.value.findings} == {
        ("no-such-device", "params.virtio_ports"),
        ("no-such-device", "params.usb"),
    }
    assert "org.example.0" in str(caught.value.findings[0].hint)
    assert change(remove={"virtio_ports": [{"name": "org.example.0"}]}).done
    assert [given for kind, given, _ in _peripherals(host)] == [CONSOLE]
    assert change(remove={"virtio_ports": [{"console": True}]}).done
    assert whole() == before


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"virtio_ports": [{"name": "../x"}]}, "invalid-value", "params.virtio_ports[0].name"),
    ({"virtio_ports": [{"name": "a,b"}]}, "invalid-value", "params.virtio_ports[0].name"),
    ({"virtio_ports": [PORT, PORT]}, "repeated-value", "params.virtio_ports[1].name"),
    ({"virtio_ports": [{"name": "org.qemu.guest_agent.0"}]}, "contradiction", "params.virtio_ports[0].name"),
    ({"virtio_ports": [{"name": f"p{n}"} for n in range(24)]}, "bus-full", "params.virtio_ports"),
    ({"virtio_ports": {"name": "x"}}, "wrong-type", "params.virtio_ports"),
    ({"virtio_ports": [{"name": "there", "console": True}]}, "not-possible", "params.virtio_ports[0].console"),
    ({"rng_source": "hwrng"}, "contradiction", "params.rng_source"),
    ({"rng": 1}, "wrong-type", "params.rng"),
]


def test_bad_values(host: Any, whole: Any) -> None:
    """Each is found before anything is touched, beside a change that would have been possible."""
    host.start(host.instance(params={**BASE, "virtio_ports": [{"name": "there"}]}))
    before = whole()
    for values, code, path in BAD:
        with pytest.raises(hvcore.InvalidParameters) as caught:
            _set(host, **values, on_panic="pause")
        assert (code, path) in [(f.code, f.path) for f in caught.value.findings]
        assert whole() == before
    for shape in ({"add": {"usb": "x"}}, {"values": {"usb": []}, "add": {"usb": [{"type": "tablet"}]}}):
        with pytest.raises(hvcore.InvalidParameters):
            host.driver.hot_mod_device("web1", LiveParameters(**shape))
    assert whole() == before


STAYS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"machine": "q35"}, {"rng": False}, "fixed"),
    ({"machine": "q35", "rng": False, "hotplug_ports": 0}, {"rng": True}, "no bus"),
    ({"machine": "q35", "guest_agent": False}, {"virtio_ports": [PORT]}, "without a virtio-serial controller"),
    ({"machine": "microvm", "acpi": False}, {"rng": False}, "fixed"),
]


@pytest.mark.parametrize(("params", "values", "why"), STAYS, ids=["q35", "no-ports", "no-controller", "microvm"])
def test_what_waits_for_the_next_start(host: Any, params: Any, values: Any, why: str) -> None:
    """What has no bus to come to or stays where it is: said by the plan, and refused before anything is touched."""
    instance = host.instance(params=params)
    if params["machine"] == "microvm":
        host.driver.start_instance(instance)
    else:
        host.start(instance)
    wanted = host.instance(params={**params, **values})
    effects = {change.path.partition("[")[0]: change.effect for change in host.driver.plan_start(wanted).changes}
    assert effects == {f"params.{name}": "start" for name in values}
    with pytest.raises(hvcore.InvalidParameters, match=why) as caught:
        _set(host, **values, on_panic="pause")
    assert [f.code for f in caught.value.findings] == ["not-possible"]
    record = json.loads((host.directory / "state/kvm/instances/web1/record.json").read_text())["instance"]
    assert record["params"] == dict(instance.params)


def test_a_guest_that_does_not_let_go(host: Any, whole: Any) -> None:
    """Everything else is changed; the removal is pending, is shown, keeps a save away, and ends with the reset."""
    host.start(host.instance(params={**BASE, "machine": "pc", "rng": True}))
    before = whole()
    result = _set(host, 0.01, rng=False, on_panic="pause")
    assert (result.device, result.done) == ("params", False)
    assert _peripherals(host)[0] == ("rng", {}, "removing")
    assert whole().record["params"]["on_panic"] == "pause"
    assert whole().devices == before.devices
    with pytest.raises(hvcore.WrongState, match="being added or removed"):
        host.driver.save_instance("web1", str(host.directory / "saved"))
    # Another source would have to be plugged, and the old one stays.
    assert not _set(host, 0.01, rng_source="urandom").done
    host.driver.reboot_instance("web1", mode="reset")
    assert _peripherals(host) == []
    assert set(before.devices) - set(whole().devices) == {"rng0"}
    assert set(before.objects) - set(whole().objects) == {"rng-source0"}
    assert _set(host, rng=True, rng_source="urandom", on_panic=None).done
    assert "/dev/urandom" in whole().files
    assert whole().devices == before.devices


REFUSED = ["set-action", "getfd", "chardev-add", "object-add", "device_add"]


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_at_every_step(host: Any, whole: Any, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its commands QEMU refuses, its words are in the error, and nothing of the whole is changed."""
    host.start(host.instance(params=BASE))
    before = whole()
    execute = QmpClient.execute
    for last in range(1, 9):
        count = 0

        def refuse(self: QmpClient, name: str, *args: Any, last: int = last, **kwargs: Any) -> Any:
            nonlocal count
            count += name == command
            if name == command and count == last:
                raise QmpRefused(name, "GenericError", "not today")
            return execute(self, name, *args, **kwargs)

        monkeypatch.setattr(QmpClient, "execute", refuse)
        if last == 1:
            with pytest.raises(hvcore.HypervisorRefused, match="not today"):
                _set(host, **EVERYTHING)
        else:
            try:
                _set(host, **EVERYTHING)
                break
            except hvcore.HypervisorRefused:
                pass
        monkeypatch.undo()
        assert whole() == before
    monkeypatch.undo()
    _consistent(host, whole)
    assert set(whole().devices) >= PLUGGED


_KILLED = """
import json, os, signal, sys
import hvcore
from hvcore_kvm.qmp import QmpClient
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
change = hvcore.LiveParameters(values=json.loads(sys.argv[2]))
execute = QmpClient.execute
driver.hot_mod_device("web1", hvcore.LiveParameters())  # what is imported late is there for all
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        count = 0
        def counted(self, *args, **kwargs):
            global count
            count += 1
            if count == int(line):
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return execute(self, *args, **kwargs)
            finally:
                count += 1
                if count == int(line):
                    os.kill(os.getpid(), signal.SIGKILL)
        QmpClient.execute = counted
        driver.hot_mod_device("web1", change, timeout=0.01)
        os._exit(0)
    print(int(os.WIFSIGNALED(os.waitpid(pid, 0)[1])), flush=True)
"""


@pytest.mark.parametrize("action", ["add", "remove"])
def test_killed_at_every_command(host: Any, whole: Any, action: str) -> None:
    """Killed before or after any command, recovery leaves what is written down, each thing there or not."""
    host.start(host.instance(params=BASE))
    before = whole()
    outcomes = set()
    everything = {**EVERYTHING, "virtio_ports": [PORT]}
    words = [json.dumps(host.settings), json.dumps(everything if action == "add" else NOTHING)]
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for cut in range(1, 200):
            if action == "remove":
                assert _set(host, **everything).done
            print(cut, file=other.stdin, flush=True)
            killed = other.stdout.readline().strip()
            assert killed in ("0", "1"), f"cut {cut}"
            host.driver.recover()
            if action == "remove":
                # What the guest was asked for stays under way.
                host.driver.reboot_instance("web1", mode="reset")
            _consistent(host, whole)
            params = whole().record["params"]
            outcomes.add((len(params.get("virtio_ports") or ()), len(params.get("usb") or ()), params["rng"]))
            if params != before.record["params"]:
                _nothing(host)
            assert whole() == before, f"cut {cut}"
            if killed == "0":
                break
        else:
            raise AssertionError("it was killed each time")
    assert {(1, 1, True), (0, 0, False)} <= outcomes


def test_stopped_in_the_middle(host: Any, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer leaves the outcome unknown; who recovers brings record and QEMU together."""
    host.start(host.instance(params=BASE))
    before = whole()
    pid, execute = host.pid(), QmpClient.execute

    def stop(self: QmpClient, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "object-add":
            os.kill(pid, signal.SIGSTOP)
            # What came before has had all the time it needed.
            kwargs["deadline"] = hvcore.Deadline.after(1)
        return execute(self, name, *args, **kwargs)

    try:
        with monkeypatch.context() as patch, pytest.raises(hvcore.OutcomeUnknown):
            patch.setattr(QmpClient, "execute", stop)
            _set(host, **EVERYTHING)
    finally:
        os.kill(pid, signal.SIGCONT)
    host.driver.recover()
    _consistent(host, whole)
    _nothing(host)
    assert whole() == before


def test_saved_with_what_was_plugged(host: Any, whole: Any) -> None:
    """The devices that came while the guest ran are where they were when it goes on from a file."""
    host.start(host.instance(params=BASE))
    assert _set(host, **EVERYTHING).done
    before = whole()
    numbers = [
        option.value.get("nr") for option in host.driver.plan_start(_running(before)).options if _is_port(option)
    ]
    path = str(host.directory / "saved")
    host.driver.save_instance("web1", path)
    host.driver.restore_instance(path)
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING
    after = whole()
    assert (after.devices, after.objects, after.chardevs) == (before.devices, before.objects, before.chardevs)
    plan = host.driver.plan_start(_running(after))
    assert plan.changes == ()
    assert [option.value.get("nr") for option in plan.options if _is_port(option)] == numbers == [8, 9]
    # What was plugged can go after that, too.
    _nothing(host)
    assert not PLUGGED & set(whole().devices)


def _running(whole: Any) -> hvcore.Instance:
    record = {key: value for key, value in whole.record.items() if value}
    return hvcore.Instance(**{key: record[key] for key in ("name", "uuid", "memory", "params", "security_model")})


def _is_port(option: Any) -> bool:
    return option.name == "device" and str(option.value.get("id")).startswith("virtio-port-")
