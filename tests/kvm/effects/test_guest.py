"""What only the guest can see: one Linux is booted, and tells all of it."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from kvm_effect import PATIENCE, Probe, disk, needs, nic, proves

import hvcore
from hvcore import Deadline
from hvcore.guests import LINUX_COMMAND_LINE, LinuxGuest
from hvcore_kvm.qmp import QmpClient

pytestmark = [pytest.mark.qemu, pytest.mark.linux]

_MIB = 1 << 20
_BASE = 0x400000
_HEADERS = 0x78


def _program(code: bytes, *texts: bytes) -> bytes:
    """A program for the guest: the smallest ELF file that holds some machine code and, behind it, its data."""
    body = code + b"\0".join((*texts, b""))
    size = _HEADERS + len(body)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 4096) + body


def _load(register: bytes, value: int) -> bytes:
    return register + struct.pack("<I", value)


_EDI, _ESI, _EDX, _R10D, _EAX = b"\xbf", b"\xbe", b"\xba", b"\x41\xba", b"\xb8"
_SYSCALL, _R8_ZERO, _EDI_FROM_EAX, _NEGATE_EDI = b"\x0f\x05", b"\x4d\x31\xc0", b"\x89\xc7", b"\xf7\xdf"
_IOPERM, _SETXATTR, _EXIT = 173, 188, 60


def _set_attribute(path: bytes) -> bytes:
    """A program that gives a file the extended attribute user.hv, and exits with the error number."""
    length = 39 + 5
    where = _BASE + _HEADERS + length
    code = _load(_EDI, where) + _load(_ESI, where + len(path) + 1) + _load(_EDX, where + len(path) + 9)
    code += _load(_R10D, 3) + _R8_ZERO + _load(_EAX, _SETXATTR) + _SYSCALL
    code += _EDI_FROM_EAX + _NEGATE_EDI + _load(_EAX, _EXIT) + _SYSCALL
    assert len(code) <= length
    return _program(code.ljust(length, b"\x90"), path, b"user.hv", b"yes")


def _let_watchdog_run_out() -> bytes:
    """A program that starts the watchdog ib700 with a timeout of no seconds."""
    code = _load(_EDI, 0x443) + _load(_ESI, 1) + _load(_EDX, 1) + _load(_EAX, _IOPERM) + _SYSCALL
    code += b"\xb0\x0f\x66\xba\x43\x04\xee"  # mov al, 15; mov dx, 0x443; out dx, al
    return _program(code + _load(_EDI, 0) + _load(_EAX, _EXIT) + _SYSCALL)


def _knows_attributes() -> bool:
    """Whether temporary files can have extended attributes."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            os.setxattr(file.name, "user.hv", b"yes")
    except OSError:
        return False
    return True


_ASKED = {
    # parameter: command, what it prints
    "params.cmdline": ("cat /proc/cmdline", f"{LINUX_COMMAND_LINE} hv.mark=a,b"),
    "params.smbios": (
        "cd /sys/class/dmi/id; cat sys_vendor product_name product_version product_serial product_sku product_family",
        "Acme, Inc.\nP=1\nV\nS\nK\nF",
    ),
    "params.smbios_oem": (
        "for text in 'first, with a comma' second=2; do grep -c \"$text\" /sys/firmware/dmi/tables/DMI; done",
        "1\n1",
    ),
    "params.fw_cfg": ("cat /sys/firmware/qemu_fw_cfg/by_name/opt/org.test/mark/raw", "a,b = c"),
    "params.boot_splash": (
        # Two bytes, in milliseconds, the lower one first.
        "echo $(od -A n -t u1 /sys/firmware/qemu_fw_cfg/by_name/etc/boot-menu-wait/raw)",
        f"{1500 % 256} {1500 // 256}",
    ),
    "params.boot_strict": ("tr '\\0' '\\n' </sys/firmware/qemu_fw_cfg/by_name/bootorder/raw | tail -n 1", "HALT"),
    "params.numa[].distances": ("cat /sys/devices/system/node/node*/distance", "10 33\n44 10"),
    "params.serial_ports": ("echo over here >/dev/ttyS1; echo", ""),
    "nics[].params.link_up": ("ip link set eth1 up; cd /sys/class/net; cat eth0/carrier eth1/carrier", "0\n1"),
    "disks[].params.serial": ("cat /sys/block/vda/serial; echo", "NUMBER-1"),
    "disks[].params.logical_block_size": ("cat /sys/block/vda/queue/logical_block_size", "4096"),
    "disks[].params.write_cache": ("cat /sys/block/vda/queue/write_cache", "write through"),
}


