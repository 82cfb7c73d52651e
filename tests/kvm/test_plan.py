"""A plan is what a start runs, and planning touches nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hvcore

pytestmark = pytest.mark.qemu


def test_a_start_runs_what_was_planned(host: Any) -> None:
    """The argument list and environment of the process are those of the plan, and every descriptor is there."""
    instance = host.instance(disks=[host.raw_disk(), host.qcow2_disk()], nics=[hvcore.Nic()], vcpus=2)
    plan = host.driver.plan_start(instance)
    assert host.driver.plan_start(instance) == plan
    host.driver.start_instance(instance)
    pid = host.pid()
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    assert tuple(word.decode() for word in argv) == plan.argv
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1]
    assert sorted(environment) == [f"{name}={value}".encode() for name, value in plan.environment]
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    # QEMU keeps duplicates of what -add-fd names under numbers of its own.
    targets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert {disk.path for disk in instance.disks} <= targets
    numbers = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert {fd.number for fd in plan.fds if "socket" in fd.purpose} <= numbers


def test_no_descriptor_of_ours_leaks_into_qemu(host: Any, tmp_path: Path) -> None:
    """A descriptor that the host application left inheritable does not reach QEMU."""
    import os

    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    try:
        host.driver.start_instance(host.instance())
        targets = {str(fd.readlink()) for fd in Path(f"/proc/{host.pid()}/fd").iterdir()}
    finally:
        os.close(secret)
    assert str(tmp_path / "secret") not in targets


def test_every_option_says_where_it_comes_from(host: Any) -> None:
    """Each option of a plan names a part of the definition, or the driver."""
    instance = host.instance(disks=[host.raw_disk()], nics=[hvcore.Nic()])
    origins = {option.origin for option in host.driver.plan_start(instance).options}
    assert {"name", "memory", "vcpus", "params.machine", "params.accel", "disks[0]", "nics[0]", "driver"} <= origins


def test_aliases_are_resolved_to_versioned_machines(host: Any) -> None:
    """Pc and q35 mean a versioned machine type, which is said and recorded."""
    for alias, begin in (("pc", "pc-i440fx-"), ("q35", "pc-q35-")):
        plan = host.driver.plan_start(host.instance(params={"machine": alias}))
        words = next(o.words for o in plan.options if o.words[0] == "-machine")
        assert words[1].startswith(begin)
        assert any(f"{alias} is {begin}" in note for note in plan.notes)


_WATCH = """
import json, os, sys
import hvcore
settings, path = json.loads(sys.argv[1]), sys.argv[2]
with hvcore.load_driver("kvm", settings) as driver:
    definition = json.loads(open(path).read())
    driver.plan_start(definition)  # everything is imported, the program has been asked
    seen = []
    def watch(event, args):
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                seen.append([event, str(args[0])])
        elif event.startswith(("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.fork",
                               "os.posix_spawn", "os.exec", "os.system", "os.chmod", "os.chown", "os.truncate",
                               "os.utime", "subprocess.", "socket.", "shutil.")):
            seen.append([event, str(args)])
    sys.addaudithook(watch)
    plan = driver.plan_start(definition)
    print(json.dumps({"argv": plan.argv, "seen": seen}))
"""


def test_planning_touches_nothing(host: Any) -> None:
    """Planning creates, writes, starts and connects to nothing, as seen by the interpreter's audit hook."""
    disk = host.raw_disk()
    definition = {
        "name": "web1",
        "params": {"accel": "tcg", "firmware_image": str(host.firmware)},
        "disks": [{"path": disk.path, "format": "raw"}],
        "nics": [{"mode": "user"}],
    }
    path = host.directory / "web1.json"
    path.write_text(json.dumps(definition))
    before = host.files(), Path(disk.path).stat()
    command = [sys.executable, "-c", _WATCH, json.dumps(host.settings), str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert found["seen"] == []
    assert tuple(found["argv"]) == host.driver.plan_start(definition).argv
    after = host.files(), Path(disk.path).stat()
    assert after[0] == before[0]
    assert after[1].st_mtime_ns == before[1].st_mtime_ns
