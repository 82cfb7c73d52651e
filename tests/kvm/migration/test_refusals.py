"""What a source sends is hostile until it is checked, and the two hosts are compared before anything moves."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import InstanceState, InvalidParameters, MigrationInfo, MigrationPolicy, MigrationTarget, WrongState

pytestmark = pytest.mark.qemu

PLAIN = MigrationPolicy(tls=False)


def _problems(error: pytest.ExceptionInfo[InvalidParameters]) -> set[tuple[str, str]]:
    return {(finding.code, finding.path) for finding in error.value.findings}


def _changed(info: MigrationInfo, **record: Any) -> MigrationInfo:
    return attrs.evolve(info, record={**info.record, **record})


@pytest.fixture
def moving(pair: Any) -> tuple[Any, MigrationInfo]:
    """A guest that is about to move, with what its source says of it."""
    pair.start(nics=[hvcore.Nic(mode="user")])
    return pair, pair.source.driver.migration_info("web1")


def test_what_is_told_is_plain_data_without_a_command_line(moving: Any) -> None:
    """It survives a way as JSON, and no word of QEMU's command line is in it."""
    pair, info = moving
    text = json.dumps(info.record)
    assert json.loads(text) == info.record
    assert "-device" not in text
    assert "/proc/self" not in text
    assert info.record["machine"].startswith("pc-i440fx-")
    assert info.record["run_state"] == "running"
    assert info.record["instance"]["nics"][0]["mac"]
    assert "return-path" in info.capabilities
    again = attrs.evolve(info, record=json.loads(text), capabilities=list(info.capabilities))
    pair.accept(PLAIN, again)
    assert pair.destination.driver.get_instance_info("web1").state is InstanceState.INCOMING


def test_everything_wrong_with_it_is_said_at_once(moving: Any) -> None:
    """Format, driver, fields and address; nothing is made, and nothing of the source changes."""
    pair, info = moving
    bad = _changed(
        attrs.evolve(info, driver="other", capabilities=(1,)), ports=-1, run_state="shutdown", machine=5, extra=1
    )
    with pytest.raises(InvalidParameters) as error:
        pair.destination.driver.accept_instance(bad, "0.0.0.0", PLAIN)
    assert _problems(error) == {
        ("other-driver", "driver"),
        ("wrong-type", "capabilities"),
        ("invalid-value", "record.ports"),
        ("not-a-choice", "record.run_state"),
        ("wrong-type", "record.machine"),
        ("unknown-parameter", "record.extra"),
        ("invalid-value", "address"),
    }
    assert pair.destination.files() == set()
    assert pair.running() == ["source"]


def test_another_format_is_refused(moving: Any) -> None:
    """And none of it is looked at further."""
    pair, info = moving
    for schema in (0, 2, "1", None, True, 1.0):
        other = attrs.evolve(info, schema=schema, record={"x": 1})
        with pytest.raises(InvalidParameters) as error:
            pair.destination.driver.accept_instance(other, "127.0.0.1", PLAIN)
        assert _problems(error) == {("unknown-schema", "schema")}


_CHANGES: dict[str, Callable[[Any], Any]] = {
    "uuid": lambda i: i.pop("uuid"),
    "name": lambda i: i.update(name="other"),
    "disks[0].uuid": lambda i: i["disks"][0].update(uuid=None),
    "nics[0].mac": lambda i: i["nics"][0].update(mac=None),
    "params.machine": lambda i: i["params"].update(machine="none"),
    "params.nonsense": lambda i: i["params"].update(nonsense=1),
    "disks[0].path": lambda i: i["disks"][0].update(path="/nowhere/at/all"),
    "disks[0].format": lambda i: i["disks"][0].update(format="qcow2"),
    "nics[0].mode": lambda i: i["nics"][0].update(mode="no-such"),
    "memory": lambda i: i.update(memory="a lot"),
    "security_model": lambda i: i.update(security_model="no-such"),
}


