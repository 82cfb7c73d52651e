"""Bad input and bad hosts: found before QEMU is started, all at once, with nothing left."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Disk, Nic
from hvcore_kvm import launch
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

QEMU = "/usr/bin/qemu-system-x86_64"


def _findings(host: Any, definition: Any) -> list[tuple[str, str]]:
    """What is wrong, as code and path; and the proof that a start finds the same and touches nothing."""
    before = host.files()
    found = host.driver.validate_parameters(definition)
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.start_instance(definition)
    assert list(caught.value.findings) == list(found.errors)
    assert host.files() == before
    return [(finding.code, finding.path) for finding in found]


def test_everything_wrong_with_a_definition_at_once(host: Any) -> None:
    """Unknown, misspelt, mistyped and contradictory parameters are all reported, with the nearest name."""
    definition = {
        "name": "web1",
        "memory": "lots",
        "vcpu": 2,
        "params": {"machin": "pc", "accel": "xen", "acpi": "yes", "initrd": "/boot/initrd"},
        "disks": [{"path": "relative", "format": "vmdk", "params": {"aio": "native"}}, {"pth": "/x"}],
        "nics": [{"mode": "usr"}, {"link": "br0", "params": {"forward": [{"host_port": 0}], "modell": "e1000"}}],
        "consoles": ["serial", "serail"],
        "security_model": "nome",
    }
    found = _findings(host, definition)
    assert set(found) == {
        ("invalid-value", "memory"),
        ("unknown-parameter", "vcpu"),
        ("unknown-parameter", "params.machin"),
        ("not-a-choice", "params.accel"),
        ("wrong-type", "params.acpi"),
        ("needs-kernel", "params.initrd"),
        ("invalid-value", "disks[0].path"),
        ("not-a-choice", "disks[0].format"),
        ("contradiction", "disks[0].params.aio"),
        ("unknown-parameter", "disks[1].pth"),
        ("missing-parameter", "disks[1].path"),
        ("missing-parameter", "disks[1].format"),
        ("unknown-plugin", "nics[0].mode"),
        ("invalid-value", "nics[1].params.forward[0].host_port"),
        ("missing-parameter", "nics[1].params.forward[0].guest_port"),
        ("unknown-parameter", "nics[1].params.modell"),
        ("unknown-plugin", "consoles[1]"),
        ("unknown-plugin", "security_model"),
    }
    hints = {f.path: f.hint for f in host.driver.check_parameter_syntax(definition)}
    assert hints["vcpu"] == "did you mean vcpus?"
    assert hints["params.machin"] == "did you mean machine?"
    assert hints["nics[0].mode"] == "did you mean user?"


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../web1", "a/b", "/etc", "-web1", "web1-", "a..b", "a b", "a\nb", "a\0b", "a,b", "é", "x" * 64],
)
def test_instance_names_have_a_grammar(host: Any, name: str) -> None:
    """Traversal, control characters, separators and over-long names are refused by every operation."""
    assert ("invalid-value", "name") in _findings(host, {"name": name})
    for operation in (host.driver.stop_instance, host.driver.get_instance_info, host.driver.cleanup_instance):
        with pytest.raises(hvcore.InvalidParameters):
            operation(name)


def test_the_longest_name_works(host: Any) -> None:
    """A name of 63 characters starts, though its sockets' paths are longer than a socket address."""
    name = "a" * 63
    console = host.start(host.instance(name))
    console.send(b"e")
    console.expect(b"ok")


def test_disks_are_looked_at_first(host: Any) -> None:
    """Missing, a directory, declared as another format, damaged: each is found, all at once."""
    raw, qcow2 = host.raw_disk(), host.qcow2_disk()
    short = host.directory / "short.qcow2"
    short.write_bytes(b"QFI\xfb\0\0\0\3")
    definition = host.instance(
        disks=[
            Disk(path=str(host.directory / "nothing"), format="raw"),
            Disk(path=str(host.directory), format="raw"),
            Disk(path=raw.path, format="qcow2"),
            Disk(path=qcow2.path, format="raw"),
            Disk(path=str(short), format="qcow2"),
            Disk(path="/dev/null", format="raw"),
        ]
    )
    assert _findings(host, definition) == [
        ("disk-missing", "disks[0].path"),
        ("disk-not-a-file", "disks[1].path"),
        ("disk-format", "disks[2].format"),
        ("disk-format", "disks[3].format"),
        ("disk-format", "disks[4].format"),
        ("disk-not-a-file", "disks[5].path"),
    ]


