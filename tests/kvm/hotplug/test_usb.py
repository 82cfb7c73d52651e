"""USB devices of the instance's list are plugged and pulled out while the guest runs."""

from __future__ import annotations

import os
from typing import Any

import pytest

import hvcore
from hvcore import Deadline, LiveParameters
from hvcore_kvm.qmp import QmpClient, QmpRefused

pytestmark = pytest.mark.qemu

MODELS = ["none", "confined"] if os.geteuid() == 0 else ["none"]
TABLET = {"type": "tablet"}


def _usb(host: Any, devices: Any) -> hvcore.HotplugResult:
    return host.driver.hot_mod_device("web1", LiveParameters(values={"usb": devices}))


def _products(host: Any) -> list[str]:
    """What is plugged in, as QEMU's own hub sees it."""
    path = str(host.directory / "state/kvm/instances/web1/query")
    with QmpClient.connect(path, Deadline.after(30)) as client:
        arguments = {"command-line": "info usb"}
        text = client.execute("human-monitor-command", arguments, deadline=Deadline.after(30))
    return sorted(line.partition("Product ")[2].partition(",")[0].strip() for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("model", MODELS)
def test_sticks_and_tablets_come_and_go(host: Any, whole: Any, model: str) -> None:
    """Each is on the bus with its image open, keeps its id when others go, and leaves nothing behind."""
    params = {"machine": "q35", "usb_controller": "xhci"}
    host.start(host.instance(params=params, security_model=model))
    before = whole()
    stick = {"type": "storage", "path": host.raw_disk("stick.raw").path}
    assert _usb(host, [TABLET, stick, TABLET]).done
    assert _products(host) == ["QEMU USB MSD", "QEMU USB Tablet", "QEMU USB Tablet"]
    full = whole()
    assert stick["path"] in full.files
    wanted = host.instance(params={**params, "usb": [stick]}, security_model=model)
    assert {(c.path, c.effect) for c in host.driver.plan_start(wanted).changes} == {("params.usb", "hotplug")}
    assert _usb(host, [stick]).done
    assert _products(host) == ["QEMU USB MSD"]
    (left,) = set(whole().devices) - set(before.devices)
    assert left in full.devices
    assert host.driver.plan_start(wanted).changes == ()
    assert left in str(host.driver.plan_start(wanted).argv), "the next start has the very same device"
    assert _usb(host, None).done
    assert _products(host) == []
    assert whole() == before


def test_what_cannot_be_plugged(host: Any, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing image, a socket that has to be there from the start, a refusal of QEMU: everything is as before."""
    host.start(host.instance(params={"machine": "q35", "usb": [TABLET]}))
    before = whole()
    stick = {"type": "storage", "path": host.raw_disk("stick.raw").path}
    for devices, code, path in (
        ([TABLET, {"type": "storage", "path": "/nowhere"}], "disk-missing", "params.usb[1].path"),
        ([TABLET, {"type": "redir"}], "not-possible", "params.usb[1]"),
        ([{"type": "toaster"}], "not-a-choice", "params.usb[0].type"),
    ):
        with pytest.raises(hvcore.InvalidParameters) as caught:
            _usb(host, devices)
        assert [(f.code, f.path) for f in caught.value.findings] == [(code, path)]
        assert whole() == before
    execute = QmpClient.execute

    def refuse(self: QmpClient, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "device_add" and args[0]["driver"] == "usb-kbd":
            raise QmpRefused(name, "GenericError", "not today")
        return execute(self, name, *args, **kwargs)

    monkeypatch.setattr(QmpClient, "execute", refuse)
    with pytest.raises(hvcore.HypervisorRefused, match="not today"):
        _usb(host, [stick, {"type": "keyboard"}])
    monkeypatch.undo()
    assert whole() == before


def test_without_a_controller(host: Any, whole: Any) -> None:
    """There is nothing to plug it to, which is said before anything is touched."""
    host.start(host.instance())
    before = whole()
    with pytest.raises(hvcore.InvalidParameters, match="without a USB controller"):
        _usb(host, [TABLET])
    assert whole() == before
