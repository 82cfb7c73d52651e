"""The audit log: a line of intent before a change, an outcome after it, no secret in either, no line lost or torn."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import AuditLog, Disk, Instance, LiveParameters
from hvcore.extensions.audit import LINE_LIMIT
from hvcore.extensions.masking import MASK

Load = Callable[..., hvcore.Driver]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_change_has_two_lines_and_a_query_one(load: Load, log: Path) -> None:
    """Each line says who, where, what and when; the outcome says how long it took."""
    driver = load(AuditLog(log))
    driver.stop_instance("web1", timeout=5)
    driver.list_instances()
    intent, outcome, query = _lines(log)
    assert (intent["line"], outcome["line"], query["line"]) == ("intent", "outcome", "outcome")
    assert intent["id"] == outcome["id"] != query["id"]
    assert (intent["pid"], intent["uid"]) == (os.getpid(), os.getuid())
    assert (intent["driver"], intent["operation"], intent["instance"]) == ("told", "stop_instance", "web1")
    assert intent["arguments"] == {"force": False, "grace": 5, "retry": False, "escalate": True}
    assert "arguments" not in outcome
    assert (outcome["outcome"], query["outcome"]) == ("done", "done")
    assert outcome["duration"] >= 0
    assert "outcome" not in intent
    assert intent["time"].endswith("+00:00")
    assert log.stat().st_mode & 0o777 == 0o600


def test_without_queries(load: Load, log: Path) -> None:
    """Queries can be left out; what restarts the host is no query, though no instance's lock is held for it."""
    driver = load(AuditLog(log, queries=False))
    driver.list_instances()
    assert not log.exists()
    with pytest.raises(hvcore.UnsupportedOperation):
        driver.powercycle_node()
    with hvcore.load_driver(
        "fake",
        {f"{kind}_directory": str(log.parent / kind) for kind in ("state", "data", "cache")},
        extensions=[AuditLog(log, queries=False)],
    ) as fake:
        with pytest.raises(hvcore.PolicyDenied):
            fake.powercycle_node()
    assert [line["line"] for line in _lines(log)] == ["intent", "outcome"]


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (hvcore.NotRunning("no"), "refused", "not-running"),
        (hvcore.OutcomeUnknown("lost"), "unknown", "outcome-unknown"),
        (hvcore.SpawnFailed("ended"), "failed-and-undone", "spawn-failed"),
        (hvcore.PolicyDenied("x", code="quota"), "refused", "quota"),
        (KeyError("x"), "failed", "driver-fault"),
    ],
)
def test_how_it_failed(load: Load, log: Path, error: Exception, outcome: str, code: str) -> None:
    """The outcome is the error's, with its code and its words."""
    driver = load(AuditLog(log), answers={"stop_instance": error})
    with pytest.raises(hvcore.HypervisorError):
        driver.stop_instance("web1")
    last = _lines(log)[-1]
    assert (last["outcome"], last["code"]) == (outcome, code)
    assert str(error.args[0]) in last["error"]