def test_a_definition_that_cannot_run_here_is_refused(moving: Any) -> None:
    """At its place in what was sent, as for a start; nothing is made."""
    pair, info = moving
    for path, change in _CHANGES.items():
        instance = json.loads(json.dumps(info.record["instance"]))
        change(instance)
        with pytest.raises(InvalidParameters) as error:
            pair.destination.driver.accept_instance(_changed(info, instance=instance), "127.0.0.1", PLAIN)
        assert {where for _, where in _problems(error)} == {f"record.instance.{path}"}
        assert pair.destination.files() == set()


def test_hosts_that_differ_are_found_before_anything_moves(moving: Any) -> None:
    """Machine type, processor and accelerator, all at once, beside what the policy lacks."""
    pair, info = moving
    other = _changed(
        info,
        machine="pc-i440fx-99.0",
        accelerator="kvm",
        cpu_model="no-such-model",
    )
    policy = MigrationPolicy(tls={"directory": "/nowhere"})  # type: ignore[arg-type]
    lacking = attrs.evolve(other, capabilities=tuple(c for c in other.capabilities if c != "return-path"))
    with pytest.raises(InvalidParameters) as error:
        pair.destination.driver.accept_instance(lacking, "127.0.0.1", policy)
    assert _problems(error) == {
        ("unknown-machine", "record.machine"),
        ("accelerator-differs", "record.accelerator"),
        ("cpu-differs", "record.cpu_model"),
        ("qemu-too-old", "policy"),
        ("file-unusable", "policy.tls.directory"),
    }
    assert pair.destination.files() == set()


def test_a_processor_with_less_is_refused_and_with_more_is_cut_back(moving: Any) -> None:
    """The guest sees the processor it has seen, feature by feature."""
    pair, info = moving
    features = list(info.record["features"])
    with pytest.raises(InvalidParameters) as error:
        pair.destination.driver.accept_instance(
            _changed(info, features=[*features, "avx512f", "no-such-thing"]), "127.0.0.1", PLAIN
        )
    assert _problems(error) == {("cpu-differs", "record.features")}
    assert "avx512f, no-such-thing" in str(error.value.findings[0])
    features.remove("sse3" if "sse3" in features else "pni")
    pair.accept(PLAIN, _changed(info, features=features))
    with open(f"/proc/{pair.destination.pid()}/cmdline", encoding="utf-8") as file:
        assert "pni=off" in file.read()


def test_a_processor_is_asked_for_once_as_long_as_its_qemu_is_the_same(make_pair: Any, tmp_path: Path) -> None:
    """It takes a process, which ends: another instance that comes needs none, and another program is asked again."""
    starts, program = tmp_path / "starts", tmp_path / "qemu"
    program.write_text(f'#!/bin/sh\necho "$$ $*" >>{starts}\nexec qemu-system-x86_64 "$@"\n')
    program.chmod(0o755)
    pair = make_pair(destination={"qemu": str(program)})
    pair.start(security_model="none")
    info = pair.source.driver.migration_info("web1")

    def asked() -> int:
        pair.accept(PLAIN, info)
        pair.destination.driver.finalize_migration_dst(info, False)
        pair.forget("destination")
        asking = [line for line in starts.read_text().splitlines() if "id=probe" in line and "accel=tcg" in line]
        assert not [line for line in asking if Path(f"/proc/{line.split()[0]}").exists()]
        return len(asking)

    assert [asked(), asked()] == [1, 1]
    program.write_text(program.read_text() + "\n")
    assert asked() == 2


def test_a_port_that_is_taken_is_passed_over(moving: Any) -> None:
    """The next one of those allowed is taken; when none is free it is said, and nothing is left."""
    pair, _ = moving
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        one = MigrationPolicy(tls=False, first_port=port, last_port=port)
        with pytest.raises(hvcore.HypervisorRefused, match="Address already in use|available port"):
            pair.accept(one)
        assert pair.destination.files() == set()
    target = pair.accept(PLAIN)
    assert PLAIN.first_port <= target.port <= PLAIN.last_port


def test_an_instance_that_is_there_is_not_replaced(moving: Any) -> None:
    """One of that name that runs on the destination is left alone."""
    pair, info = moving
    pair.destination.start(pair.destination.instance())
    with pytest.raises(hvcore.AlreadyRunning):
        pair.destination.driver.accept_instance(info, "127.0.0.1", PLAIN)
    with pytest.raises(WrongState, match="another instance of this name"):
        pair.destination.driver.finalize_migration_dst(info, False)
    assert pair.destination.driver.get_instance_info("web1").state is InstanceState.RUNNING
    pair.destination.driver.stop_instance("web1", force=True)


