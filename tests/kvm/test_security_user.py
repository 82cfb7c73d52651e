"""Security model user: QEMU as the kernel sees it, and that everything else works as before; what is refused."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.guests import write_firmware
from hvcore_kvm.security.user import UserConfinement, UserParameters

PATIENCE = 30.0
UID, GID = 23456, 23457

ROOT_ONLY = "only root can run QEMU as somebody else" if os.geteuid() != 0 else ""
NO_SETPRIV = "setpriv is not installed" if shutil.which("setpriv") is None else ""
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(bool(ROOT_ONLY or NO_SETPRIV), reason=ROOT_ONLY or NO_SETPRIV),
]


@pytest.fixture(scope="session")
def readable_firmware() -> Iterator[Path]:
    """The guest's firmware where everybody can read it; pytest's own directories are private."""
    directory = Path(tempfile.mkdtemp(prefix="hvcore-"))
    directory.chmod(0o755)
    path = write_firmware(directory / "guest.rom")
    path.chmod(0o644)
    yield path
    shutil.rmtree(directory)


@pytest.fixture
def instance(host: Any, readable_firmware: Path) -> Any:
    host.firmware = readable_firmware

    def make(name: str = "web1", user: str = f"{UID}:{GID}", **changes: Any) -> hvcore.Instance:
        params = {"user": {"name": user}, **changes.pop("params", {})}
        found: hvcore.Instance = host.instance(name, security_model="user", params=params, **changes)
        return found

    return make


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_qemu_can_do_nothing_but_what_it_was_given(host: Any, instance: Any) -> None:
    """Its user and group are those asked for, all of them; it has no capability, and no way to get one."""
    host.start(instance())
    found = _status(host.pid())
    assert found["Uid"].split() == [str(UID)] * 4
    assert found["Gid"].split() == [str(GID)] * 4
    assert found["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert found["NoNewPrivs"] == "1"
    assert os.readlink(f"/proc/{host.pid()}/exe").endswith("qemu-system-x86_64")


def test_disks_consoles_and_monitors_work(host: Any, instance: Any) -> None:
    """What only root may open, QEMU has got opened: disks, sockets, the event journal; the guest answers."""
    disks = [host.raw_disk(), host.qcow2_disk()]
    for disk in disks:
        os.chmod(disk.path, 0o600)
    host.start(instance(disks=disks, consoles=["serial", "vnc", "spice"]))
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING
    for kind in ("vnc", "spice"):
        path = host.driver.get_instance_console("web1", kind=kind).socket_path
        found = os.stat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert found.st_uid == UID
    host.driver.stop_instance("web1", timeout=PATIENCE)
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.STOPPED


def test_it_cannot_touch_our_records(host: Any, instance: Any) -> None:
    """The directory of the instance and its records stay closed to the user QEMU runs as."""
    host.start(instance(consoles=["serial", "vnc"]))
    directory = host.directory / "state/kvm/instances/web1"
    assert directory.stat().st_uid == 0
    assert directory.stat().st_mode & 0o077 == 0
    for path in directory.iterdir():
        if path.is_file():
            assert path.stat().st_mode & 0o022 == 0, path.name


def test_passwords_reach_it(host: Any, instance: Any, free_port: Callable[[], int], tmp_path: Path) -> None:
    """A password file that only root can read is enough."""
    secret = tmp_path / "password"
    secret.write_text("sesame\n")
    secret.chmod(0o600)
    vnc = {"bind_address": "127.0.0.1", "port": free_port(), "password_file": str(secret)}
    host.driver.start_instance(instance(consoles=["vnc"], params={"vnc": vnc}))
    assert host.driver.get_instance_console("web1").authentication == "password"


@pytest.mark.parametrize("user", ["nobody", str(pwd.getpwnam("nobody").pw_uid)])
def test_a_user_of_the_database(host: Any, instance: Any, user: str) -> None:
    """A name stands for its user and primary group; so does a number that has a name."""
    host.driver.start_instance(instance(user=user))
    entry, found = pwd.getpwnam("nobody"), _status(host.pid())
    assert found["Uid"].split() == [str(entry.pw_uid)] * 4
    assert found["Gid"].split() == [str(entry.pw_gid)] * 4


def test_a_number_of_nobodys(host: Any, instance: Any) -> None:
    """A number without a name has a group of its own."""
    host.driver.start_instance(instance(user=str(UID)))
    found = _status(host.pid())
    assert (found["Uid"].split()[0], found["Gid"].split()[0]) == (str(UID), str(UID))


def test_the_plan_says_it(host: Any, instance: Any) -> None:
    """How QEMU is executed stands in the plan."""
    notes = host.driver.plan_start(instance()).notes
    assert any(note.startswith("QEMU is executed by: ") and f"--reuid={UID} --regid={GID}" in note for note in notes)


BAD = [
    ({}, [("missing-parameter", "params.user.name")]),
    ({"user": {"name": None}}, [("missing-parameter", "params.user.name")]),
    ({"user": {"name": "root"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "0"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "0:5"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "5:0"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "4294967295"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "-1"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "--help"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": "a b"}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": ""}}, [("invalid-value", "params.user.name")]),
    ({"user": {"name": 5}}, [("wrong-type", "params.user.name")]),
    ({"user": {"nam": "x"}}, [("unknown-parameter", "params.user.nam"), ("missing-parameter", "params.user.name")]),
    ({"user": {"name": "hvcore-nobody"}}, [("no-such-user", "params.user.name")]),
    ({"user": {"name": "nobody"}, "chroot": True}, [("contradiction", "params.chroot")]),
]


@pytest.mark.parametrize(("params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(host: Any, params: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """What is wrong is found before anything is started."""
    found = host.driver.validate_parameters(host.instance(security_model="user", params=params))
    assert [(f.code, f.path) for f in found] == expected
    assert host.files() == set()


def test_a_second_name_of_root_is_refused(host: Any, instance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called: user number 0 is not confined."""
    root = pwd.getpwuid(0)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: root)
    found = host.driver.validate_parameters(instance(user="toor"))
    assert [(f.code, f.path) for f in found] == [("not-confined", "params.user.name")]