@pytest.mark.skipif(bool(needs("virtiofsd", "root", "numa")), reason="needs root, virtiofsd and NUMA")
@pytest.mark.skipif(not _knows_attributes(), reason="the file system has no extended attributes")
@proves(*_ASKED, "params.kernel", "params.initrd", "params.memory_min", "params.watchdog_action", "params.nic.link_up")
@proves("params.shares", "params.shares[].path", "params.shares[].cache", "params.shares[].xattr")
def test_what_the_guest_sees(
    host: Any,
    resolve: Callable[..., dict[str, Any]],
    linux: LinuxGuest,
    linux_shell: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The guest itself tells what it got."""
    for name in ("kept", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text("old")
        for program, content in (("mark", _set_attribute(b"/mnt/text")), ("bark", _let_watchdog_run_out())):
            (tmp_path / name / program).write_bytes(content)
            (tmp_path / name / program).chmod(0o755)
    given = {
        "memory": "192MiB",
        "vcpus": 2,
        "disks": [disk(0, serial="NUMBER-1", logical_block_size=4096, write_cache=False)],
        "nics": [nic(0), nic(1, link_up=True)],
        "params": {
            "nic": {"link_up": False},
            "kernel": str(linux.kernel),
            "initrd": str(linux.initrd),
            "cmdline": f"{LINUX_COMMAND_LINE} hv.mark=a,b",
            "smbios": {
                "manufacturer": "Acme, Inc.",
                "product": "P=1",
                "version": "V",
                "serial": "S",
                "sku": "K",
                "family": "F",
            },
            "smbios_oem": ["first, with a comma", "second=2"],
            "fw_cfg": {"opt/org.test/mark": "a,b = c"},
            "boot_menu": True,
            "boot_splash": "1.5s",
            "serial_ports": 1,
            "watchdog": "ib700",
            "watchdog_action": "pause",
            "memory_min": "128MiB",
            "numa": [
                {"cpus": "0", "memory": "96MiB", "distances": [10, 33]},
                {"cpus": "1", "memory": "96MiB", "distances": [44, 10]},
            ],
            "shares": [
                {"tag": "kept", "path": str(tmp_path / "kept"), "cache": "always", "xattr": True},
                {"tag": "plain", "path": str(tmp_path / "plain"), "cache": "none"},
            ],
        },
    }
    import psutil

    # The host pretends to be short of memory, so that the guest begins with less than it may have.
    short = psutil.virtual_memory()._replace(available=160 * _MIB)
    monkeypatch.setattr("hvcore_kvm.launch.psutil.virtual_memory", lambda: short)
    host.driver.start_instance(resolve(given), paused=True)
    monkeypatch.undo()
    directory = host.directory / "state" / "kvm" / "instances" / "web1"
    second = type(host.attach("web1"))(str(directory / "serial1"))
    host.consoles.append(second)
    with QmpClient.connect(str(directory / "query"), Deadline.after(PATIENCE)) as client:
        probe = Probe(client, host.pid(), directory)
        host.driver.resume_instance("web1")
        shell = linux_shell(host.consoles[0])
        assert shell.run("uname -r") == linux.version
        found = {name: shell.run(f"({command})") for name, (command, _) in _ASKED.items()}
        assert found == {name: expect for name, (_, expect) in _ASKED.items()}
        assert second.expect(b"\r\n" if b"\r\n" in second.seen else b"\n").strip() == b"over here"
        _shares(shell, tmp_path)
        _balloon(probe)
        shell.console.send(b"/mnt/bark\n")
        assert probe.event("WATCHDOG")["action"] == "pause"
        probe.event("STOP")
        assert probe.qmp("query-status")["status"] == "watchdog"


def _shares(shell: Any, directory: Path) -> None:
    """The guest keeps what it has read of one share, and sees attributes of it; not so of the other."""
    for name, again, status in (("kept", "old", "0"), ("plain", "new", "95")):
        assert shell.run(f"mount -t virtiofs {name} /mnt; cat /mnt/text; echo") == "old"
        with (directory / name / "text").open("r+") as file:
            file.write("new")
        assert shell.run("cat /mnt/text; echo") == again
        assert shell.run("/mnt/mark; echo $?") == status
        assert ("user.hv" in os.listxattr(directory / name / "text")) == (status == "0")
        if name == "kept":
            assert shell.run("umount /mnt") == ""


def _balloon(probe: Probe) -> None:
    """The balloon takes what the host lacks."""
    while probe.qmp("query-balloon")["actual"] != 160 * _MIB:
        probe.event("BALLOON_CHANGE")


@proves("params.balloon_target")
def test_what_the_balloon_leaves(host: Any, boot: Any) -> None:
    """From the start, and when it changes while the guest runs; a plan names the change, and the guest follows it."""
    shell = boot("pc", params={"balloon_target": "128MiB", "balloon_deflate_on_oom": False})
    running = hvcore.Instance(**_definition(host))
    directory = host.directory / "state" / "kvm" / "instances" / "web1"
    with QmpClient.connect(str(directory / "query"), Deadline.after(PATIENCE)) as client:
        probe = Probe(client, host.pid(), directory)
        while probe.qmp("query-balloon")["actual"] != 128 * _MIB:
            probe.event("BALLOON_CHANGE")
    asked = "sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo"
    before = int(shell.run(asked))
    wanted = attrs.evolve(running, params={**running.params, "balloon_target": "160MiB"})
    assert [(c.path, c.effect) for c in host.driver.plan_start(wanted).changes] == [("params.balloon_target", "live")]
    done = host.driver.hot_mod_device("web1", hvcore.LiveParameters(values={"balloon_target": "160MiB"}), timeout=120)
    assert (done.done, done.detail) == (True, "the guest has 160MiB of memory")
    assert int(shell.run(asked)) == before + 32 * 1024
    assert host.driver.plan_start(wanted).changes == ()
    host.driver.pause_instance("web1")
    done = host.driver.hot_mod_device("web1", hvcore.LiveParameters(values={"balloon_target": None}), timeout=0.5)
    assert (done.done, "asked for 192MiB" in done.detail) == (False, True)
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.hot_mod_device("web1", hvcore.LiveParameters(values={"balloon_target": "256MiB"}))
    assert [finding.path for finding in caught.value.findings] == ["params.balloon_target"]


def _definition(host: Any) -> dict[str, Any]:
    """What the instance runs with."""
    path = host.directory / "state" / "kvm" / "instances" / "web1" / "record.json"
    record = json.loads(path.read_text())["instance"]
    return {key: record[key] for key in ("name", "uuid", "memory", "params", "security_model") if record[key]}