def test_a_target_that_is_none_is_refused(moving: Any) -> None:
    """Nothing is sent, and the guest runs on."""
    pair, _ = moving
    for target, paths in (
        (MigrationTarget(address="host.example", port=5), {"target.address"}),
        (MigrationTarget(address="0.0.0.0", port=0), {"target.address", "target.port"}),
        (MigrationTarget(address="127.0.0.1,to=5", port=None), {"target.address", "target.port"}),
        (MigrationTarget(address="127.0.0.1", port=5, tls_hostname="x"), {"target.tls_hostname"}),
    ):
        with pytest.raises(InvalidParameters) as error:
            pair.source.driver.migrate_instance("web1", target, PLAIN)
        assert {path for _, path in _problems(error)} == paths
        assert pair.running() == ["source"]
        assert not any("migration.json" in path for path in pair.source.files())


def test_nobody_listens(moving: Any, free_port: Callable[[], int]) -> None:
    """The guest runs on, and why is said in QEMU's words."""
    pair, _ = moving
    target = MigrationTarget(address="127.0.0.1", port=free_port())
    pair.source.driver.migrate_instance("web1", target, PLAIN)
    status = pair.until(hvcore.MigrationPhase.FAILED)
    assert "Connection refused" in status.error or "refused" in status.error
    with pytest.raises(WrongState, match="failed"):
        pair.source.driver.finalize_migration_source("web1", True)
    pair.source.driver.finalize_migration_source("web1", False)
    assert pair.running() == ["source"]


def test_a_guest_that_is_arriving_is_not_let_run_by_hand(moving: Any) -> None:
    """Neither resumed, reset nor restarted: only the end of its migration says whether it may run."""
    pair, info = moving
    pair.accept(PLAIN, info)
    driver = pair.destination.driver
    for refused in (
        lambda: driver.resume_instance("web1"),
        lambda: driver.reboot_instance("web1", mode="reset"),
        lambda: driver.reboot_instance("web1", mode="hard"),
        lambda: driver.hot_add_device("web1", hvcore.Nic(mode="user")),
        lambda: driver.migration_info("web1"),
        lambda: driver.cancel_migration("web1"),
        lambda: driver.finalize_migration_source("web1", False),
    ):
        with pytest.raises(WrongState):
            refused()
    assert driver.get_instance_info("web1").state is InstanceState.INCOMING
    record = f"{driver.directories.state}/instances/web1/migration.json"
    with open(record, "r+b") as file:
        kept = file.read()
        file.seek(0)
        file.write(b"\0 no record")
    with pytest.raises(WrongState):
        driver.reboot_instance("web1", mode="reset")
    with pytest.raises(WrongState):
        driver.resume_instance("web1")
    with open(record, "wb") as file:
        file.write(kept)
    assert driver.finalize_migration_dst(info, False).after is None
    assert pair.destination.files() == set()


def test_the_account_of_an_earlier_life_stays(moving: Any) -> None:
    """A migration that was not to be leaves what was known of the instance on the destination."""
    pair, info = moving
    pair.destination.start(pair.destination.instance())
    pair.destination.driver.stop_instance("web1", force=True)
    before = pair.destination.driver.get_instance_info("web1")
    pair.accept(PLAIN, info)
    pair.destination.driver.finalize_migration_dst(info, False)
    after = pair.destination.driver.get_instance_info("web1")
    assert (after.state, after.reason) == (before.state, before.reason)


def test_a_disk_that_the_source_still_has_keeps_the_guest_from_running(moving: Any) -> None:
    """Whatever the caller believes: while the source writes its disk, the destination cannot take it."""
    pair, info = moving
    pair.accept(PLAIN, info)
    with pytest.raises(WrongState, match="has not arrived"):
        pair.destination.driver.finalize_migration_dst(info, True)
    assert os.path.exists(f"{pair.destination.driver.directories.state}/instances/web1/migration.json")
    assert pair.running() == ["source"]
