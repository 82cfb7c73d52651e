"""An instance from check to cleanup, by command, on the KVM driver with the firmware guest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guest_console import LEAVE, piped, start_guest

pytestmark = pytest.mark.qemu

Hv = Callable[..., Any]
StateFiles = Callable[[], list[Path]]


def test_a_whole_life(hv: Hv, instance_file: Path, state_files: StateFiles) -> None:
    """Check, plan, start, list, info, pause, resume, verify, reboot, stop, info, cleanup: each says what it did."""
    assert "can be started here" in hv("check", instance_file).stdout
    assert "-machine pc-i440fx" in hv("plan", instance_file).stdout
    assert state_files() == []
    assert hv("start", instance_file, "--timeout", "1min").stdout == "web1: started; now running\n"
    listed = hv("list").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["NAME", "STATE"], ["web1", "alive"]]
    assert hv("list", "--long").stdout.splitlines()[1].split()[:2] == ["web1", "running"]
    assert hv("pause", "web1").stdout == "web1: paused\n"
    assert "state        paused\n" in hv("info", instance_file).stdout
    assert hv("resume", "web1").stdout == "web1: resumed; now running\n"
    assert hv("verify").stdout == "web1: is what its record says\n"
    assert hv("reboot", "web1", "--reset").returncode == 0
    stopped = hv("stop", instance_file, "--timeout", "20s")
    assert stopped.returncode == 0
    assert stopped.stdout.startswith("web1: ")
    assert "state" in hv("info", "web1").stdout
    assert hv("cleanup", "web1").returncode == 0
    assert hv("info", "web1").returncode == 3


def test_everything_is_json_on_request(hv: Hv, instance_file: Path) -> None:
    """Every command prints one document for machines."""
    plan = json.loads(hv("--json", "plan", instance_file).stdout)
    assert plan["argv"][0] == plan["program"]
    assert [word for option in plan["options"] for word in option["words"]] == plan["argv"][1:]
    assert json.loads(hv("check", instance_file, "--json").stdout)["ok"] is True
    assert json.loads(hv("start", instance_file, "--paused", "--json").stdout)["after"] == "prelaunch"
    info = json.loads(hv("info", "web1", "--json").stdout)
    assert (info["state"], info["accelerator"]) == ("prelaunch", "tcg")
    assert json.loads(hv("list", "--json").stdout)["instances"] == [{"name": "web1", "alive": True, "pid": info["pid"]}]
    assert json.loads(hv("list", "--long", "--json").stdout)["instances"][0]["pid"] == info["pid"]
    assert json.loads(hv("console", "web1", "--json").stdout)["kind"] == "serial"
    assert json.loads(hv("verify", "web1", "--json").stdout)["ok"] is True
    assert json.loads(hv("resume", "web1", "--json").stdout)["changed"] is True
    assert json.loads(hv("stop", "web1", "--force", "--json").stdout)["after"] == "stopped"


def test_into_a_file_and_out_of_it(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """A path is taken as the shell means it; the second restore is invalid, and is done when it is forced."""
    hv("start", instance_file)
    saved = hv("save", "web1", "web1.saved", cwd=tmp_path)
    assert saved.stdout.startswith(f"web1: saved to {tmp_path}/web1.saved, "), saved.stderr
    assert saved.stderr == ""
    assert json.loads(hv("info", "web1", "--json").stdout)["state"] == "saved"
    restored = hv("restore", tmp_path / "web1.saved", "--json")
    assert json.loads(restored.stdout)["after"] == "running"
    hv("stop", "web1", "--force")
    again = hv("restore", "web1.saved", "--paused", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "restored-before" in again.stderr
    forced = hv("restore", "web1.saved", "--paused", "--force", cwd=tmp_path)
    assert forced.stdout == f"web1: restored from {tmp_path}/web1.saved; now paused\n"


def test_recover_says_what_it_found(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """Nothing to do, one interrupted start undone, and the same for machines."""
    assert hv("recover").stdout == "nothing was half done\n"
    assert json.loads(hv("recover", "web1", "--json").stdout) == {"instances": []}
    # What a host application leaves that is killed right after it began.
    directory = tmp_path / "hv" / "state" / "kvm" / "instances" / "web1"
    directory.mkdir(parents=True)
    (directory / "journal").write_text('{"begin":"start"}\n')
    recovered = hv("recover", instance_file)
    assert (recovered.returncode, recovered.stdout) == (0, "web1: start undone; nothing of it is left\n")
    assert not directory.exists()


def test_recover_looks_at_what_is_stopped(hv: Hv, instance_file: Path, tmp_path: Path) -> None:
    """An instance that is not listed is looked at without being named; what cannot be put in order ends with 1."""
    hv("start", instance_file, "--paused")
    hv("stop", "web1", "--force")
    assert json.loads(hv("list", "--json").stdout) == {"instances": []}
    damaged = tmp_path / "hv" / "data" / "kvm" / "instances" / "web1" / "snapshotting.json"
    damaged.write_text("no record")
    recovered = hv("recover")
    assert recovered.returncode == 1
    assert recovered.stdout.startswith("web1: unknown failed; ")
    assert "snapshotting.json" in recovered.stdout
    damaged.unlink()
    assert hv("recover").stdout == "nothing was half done\n"


def test_a_second_start_ends_with_4(hv: Hv, instance_file: Path) -> None:
    """Running already is a wrong state; with --json the error is a document on standard error."""
    hv("start", instance_file, "--paused")
    again = hv("start", instance_file)
    assert (again.returncode, again.stdout) == (4, "")
    assert "running already" in again.stderr
    assert "hint: " in again.stderr
    again = hv("start", instance_file, "--json")
    assert (again.returncode, again.stdout) == (4, "")
    assert json.loads(again.stderr)["error"]["code"] == "already-running"


def test_a_reboot_with_a_file_takes_the_new_definition(hv: Hv, instance_file: Path) -> None:
    """A cold start from the file is how a definition is changed; its errors are found before the old life ends."""
    hv("start", instance_file)
    before = json.loads(hv("info", "web1", "--json").stdout)
    text = instance_file.read_text(encoding="utf-8")
    instance_file.write_text(text.replace("memory", "memroy"), encoding="utf-8")
    assert hv("reboot", instance_file, "--hard").returncode == 2
    assert json.loads(hv("info", "web1", "--json").stdout)["pid"] == before["pid"]
    instance_file.write_text(text.replace("32MiB", "48MiB"), encoding="utf-8")
    assert hv("reboot", instance_file, "--hard").returncode == 0
    after = json.loads(hv("info", "web1", "--json").stdout)
    assert after["memory"] == 48 * 2**20
    assert after["pid"] != before["pid"]


def test_a_graceful_stop_that_must_not_escalate_fails(hv: Hv, instance_file: Path) -> None:
    """Without escalation a guest that ignores its power button lives on, and the status says failed."""
    start_guest(hv, instance_file)
    with piped(hv, "console", "web1") as process:
        process.stdin.write(b"n")
        assert process.stdout.readline() == b"ok\r\n"
        process.stdin.write(LEAVE)
    stopped = hv("stop", "web1", "--no-escalate", "--timeout", "3s")
    assert (stopped.returncode, stopped.stdout) == (1, "")
    assert "[deadline-exceeded]" in stopped.stderr
    assert json.loads(hv("info", "web1", "--json").stdout)["pid"] is not None


@pytest.mark.parametrize("command", ["info", "console", "pause", "resume", "reboot", "verify"])
def test_an_unknown_name_ends_with_3(hv: Hv, command: str) -> None:
    """What is not there is told apart from what failed."""
    done = hv(command, "nobody")
    assert (done.returncode, done.stdout) == (3, "")
    assert "nobody" in done.stderr


def test_a_name_that_cannot_be_one_ends_with_2(hv: Hv) -> None:
    """No name leads out of the directories."""
    assert hv("info", "../etc").returncode == 2


def test_all_findings_come_at_once(hv: Hv, tmp_path: Path, state_files: StateFiles) -> None:
    """Every problem of a file is told in one go, on check and start alike, and nothing is created."""
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "bad"\nmemroy = 1\nvcpus = "2"\n[params]\naccel = "warp"\n', encoding="utf-8")
    checked = hv("check", bad)
    assert checked.returncode == 2
    assert all(path in checked.stdout for path in ("memroy", "vcpus", "params.accel"))
    found = json.loads(hv("check", bad, "--json").stdout)
    assert len(found["findings"]) == 3
    started = hv("start", bad)
    assert (started.returncode, started.stdout) == (2, "")
    assert all(path in started.stderr for path in ("memroy", "vcpus", "params.accel"))
    assert state_files() == []


def test_a_broken_file_is_told_with_its_line(hv: Hv, tmp_path: Path) -> None:
    """What is no TOML is a finding like all others."""
    broken = tmp_path / "broken.toml"
    broken.write_text('name = "a"\nmemory = \n', encoding="utf-8")
    for command in ("check", "plan", "start", "stop"):
        done = hv(command, broken)
        assert done.returncode == 2
        assert f"{broken}:2:" in done.stdout + done.stderr


def test_a_missing_file_of_the_guest_is_a_finding_of_this_host(hv: Hv, instance_file: Path) -> None:
    """After the syntax comes the host."""
    text = instance_file.read_text(encoding="utf-8")
    instance_file.write_text(text.replace("firmware.rom", "none.rom"), encoding="utf-8")
    checked = hv("check", instance_file)
    assert checked.returncode == 2
    assert "params.firmware_image" in checked.stdout


def test_the_origin_of_every_option_can_be_shown(hv: Hv, instance_file: Path) -> None:
    """Each option names what in the file it comes from."""
    lines = hv("plan", instance_file, "--origins").stdout.splitlines()
    assert any(line.split()[:2] == ["memory", "-m"] for line in lines)


def test_the_doctor_looks_at_every_driver(hv: Hv) -> None:
    """It says what each driver claims and what is wrong; a driver that lacks QEMU is an error."""
    report = json.loads(hv("doctor", "--driver", "kvm", "--json").stdout)
    assert report["ok"] is True
    (driver,) = report["drivers"]
    claims = {claim["capability"]: claim["level"] for claim in driver["claims"]}
    assert (claims["plan"], claims["console"]) == ("full", "full")
    assert driver["node"]["hypervisor"][0][0] == "qemu"
    lacking = hv("doctor", "--driver", "kvm", "--setting", "qemu=/none")
    assert lacking.returncode == 1
    assert "/none" in lacking.stdout