def test_a_user_that_vanishes_never_becomes_root(host: Any) -> None:
    """Gone between check and start: QEMU is not executed at all."""
    given = hvcore.Instance(name="web1", params={"accel": "tcg"})
    plan = UserConfinement().plan(given, UserParameters(name="hvcore-nobody"))
    done = subprocess.run([*plan.launcher, "/usr/bin/id", "-u"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""


def test_only_root_can(host: Any) -> None:
    """Others are told so."""
    os.seteuid(65534)
    try:
        found = list(UserConfinement().check_host(hvcore.Instance(name="web1"), UserParameters(name="nobody")))
    finally:
        os.seteuid(0)
    assert [(f.code, f.path) for f in found] == [("needs-root", "security_model")]


KVM = os.stat("/dev/kvm") if os.path.exists("/dev/kvm") else None
KVM_CLOSED = KVM is not None and not KVM.st_mode & 0o006 and (KVM.st_gid == 0 or not KVM.st_mode & 0o060)


@pytest.mark.skipif(not KVM_CLOSED, reason="there is no /dev/kvm that only root can open")
def test_kvm_that_the_user_cannot_open(host: Any, instance: Any) -> None:
    """Found before the start, with what to do about it."""
    found = host.driver.validate_parameters(instance(accel="kvm"))
    assert [(f.code, f.path) for f in found] == [("kvm-unusable", "params.user.name")]
    assert "chgrp kvm /dev/kvm" in (found[0].hint or "")


def test_the_group_that_has_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU gets the group of /dev/kvm where that has it, never that of root, and not for emulation."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr("hvcore_kvm.unprivileged.KVM", str(device))

    def groups(accel: str) -> str:
        given = hvcore.Instance(name="web1", params={"accel": accel})
        return UserConfinement().plan(given, UserParameters(name=str(UID))).launcher[3]

    os.chown(device, 0, 106)
    device.chmod(0o660)
    assert (groups("kvm"), groups("auto"), groups("tcg")) == ("--groups=106", "--groups=106", "--clear-groups")
    device.chmod(0o600)
    assert groups("kvm") == "--clear-groups"
    os.chown(device, 0, 0)
    device.chmod(0o660)
    assert groups("kvm") == "--clear-groups"
