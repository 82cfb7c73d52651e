"""What is legal and unwise is said, and is no error."""

from __future__ import annotations

import os
from typing import Any

import attrs
import pytest

from hvcore import FindingSet, Nic, Severity

pytestmark = pytest.mark.qemu

_AS_ROOT = [("runs-as-root", "security_model")] if os.geteuid() == 0 else []


def _advice(host: Any, *, params: dict[str, Any] | None = None, **changes: Any) -> list[tuple[str, str]]:
    findings = host.driver.assess_parameters(host.instance(accel="auto", params=params or {}, **changes))
    assert all(finding.severity is not Severity.ERROR for finding in findings)
    return [(finding.code, finding.path) for finding in findings if finding.code != "runs-as-root"]


def test_a_plain_instance_gets_none(host: Any) -> None:
    """But for running as root, if it does and is told to."""
    plain = {"accel": "auto", "params": {"accel": "auto"}}
    assert host.driver.assess_parameters(host.instance(**plain)) == FindingSet()
    found = host.driver.assess_parameters(host.instance(security_model="none", **plain))
    assert [(finding.code, finding.path) for finding in found] == _AS_ROOT


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"accel": "tcg"}, ("slow", "params.accel")),
        ({"cpu_model": "qemu64"}, ("weak-cpu-model", "params.cpu_model")),
        ({"cpu_model": "host"}, ("not-portable", "params.cpu_model")),
        ({"extra_args": "-d guest_errors"}, ("extra-args", "params.extra_args")),
        ({"sound": "hda"}, ("no-use", "params.sound")),
    ],
)
def test_advice_on_the_instance(host: Any, params: dict[str, Any], expected: tuple[str, str]) -> None:
    """Slow, weak, unportable, unknown, useless."""
    assert _advice(host, params={"accel": "auto", **params}) == [expected]


def test_advice_on_disks_and_nics(host: Any) -> None:
    """Emulated devices are slow; an unsafe cache loses writes; queues beyond the CPUs are of no use."""
    disk = attrs.evolve(host.raw_disk(), params={"bus": "sata", "cache": "unsafe"})
    found = _advice(host, disks=[disk], nics=[Nic(params={"model": "e1000"})], params={"accel": "auto"})
    assert found == [
        ("unsafe", "disks[0].params.cache"),
        ("slow", "disks[0].params.bus"),
        ("slow", "nics[0].params.model"),
    ]


@pytest.mark.parametrize(
    ("address", "open_to_all"), [("127.0.0.1", False), ("::1", False), ("lo", False), ("0.0.0.0", True)]
)
@pytest.mark.parametrize("kind", ["vnc", "spice"])
def test_advice_on_consoles(host: Any, kind: str, address: str, open_to_all: bool) -> None:
    """A console that leaves the host open to all is warned of; every loopback is the same."""
    params = {"accel": "auto", kind: {"bind_address": address, "port": 5901}}
    found = _advice(host, consoles=[kind], params=params)
    expected = [("unencrypted", f"params.{kind}.tls"), ("unprotected", f"params.{kind}.password_file")]
    assert found == (expected if open_to_all else [])


def test_advice_on_a_long_vnc_password(host: Any) -> None:
    """The protocol cuts it, and what it is is not said."""
    path = host.directory / "password"
    path.write_text("much-too-long\n")
    params = {"accel": "auto", "vnc": {"bind_address": "127.0.0.1", "port": 5901, "password_file": str(path)}}
    assert _advice(host, consoles=["vnc"], params=params) == [("ineffective", "params.vnc.password_file")]
    words = str(host.driver.assess_parameters(host.instance(consoles=["vnc"], params=params)))
    assert "much" not in words
