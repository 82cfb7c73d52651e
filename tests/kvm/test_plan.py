"""A plan is what a start runs, and planning touches nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
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
    assert {disk.path for disk in instance.disks} <= set(host.open_files())
    numbers = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert {fd.number for fd in plan.fds if "socket" in fd.purpose} <= numbers


def test_no_descriptor_of_ours_leaks_into_qemu(host: Any, tmp_path: Path) -> None:
    """A descriptor that the host application left inheritable does not reach QEMU."""
    import os

    secret = os.open(tmp_path / "secret", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(secret, True)
    try:
        host.driver.start_instance(host.instance())
        targets = host.open_files()
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


def _everything(host: Any) -> dict[str, Any]:
    """A definition whose start does much on the host."""
    secret = host.directory / "secret"
    secret.write_text("sesame\n")
    image = host.raw_disk("cd.raw")
    encrypted = host.luks_image("crypt.luks", "sesame")
    return {
        "name": "web1",
        "memory": "64MiB",
        "params": {
            "accel": "tcg",
            "machine": "q35",
            "cdroms": [{"path": image.path}],
            "memory_min": "32MiB",
            "cpu_pin": "0",
            "iothreads": 1,
            **({"firmware": "uefi"} if Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists() else {}),
            **({"tpm": "crb"} if shutil.which("swtpm") else {}),
        },
        "disks": [
            {"path": host.raw_disk().path, "format": "raw"},
            {
                "path": str(encrypted),
                "format": "raw",
                "params": {"encryption": True, "secret_file": str(secret)},
            },
        ],
        "nics": [{"mode": "user"}],
        "consoles": ["serial", "vnc"],
    }


@pytest.mark.parametrize("running", [False, True], ids=["stopped", "running"])
def test_planning_touches_nothing(host: Any, running: bool) -> None:
    """Planning creates, writes, starts and connects to nothing, as seen by the interpreter's audit hook."""
    definition = _everything(host)
    if running:
        host.driver.start_instance(definition, paused=True)
    path = host.directory / "web1.json"
    path.write_text(json.dumps(definition))
    disks = [Path(disk["path"]) for disk in definition["disks"]]
    before = host.files(), [disk.stat().st_mtime_ns for disk in disks]
    command = [sys.executable, "-c", _WATCH, json.dumps(host.settings), str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert found["seen"] == []
    assert tuple(found["argv"]) == host.driver.plan_start(definition).argv
    assert (host.files(), [disk.stat().st_mtime_ns for disk in disks]) == before


def test_a_plan_says_every_option_as_data(host: Any) -> None:
    """An option's data holds what its words say, however they are written."""
    plan = host.driver.plan_start(_everything(host))
    for option in plan.options:
        assert option.words[0] == f"-{option.name}"
        if len(option.words) == 1:
            assert option.value is None
        elif option.words[1].startswith("{"):
            assert json.loads(option.words[1]) == option.value
        elif isinstance(option.value, dict):
            assert all(str(part) in option.words[1] for part in option.value if part)
        else:
            assert option.words[1] == option.value
    machine = next(option for option in plan.options if option.name == "machine")
    assert machine.value["hpet"] is False


def test_secrets_are_in_no_plan_argument_record_or_log(host: Any) -> None:
    """A passphrase reaches QEMU by descriptor alone."""
    definition = _everything(host)
    host.driver.start_instance(definition, paused=True)
    assert "sesame" not in repr(host.driver.plan_start(definition))
    assert b"sesame" not in Path(f"/proc/{host.pid()}/cmdline").read_bytes()
    assert b"sesame" not in Path(f"/proc/{host.pid()}/environ").read_bytes()
    for name in host.files():
        path = host.directory / name
        if path.is_file():
            assert b"sesame" not in path.read_bytes(), name


def test_a_plan_says_what_would_change_and_when(host: Any) -> None:
    """Beside a running instance, every difference is listed with the way it could take effect."""
    disk, other = host.raw_disk(), host.raw_disk("other.raw")
    running = host.instance(disks=[disk], nics=[hvcore.Nic(name="lan")], params={"rng_rate": 1000})
    assert host.driver.plan_start(running).changes is None
    host.driver.start_instance(running, paused=True)
    assert host.driver.plan_start(running).changes == ()
    slower = attrs.evolve(disk, params={"throttle": {"iops_total": 10}, "cache": "none"})
    wanted = attrs.evolve(
        running,
        memory="96MiB",
        disks=[slower, other],
        nics=[],
        params={**running.params, "watchdog_action": "pause", "rng_rate": 2000, "cpu_pin": "0"},
    )
    changes = {change.path: change for change in host.driver.plan_start(wanted).changes}
    assert {path: change.effect for path, change in changes.items()} == {
        "memory": "start",
        "params.cpu_pin": "live",
        "params.watchdog_action": "live",
        "params.rng_rate": "hotplug",
        "disks[0].params.cache": "hotplug",
        "disks[0].params.throttle": "live",
        "disks[1]": "hotplug",
        "nics[0]": "hotplug",
    }
    assert (changes["params.rng_rate"].before, changes["params.rng_rate"].after) == (1000, 2000)
    assert changes["nics[0]"].after is None
    assert changes["disks[1]"].after["path"] == other.path


def test_a_disk_on_a_bus_without_hotplug_changes_at_the_next_start(host: Any) -> None:
    """IDE and SATA disks cannot be plugged while the guest runs."""
    disk = attrs.evolve(host.raw_disk(), params={"bus": "ide"})
    host.driver.start_instance(host.instance(disks=[disk]), paused=True)
    wanted = host.instance(disks=[attrs.evolve(disk, params={"bus": "ide", "cache": "none"})])
    assert [(c.path, c.effect) for c in host.driver.plan_start(wanted).changes] == [("disks[0].params.cache", "start")]


def test_the_escape_hatch_marks_the_instance(host: Any) -> None:
    """Options of the owner reach QEMU, and the instance says that it has some."""
    host.driver.start_instance(host.instance(params={"extra_args": "-device 'virtio-rng-pci,id=mine' -d guest_errors"}))
    assert b"virtio-rng-pci,id=mine" in Path(f"/proc/{host.pid()}/cmdline").read_bytes().split(b"\0")
    assert host.driver.get_instance_info("web1").marks == ("extra-args",)
    host.driver.start_instance(host.instance("web2"))
    assert host.driver.get_instance_info("web2").marks == ()


def test_hv_plan_twice_gives_the_same_bytes(host: Any) -> None:
    """What an administrator reads, and what a program reads, does not change by itself."""
    path = host.directory / "web1.toml"
    path.write_text(
        f"""
        name = "web1"
        memory = "64MiB"
        consoles = ["serial", "vnc"]
        params = {{ accel = "tcg", machine = "q35", memory_min = "32MiB", cdroms = [{{}}] }}
        disks = [{{ path = "{host.raw_disk().path}", format = "raw" }}]
        nics = [{{ mode = "user" }}]
        """
    )
    roots = [f"--{name.replace('_', '-')}={value}" for name, value in host.settings.items()]
    outputs = []
    for form in ([], ["--json"], ["--origins"]):
        command = [sys.executable, "-m", "hvcore.cli", *roots, "plan", str(path), *form]
        first, second = (subprocess.run(command, check=True, capture_output=True, timeout=60).stdout for _ in "12")
        assert first == second
        assert b"blockdev" in first
        outputs.append(first)
    assert len(set(outputs)) == 3
    words = json.loads(outputs[1])["argv"]
    assert tuple(words) == host.driver.plan_start(tomllib.loads(path.read_text())).argv
