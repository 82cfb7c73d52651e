"""Every built-in NIC mode, security model and console type keeps the sentences about its family.

Those of openvswitch and vhost-user, which need a switch, are beside the other tests of the mode.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.conformance.contract import requirements

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

_ROOT = os.geteuid() == 0
needs_taps = pytest.mark.skipif(not _ROOT or not os.path.exists("/dev/net/tun"), reason="only root makes taps")
needs_root = pytest.mark.skipif(not _ROOT, reason="only root runs QEMU as somebody else")


@pytest.fixture
def link() -> Iterator[Callable[..., str]]:
    """Makes network interfaces of the test's own."""
    made = []

    def make(*words: str) -> str:
        name = f"hvt{uuid.uuid4().hex[:8]}"
        subprocess.run(["ip", "link", "add", name, "type", *words], check=True)
        made.append(name)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        return name

    yield make
    for name in made:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_a_verdict_by_the_command(conformance: Any) -> None:
    """One command says that a plugin keeps every sentence that binds its record, and leaves nothing."""
    verdict, said = conformance.run("nic-mode", "user", "restrict=true")
    assert verdict["verdict"] == "conformant", said
    assert verdict["plugin"] == "NIC mode user"
    assert said.startswith("NIC mode user of driver kvm")
    wanted = {requirement.id: "passed" for requirement in requirements() if requirement.binds("NicMode")}
    assert {row["id"]: row["status"] for row in verdict["requirements"]} == wanted


def test_what_the_host_lacks_is_the_reason(conformance: Any) -> None:
    """Where there is no such device the verdict is partial and says so; what needs no instance is checked."""
    verdict, said = conformance.run("nic-mode", "vdpa", "link=vhost-vdpa-9999")
    assert verdict["verdict"] == "partial"
    assert verdict["counts"]["failed"] == 0
    assert "there is no /dev/vhost-vdpa-9999" in said
    rows = {row["id"]: row["status"] for row in verdict["requirements"]}
    assert {rows[name] for name in ("FA-01", "FA-02", "FA-03", "FA-04", "FA-05")} == {"passed"}
    assert {rows[name] for name in ("FA-06", "FA-07", "FA-08", "FA-09", "FA-10", "FA-11", "FA-12")} == {"not-run"}


def test_a_name_that_nobody_offers(conformance: Any) -> None:
    """The verdict is failed, and names those there are."""
    verdict, said = conformance.run("nic-mode", "nope")
    assert verdict["verdict"] == "failed"
    assert "there is no NIC mode 'nope'" in said
    assert "bridged" in said


def test_options_that_are_missing_or_wrong(conformance: Any) -> None:
    """What a plugin cannot be tested without is told with its path; so is what is no option."""
    with pytest.raises(hvcore.InvalidParameters, match="give them with --option KEY=VALUE") as caught:
        conformance.passes("nic-mode", "bridged")
    assert [finding.path for finding in caught.value.findings] == ["nics[0].link"]
    for wrong in ({"cuts": "0"}, {"cuts": "many"}, {"accel": "xen"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            conformance.passes("nic-mode", "user", **wrong)


@pytest.mark.parametrize("name", ["serial", "virtconsole", "pty", "vnc", "spice", "dbus"])
def test_console_types(name: str, conformance: Any) -> None:
    """Those that are shipped; clients of dbus have to be QEMU's own user."""
    conformance.passes("console-type", name, **({"security_model": "none"} if name == "dbus" else {}))


@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
def test_nic_mode_passt(conformance: Any) -> None:
    """Its companion ends with the instance."""
    conformance.passes("nic-mode", "passt")


@needs_taps
def test_nic_mode_bridged(conformance: Any, link: Callable[..., str]) -> None:
    """On a bridge of the test's own."""
    conformance.passes("nic-mode", "bridged", link=link("bridge"))


@needs_taps
def test_nic_mode_routed(conformance: Any) -> None:
    """By a route to an address for benchmarks, one of many."""
    conformance.passes("nic-mode", "routed", ip=f"198.18.{os.urandom(1)[0]}.{1 + os.urandom(1)[0] % 250}")


@needs_taps
def test_nic_mode_macvtap(conformance: Any, link: Callable[..., str]) -> None:
    """On one end of a cable."""
    conformance.passes("nic-mode", "macvtap", link=link("veth"))


@needs_taps
def test_nic_mode_script(conformance: Any, tmp_path: Path) -> None:
    """With a script that brings the tap up."""
    script = tmp_path / "script"
    script.write_text('#!/bin/sh\n[ "$ACTION" = down ] || ip link set "$1" up\n')
    script.chmod(0o700)
    conformance.passes("nic-mode", "script", script=str(script))


def test_security_model_none(conformance: Any) -> None:
    """No confinement is a model too."""
    conformance.passes("security-model", "none")


@needs_root
@pytest.mark.parametrize("name", ["pool", "confined"])
def test_security_models_with_leases(name: str, conformance: Any, tmp_path: Path) -> None:
    """With ids of the test's own."""
    first = 420_000 + 10 * (os.getpid() % 1000)
    conformance.passes("security-model", name, uids=f"{first}-{first + 5}", directory=str(tmp_path / "leases"))


@needs_root
def test_security_model_user(conformance: Any) -> None:
    """As a user that is not in the database."""
    conformance.passes("security-model", "user", name="23456:23457")
