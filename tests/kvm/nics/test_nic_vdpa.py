"""NIC mode vdpa: what is checked and planned; there is no such device here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm.nic import vdpa

pytestmark = pytest.mark.qemu


@pytest.fixture
def host(make_host: Any) -> Any:
    return make_host()


@pytest.mark.parametrize(
    ("nic", "code", "where"),
    [
        (Nic(mode="vdpa"), "missing-parameter", "nics[0].link"),
        (Nic(mode="vdpa", link="../null"), "invalid-value", "nics[0].link"),
        (Nic(mode="vdpa", link="vhost-vdpa-0,x"), "invalid-value", "nics[0].link"),
        (Nic(mode="vdpa", link="vhost-vdpa-0", params={"model": "e1000"}), "contradiction", "nics[0].params.model"),
    ],
)
def test_what_is_wrong_is_found(host: Any, nic: Nic, code: str, where: str) -> None:
    """Without looking at the host."""
    findings = host.driver.check_parameter_syntax(host.instance(nics=[nic]))
    assert [(finding.code, finding.path) for finding in findings] == [(code, where)]


def test_a_device_that_is_not_there(host: Any) -> None:
    """It is found, with what makes one."""
    nic = Nic(mode="vdpa", link="vhost-vdpa-999999")
    (finding,) = host.driver.validate_parameters(host.instance(nics=[nic]))
    assert (finding.code, finding.path) == ("no-device", "nics[0].link")
    assert "vdpa dev add" in finding.hint


def test_the_plan(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The device is given to QEMU by descriptor, with its queues."""
    (tmp_path / "vhost-vdpa-3").touch()
    monkeypatch.setattr(vdpa, "_DEVICES", str(tmp_path))
    nic = Nic(mode="vdpa", link="vhost-vdpa-3", params={"queues": 4})
    plan = host.driver.plan_start(host.instance(nics=[nic]))
    (netdev,) = (option.value for option in plan.options if option.name == "netdev")
    number = next(fd.number for fd in plan.fds if fd.name == "vhost-vdpa-3")
    assert {key: netdev[key] for key in ("type", "vhostfd", "queues")} == {
        "type": "vhost-vdpa",
        "vhostfd": str(number),
        "queues": 4,
    }


def test_what_is_no_such_device_is_refused_by_qemu(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In its own words, for a file in the place of the device: the option itself is understood."""
    (tmp_path / "vhost-vdpa-3").touch()
    monkeypatch.setattr(vdpa, "_DEVICES", str(tmp_path))
    with pytest.raises(hvcore.SpawnFailed, match="vdpa|ioctl|features|vhost"):
        host.driver.start_instance(host.instance(nics=[Nic(mode="vdpa", link="vhost-vdpa-3")]))