def test_an_interrupted_operation(load: Load, log: Path) -> None:
    """What is no error of the operation, such as Ctrl-C, is an outcome as well."""
    driver = load(AuditLog(log), answers={"stop_instance": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        driver.stop_instance("web1")
    assert _lines(log)[-1]["outcome"] == "interrupted"


def test_a_foreign_exception_of_an_inner_extension(load: Load, log: Path) -> None:
    """It has no code yet when it passes the audit log."""

    class Broken:
        @hvcore.hookimpl(wrapper=True)
        def hv_operation(self, call: hvcore.OperationCall) -> Any:
            yield
            raise ZeroDivisionError("oops")

    with pytest.raises(hvcore.DriverFault):
        load(AuditLog(log), Broken()).list_instances()
    last = _lines(log)[-1]
    assert (last["outcome"], last["code"], last["error"]) == ("failed", None, "ZeroDivisionError: oops")


def test_findings_are_named_without_values(load: Load, log: Path) -> None:
    """Of invalid parameters the log has codes and paths."""
    finding = hvcore.Finding(code="wrong-type", path="params.token", message="'hunter2' is not text")
    error = hvcore.InvalidParameters("bad", hvcore.FindingSet([finding]))
    with pytest.raises(hvcore.InvalidParameters):
        load(AuditLog(log), answers={"start_instance": error}).start_instance({"name": "web1"})
    assert _lines(log)[-1]["findings"] == ["wrong-type params.token"]
    assert "hunter2" not in log.read_text()


SECRETS = {
    "token": "hunter1",
    "vnc": {"password": "hunter2", "bind": "127.0.0.1"},
    "tokn": "hunter3",
    "spice": {"password": "hunter4"},
    "machine": "pc",
    "features": {"smx": True},
    "inner": {"shown": "yes", "hidden": "hunter5", "hiden": "hunter6"},
    "inners": [{"shown": "also", "hidden": "hunter7"}, "hunter8"],
    "tree": {"below": {"below": {"below": {"password": "hunter0"}}}},
}


def test_secrets_are_masked(load: Load, log: Path) -> None:
    """Declared secrets are masked wherever they stand; so is what nobody has declared: it may be a misspelt secret."""
    disk = Disk(path="/d", format="raw", params={"key": "hunter9", "cache": "none"})
    driver = load(AuditLog(log))
    driver.start_instance(Instance(name="web1", params=SECRETS, disks=[disk]))
    assert "hunter" not in log.read_text()
    shown = next(line for line in _lines(log) if line["operation"] == "start_instance")["arguments"]["instance"]
    assert shown["params"] == {
        "token": MASK,
        "vnc": {"password": MASK, "bind": "127.0.0.1"},
        "tokn": MASK,
        "spice": MASK,
        "machine": "pc",
        "features": {"smx": True},
        "inner": {"shown": "yes", "hidden": MASK, "hiden": MASK},
        "inners": [{"shown": "also", "hidden": MASK}, MASK],
        "tree": {"below": {"below": {"below": MASK}}},
    }
    assert shown["disks"][0]["params"] == {"key": MASK, "cache": "none"}
    assert shown["disks"][0]["path"] == "/d"


def test_secrets_in_a_device_that_is_rubbish_are_masked(load: Load, log: Path) -> None:
    """What its parameters are is known to drivers only."""
    rubbish: dict[str, Any] = {"encryption_key": [[{"password": "hunter2"}]], "x": {"x": "hunter2"}}
    driver = load(
        AuditLog(log), answers={"hot_add_device": hvcore.Refused("no"), "hot_mod_device": hvcore.Refused("no")}
    )
    with pytest.raises(hvcore.Refused):
        driver.hot_add_device("web1", Disk(path="/disk.raw", format="raw", params=rubbish))
    for values in (rubbish, ["hunter2"], "hunter2"):
        with pytest.raises(hvcore.Refused):
            driver.hot_mod_device("web1", LiveParameters(values=values, add=values, remove=values))
    assert len(_lines(log)) == 8
    assert "hunter" not in log.read_text()


def test_parameters_that_change_are_shown_as_those_of_an_instance(load: Load, log: Path) -> None:
    """What is declared and not secret is; for the others it is said that they were given."""
    driver = load(AuditLog(log), answers={"hot_mod_device": hvcore.Refused("no")})
    with pytest.raises(hvcore.Refused):
        driver.hot_mod_device("web1", LiveParameters(values={"machine": "pc", "vnc": "hunter2"}))
    assert _lines(log)[0]["arguments"]["device"] == {"values": {"machine": "pc", "vnc": MASK}, "add": {}, "remove": {}}


@pytest.mark.parametrize("params", ["hunter2", ["hunter2"], {5: "hunter2"}, {"vnc": "hunter2"}, {"vnc": ["hunter2"]}])
def test_secrets_in_the_wrong_place_are_masked(load: Load, log: Path, params: Any) -> None:
    """A definition may be any rubbish; none of it is shown."""
    load(AuditLog(log)).check_parameter_syntax({"name": "web1", "params": params, "memory": {"password": "hunter2"}})
    assert "hunter" not in log.read_text()


def test_a_secret_is_masked_in_the_error_as_well(load: Load, log: Path) -> None:
    """A driver that repeats the password in its error does not betray it to the log."""
    error = hvcore.HypervisorRefused("set_password", "GenericError", "cannot use 'hunter2'")
    driver = load(AuditLog(log), answers={"set_console_password": error})
    with pytest.raises(hvcore.HypervisorRefused):
        driver.set_console_password("web1", "vnc", "hunter2")
    assert _lines(log)[0]["arguments"] == {"kind": "vnc", "password": MASK, "expires": None}
    assert _lines(log)[1]["error"] == f"the hypervisor refused set_password: cannot use '{MASK}'"


def test_nothing_is_shown_when_the_declarations_cannot_be_had(load: Load, log: Path) -> None:
    """A driver that cannot say what is secret has all its parameters masked, and is asked again."""
    answers: dict[str, Any] = {"parameters": KeyError("broken")}
    driver = load(AuditLog(log), answers=answers)
    driver.start_instance({"name": "web1", "params": {"machine": "pc"}})
    del answers["parameters"]
    driver.start_instance({"name": "web1", "params": {"machine": "pc"}})
    machines = [line["arguments"]["instance"]["params"]["machine"] for line in _lines(log) if "arguments" in line]
    assert machines == [MASK, MASK, "pc", "pc"]


def test_looking_up_the_declarations_does_not_pass_the_extensions(load: Load, log: Path) -> None:
    """What an extension asks the driver is no operation."""
    load(AuditLog(log)).start_instance({"name": "web1", "params": {"machine": "pc"}})
    assert {line["operation"] for line in _lines(log)} == {"check_parameter_syntax", "start_instance"}


def test_lines_are_bounded(load: Load, log: Path) -> None:
    """However large the arguments: the line is short, and is JSON."""
    driver = load(AuditLog(log), answers={"start_instance": hvcore.Refused("x" * 100_000)})
    large = {"machine": "m" * 50_000, "features": {f"f{i}": True for i in range(5000)}, "n": 10**6000}
    for params in (large, {"features": {f"{i}" + "f" * 5000: True for i in range(90)}}):
        with pytest.raises(hvcore.Refused):
            driver.start_instance(Instance(name="web1", params=params))
    assert max(len(line) for line in log.read_bytes().splitlines(keepends=True)) <= LINE_LIMIT
    assert len(_lines(log)) == 6


@pytest.mark.parametrize(
    "text", ["a\nb", "\ud800", "\x1b[2J", "\u2028", float("nan"), float("inf"), 2**300, b"x", object()]
)
def test_any_value_is_one_line_of_json(load: Load, log: Path, text: Any) -> None:
    """Line ends, control characters, surrogates and numbers JSON does not know spoil nothing."""
    error = hvcore.Refused(f"{text!s:.100}")
    with pytest.raises(hvcore.Refused):
        load(AuditLog(log), answers={"hot_add_device": error}).hot_add_device(
            "web1", Disk(path="/disk.raw", format="raw", params={"cache": text})
        )
    for line in log.read_bytes().decode("ascii").splitlines():
        json.loads(line, parse_constant=lambda found: pytest.fail(found))


def test_a_log_that_cannot_be_written_refuses_a_change_before_it(load: Load, tmp_path: Path) -> None:
    """The driver is not reached."""
    reached: list[str] = []
    driver = load(AuditLog(tmp_path / "nowhere/log"), answers={"stop_instance": lambda: reached.append("stop")})
    with pytest.raises(hvcore.HostError, match="No such file or directory") as caught:
        driver.stop_instance("web1")
    assert (caught.value.code, caught.value.operation, reached) == ("audit-log", "stop_instance", [])
    with pytest.raises(hvcore.HostError):
        driver.list_instances()


def test_a_log_that_is_not_required(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The operation goes on, and the lost line is logged."""
    audit = AuditLog(tmp_path / "nowhere/log", required=False)
    with caplog.at_level(logging.ERROR):
        assert load(audit).stop_instance("web1").changed
    assert audit.lost == 2
    assert "nowhere/log" in caplog.text


def test_a_change_that_happened_is_not_reported_as_refused(
    load: Load, log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When only the outcome cannot be written, the caller learns the result, and the logger the loss."""

    def lose() -> Any:
        log.unlink()
        log.mkdir()
        return hvcore.Transition(name="web1", before=None, after=None, changed=True)

    audit = AuditLog(log)
    with caplog.at_level(logging.ERROR):
        assert load(audit, answers={"stop_instance": lose}).stop_instance("web1").changed
    assert audit.lost == 1
    assert "outcome" in caplog.text


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "device"])
def test_only_a_regular_file_is_written(load: Load, log: Path, kind: str) -> None:
    """A link, a pipe nobody reads or a device is refused at once; nothing hangs and nothing else is written."""
    target = log.with_name("target")
    if kind == "symlink":
        log.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(log)
    elif kind == "directory":
        log.mkdir()
    path = "/dev/null" if kind == "device" else log
    with pytest.raises(hvcore.HostError, match="audit log"):
        load(AuditLog(path)).stop_instance("web1")
    assert not target.exists()


def test_a_full_disk_is_said(load: Load, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line cut short is an error, and the next line does not begin in the middle of it."""
    real = os.write
    short: list[int] = [20]

    def write(fd: int, data: bytes) -> int:
        return real(fd, data[: short.pop()] if short else data)

    driver = load(AuditLog(log))
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(hvcore.HostError, match="20 of"):
        driver.stop_instance("web1")
    driver.stop_instance("web1")
    torn, *whole = log.read_text().splitlines()
    assert len(torn) == 20
    assert [json.loads(line)["line"] for line in whole] == ["intent", "outcome"]


def test_rotation(load: Load, log: Path) -> None:
    """After the file is renamed, the next line begins a new one; after it is truncated, lines go to its new start."""
    driver = load(AuditLog(log))
    driver.list_instances()
    old = log.rename(log.with_suffix(".1"))
    driver.list_instances()
    assert (len(_lines(old)), len(_lines(log))) == (1, 1)
    os.truncate(log, 0)
    driver.list_instances()
    assert len(_lines(log)) == 1


def test_the_path_is_that_of_the_moment_it_was_given(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host application that changes its directory takes the log nowhere."""
    monkeypatch.chdir(tmp_path)
    driver = load(AuditLog("log"))
    monkeypatch.chdir("/")
    driver.list_instances()
    assert len(_lines(tmp_path / "log")) == 1


_WRITE = """
import sys, threading
import hvcore
settings = {f"{kind}_directory": f"{sys.argv[2]}/{kind}" for kind in ("state", "data", "cache")}
with hvcore.load_driver("fake", settings, extensions=[hvcore.AuditLog(sys.argv[1])]) as driver:
    name = "n" * 60
    def work():
        for _ in range(50):
            driver.check_parameter_syntax({"name": name, "tags": ["t" * 60] * 90})
    threads = [threading.Thread(target=work) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
"""


def test_many_threads_and_processes_write_whole_lines(log: Path, tmp_path: Path) -> None:
    """No line is lost and none is mixed with another, while the file is rotated under way."""
    command = [sys.executable, "-c", _WRITE, str(log), str(tmp_path)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    rotated: list[Path] = []
    done = threading.Event()

    def rotate() -> None:
        while not done.wait(0.05):
            if log.exists():
                rotated.append(log.rename(log.with_suffix(f".{len(rotated)}")))

    rotator = threading.Thread(target=rotate)
    rotator.start()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    done.set()
    rotator.join()
    lines = [line for path in [*rotated, log] if path.exists() for line in _lines(path)]
    assert len(lines) == 3 * 3 * 50
    assert len({line["id"] for line in lines}) == len(lines)
    assert {line["pid"] for line in lines} == {writer.pid for writer in writers}