def test_a_raw_disk_may_keep_what_its_guest_wrote(host: Any) -> None:
    """A raw disk that begins like qcow2 runs as raw when its owner says so: QEMU is told the format."""
    disk = host.qcow2_disk()
    console = host.start(host.instance(disks=[Disk(path=disk.path, format="raw", params={"any_header": True})]))
    console.send(b"e")
    console.expect(b"ok")


def test_a_qcow2_that_names_another_file_is_refused(host: Any) -> None:
    """A backing file in a header would be opened unchecked, so the image is refused."""
    base = host.raw_disk("base.raw")
    overlay = host.qcow2_disk("overlay.qcow2", "-b", base.path, "-F", "raw")
    assert _findings(host, host.instance(disks=[overlay])) == [("disk-backing", "disks[0].path")]
    external = host.qcow2_disk("external.qcow2", "-o", f"data_file={host.directory}/data.raw,data_file_raw=on")
    assert _findings(host, host.instance(disks=[external])) == [("disk-backing", "disks[0].path")]


def test_a_disk_in_use_by_another_instance(host: Any) -> None:
    """A disk that another instance writes is refused; two readers may share one."""
    disk = host.raw_disk()
    reader = Disk(path=disk.path, format="raw", read_only=True)
    host.driver.start_instance(host.instance("writer", disks=[disk]))
    assert _findings(host, host.instance(disks=[disk])) == [("disk-in-use", "disks[0].path")]
    assert _findings(host, host.instance(disks=[reader])) == [("disk-in-use", "disks[0].path")]
    assert host.driver.validate_parameters(host.instance("writer", disks=[disk])).ok
    host.driver.stop_instance("writer", force=True)
    host.driver.start_instance(host.instance("reader", disks=[reader]))
    assert _findings(host, host.instance(disks=[disk])) == [("disk-in-use", "disks[0].path")]
    host.driver.start_instance(host.instance(disks=[reader]))


def test_a_disk_in_use_by_a_qemu_of_somebody_else(make_host: Any, tmp_path: Path) -> None:
    """A QEMU that this driver has no account of is found by its locks on the image."""
    other = make_host(state_directory=str(tmp_path / "elsewhere"), data_directory=str(tmp_path / "elsewhere-data"))
    disk = other.raw_disk()
    reader = Disk(path=disk.path, format="raw", read_only=True)
    other.driver.start_instance(other.instance("writer", disks=[disk]))
    host = make_host()
    assert _findings(host, host.instance(disks=[disk])) == [("disk-in-use", "disks[0].path")]
    assert _findings(host, host.instance(disks=[reader])) == [("disk-in-use", "disks[0].path")]
    other.driver.stop_instance("writer", force=True)
    other.driver.start_instance(other.instance("reader", disks=[reader]))
    assert _findings(host, host.instance(disks=[disk])) == [("disk-in-use", "disks[0].path")]
    assert host.driver.validate_parameters(host.instance(disks=[reader])).ok


def test_one_disk_twice_under_two_names(host: Any) -> None:
    """The same image by two paths is found."""
    disk = host.raw_disk()
    link = host.directory / "link.raw"
    link.symlink_to(disk.path)
    definition = host.instance(disks=[disk, Disk(path=str(link), format="raw")])
    assert _findings(host, definition) == [("repeated-value", "disks[1].path")]


def test_a_missing_qemu(make_host: Any) -> None:
    """Where QEMU is not installed the error names the package."""
    host = make_host(qemu="/nowhere/qemu-system-x86_64")
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.start_instance(host.instance())
    assert caught.value.findings.codes == ("qemu-missing",)
    assert "qemu-system-x86" in str(caught.value)
    assert host.driver.verify().codes == ("qemu-missing",)


def _fake_qemu(directory: Path, script: str) -> str:
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_qemu_that_is_too_old(make_host: Any, tmp_path: Path) -> None:
    """An old QEMU is refused with its version and the oldest that will do."""
    greeting = {"QMP": {"version": {"qemu": {"major": 6, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}
    script = f"echo '{json.dumps(greeting)}' >&3; echo '{{\"return\": {{}}, \"id\": 0}}' >&3; exec sleep 60"
    host = make_host(qemu=_fake_qemu(tmp_path, script))
    with pytest.raises(hvcore.InvalidParameters, match=r"6\.2\.0.*7\.2\.0"):
        host.driver.start_instance(host.instance())


def test_a_program_that_is_no_qemu(make_host: Any, tmp_path: Path) -> None:
    """What does not answer as a QEMU is refused with what it said."""
    host = make_host(qemu=_fake_qemu(tmp_path, "echo this is not qemu >&2; exit 3"))
    with pytest.raises(hvcore.InvalidParameters, match="this is not qemu"):
        host.driver.start_instance(host.instance())


def test_a_qemu_that_cannot_be_executed(make_host: Any, tmp_path: Path) -> None:
    """A program without the execute bit is told from one that is missing."""
    path = Path(_fake_qemu(tmp_path, ""))
    path.chmod(stat.S_IRUSR)
    host = make_host(qemu=str(path))
    assert host.driver.validate_parameters(host.instance()).codes == ("qemu-not-executable",)


def test_qemu_dying_at_start(host: Any, tmp_path: Path) -> None:
    """When QEMU ends at start the error carries its own words, and nothing is left."""
    bad = tmp_path / "bad.rom"
    bad.write_bytes(b"x" * 1000)
    with pytest.raises(hvcore.SpawnFailed) as caught:
        host.driver.start_instance(host.instance(params={"firmware_image": str(bad)}))
    assert re.search(r"could not load PC BIOS", str(caught.value))
    assert caught.value.exit_status == 1
    assert caught.value.hint is not None
    assert host.files() == set()
    with pytest.raises(hvcore.InstanceNotFound):
        host.driver.get_instance_info("web1")


def test_qemu_aborting_at_start(make_host: Any, tmp_path: Path) -> None:
    """A QEMU that is ended by a signal at start is reported with its words, the signal, and what to try."""
    words = "error: failed to set MSR 0x10a to 0x69"
    script = f'case "$*" in *"-machine none"*) exec {QEMU} "$@";; *) echo "{words}" >&2; kill -ABRT $$;; esac'
    host = make_host(qemu=_fake_qemu(tmp_path, script))
    with pytest.raises(hvcore.SpawnFailed, match=words) as caught:
        host.driver.start_instance(host.instance(security_model="none"))
    assert caught.value.exit_status == -6
    assert "arch-capabilities" in str(caught.value.hint)
    assert host.files() == set()


def test_a_qemu_that_hangs_at_start(make_host: Any, tmp_path: Path) -> None:
    """A QEMU that never greets is ended when the time is over, and nothing is left."""
    # The probe of its capabilities is answered by the real program, the start by nobody.
    script = f'case "$*" in *"-machine none"*) exec {QEMU} "$@";; *) exec sleep 600;; esac'
    host = make_host(qemu=_fake_qemu(tmp_path, script), start_timeout=0.3)
    with pytest.raises(hvcore.DeadlineExceeded):
        host.driver.start_instance(host.instance(security_model="none"))
    assert host.files() == set()


def test_a_start_without_time_starts_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU may be quicker than the clock is read: what decides is the time, not who is faster."""
    host.driver.plan_start(host.instance())
    monkeypatch.setattr(launch.process, "spawn", lambda *_: pytest.fail("QEMU was started"))
    with pytest.raises(hvcore.DeadlineExceeded, match="no time left"):
        host.driver.start_instance(host.instance(), timeout=0.0)
    assert host.files() == set()


def test_the_time_may_be_over_just_before_the_guest_runs(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest whose time is over when QEMU is ready never runs, and nothing of it is left."""
    negotiate = QmpClient.negotiate
    commands = []

    def slowly(self: QmpClient, deadline: hvcore.Deadline) -> None:
        negotiate(self, hvcore.Deadline.after(60))
        while not deadline.expired:
            time.sleep(min(0.05, deadline.remaining()))

    def noted(self: QmpClient, command: str, *args: Any, **kwargs: Any) -> Any:
        commands.append(command)
        return execute(self, command, *args, **kwargs)

    # What QEMU can do is asked before, without the delay.
    host.driver.plan_start(host.instance())
    execute = QmpClient.execute
    monkeypatch.setattr(QmpClient, "negotiate", slowly)
    monkeypatch.setattr(QmpClient, "execute", noted)
    with pytest.raises(hvcore.DeadlineExceeded, match="no time left"):
        host.driver.start_instance(host.instance(), timeout=2.0)
    assert "cont" not in commands
    assert host.files() == set()


def test_a_port_that_is_taken(host: Any, free_port: Callable[[], int]) -> None:
    """A forwarded port somebody else has ends the start with QEMU's words."""
    forward = {"forward": [{"host_port": free_port(), "guest_port": 22}]}
    host.driver.start_instance(host.instance("first", nics=[Nic(params=forward)]))
    with pytest.raises(hvcore.SpawnFailed, match="forwarding rule"):
        host.driver.start_instance(host.instance("second", nics=[Nic(params=forward)]))
    assert [row.name for row in host.driver.list_instances().instances] == ["first"]


@pytest.mark.parametrize("kind", ["state", "data"])
def test_a_directory_that_cannot_be_written(make_host: Any, tmp_path: Path, kind: str) -> None:
    """A state or data directory that cannot be made is said with its path, and no process is left."""
    (tmp_path / "file").write_text("")
    host = make_host(**{f"{kind}_directory": str(tmp_path / "file" / "below")})
    with pytest.raises(hvcore.HostError, match=re.escape(str(tmp_path / "file"))):
        host.driver.start_instance(host.instance())
    assert any(str(tmp_path / "file") in finding.path for finding in host.driver.verify())


def test_a_directory_of_somebody_else(make_host: Any, tmp_path: Path) -> None:
    """A state directory that another user owns is not used: its owner could redirect a start."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    (tmp_path / "state" / "kvm").mkdir(parents=True)
    os.chown(tmp_path / "state" / "kvm", 65534, 65534)
    host = make_host()
    assert "directory-not-safe" in host.driver.verify().codes


def test_unknown_machine_and_cpu(host: Any) -> None:
    """Names QEMU does not know are found before it is started, with what it has."""
    definition = host.instance(params={"machine": "pc-i440fx-99.0", "cpu_model": "z80"}, vcpus=4000)
    assert _findings(host, definition) == [
        ("unknown-machine", "params.machine"),
        ("unknown-cpu-model", "params.cpu_model"),
    ]
    assert _findings(host, host.instance(vcpus=4000)) == [("too-many-vcpus", "vcpus")]
    assert _findings(host, host.instance(params={"cpu_model": "host"})) == [("contradiction", "params.cpu_model")]


def test_more_devices_than_slots(host: Any) -> None:
    """A bus that is full is a finding, not a crash."""
    assert _findings(host, host.instance(nics=[Nic() for _ in range(40)])) == [("bus-full", "params.machine")]


def test_commas_and_quotes_reach_qemu_as_they_are(host: Any) -> None:
    """No value can add an option: a path and a command line with commas and quotes come back from QEMU unchanged."""
    firmware = host.directory / 'fw,readonly=on,"x".rom'
    firmware.write_bytes(host.firmware.read_bytes())
    disk = host.raw_disk('a,b="c",json:{}.raw')
    console = host.start(host.instance(params={"firmware_image": str(firmware)}, disks=[disk], vcpus=2))
    console.send(b"e")
    console.expect(b"ok")
    assert host.driver.verify_instance("web1").codes == ()
