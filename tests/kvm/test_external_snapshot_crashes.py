"""The host application is killed in an operation on external snapshots, alone or with QEMU: no write is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import attrs
import pytest

from hvcore import Deadline, InstanceState, InvalidParameters
from hvcore_kvm import process
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

UUIDS = ("ee000000-0000-4000-8000-000000000001", "ee000000-0000-4000-8000-000000000002")

STRIDES = {"create": 13, "delete": 11}
"""Not every cut is tried: there are many."""

CREATE = "driver.create_snapshot('web1', 'second', external=True)"
CREATE_STILL = "import hvcore; driver.create_snapshot(hvcore.read_definition(words[0])[0], 'second', external=True)"
DELETE = "driver.delete_snapshot('web1', 'second')"
REVERT = "driver.revert_snapshot('web1', 'second')"


def _ask(host: Any, command: str, **arguments: Any) -> Any:
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/control"), Deadline.after(30)) as client:
        return client.execute(command, arguments, deadline=Deadline.after(30))


def _write(host: Any, value: int, offset: str = "0") -> None:
    for uuid in UUIDS:
        place = f"/machine/peripheral/{device_id('disk', uuid)}/virtio-backend"
        for what in (f"write -P {value:#x} {offset} 64k", "flush"):
            _ask(host, "human-monitor-command", **{"command-line": f'qemu-io -d {place} "{what}"'})


def _chains(host: Any, disks: Any) -> list[list[tuple[str, str]]]:
    """The images of each disk by the driver's account, the topmost last."""
    known = host.driver.list_snapshots("web1").snapshots
    return [
        [
            (disk.path, disk.format),
            *((row.overlay, "qcow2") for one in known for row in one.disks if row.uuid == disk.uuid),
        ]
        for disk in disks
    ]


def _holds(chain: list[tuple[str, str]], value: int, offset: str = "0") -> bool:
    options = []
    for number, (path, form) in enumerate(reversed(chain)):
        below = "backing." * number
        options.append(f"{below}driver={form},{below}file.driver=file,{below}file.filename={path}")
    command = ["qemu-io", "-r", "-U", "--image-opts", ",".join(options), "-c", f"read -P {value:#x} {offset} 64k"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "read 65536/65536 bytes" in said.stdout, said
    return "verification failed" not in said.stdout


def _overlays(host: Any) -> set[str]:
    return {str(path) for path in host.directory.glob("disk*.*.qcow2")}


def _accounted(host: Any, disks: Any) -> set[str]:
    return {path for chain in _chains(host, disks) for path, _ in chain[1:]}


def _state(host: Any) -> InstanceState:
    state: InstanceState = host.driver.get_instance_info("web1").state
    return state


def _disks(host: Any) -> tuple[Any, Any]:
    raw = attrs.evolve(host.raw_disk("disk1.raw", 8 << 20), uuid=UUIDS[0])
    return raw, attrs.evolve(host.qcow2_disk("disk2.qcow2"), uuid=UUIDS[1])


def _kill_qemu(host: Any) -> None:
    identity = process.identify(host.pid())
    os.kill(identity.pid, signal.SIGKILL)
    assert process.ends(identity)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("operation", STRIDES)
def test_killed_at_a_cut_while_it_runs(host: Any, cut_short: Any, operation: str, both: bool) -> None:
    """What the guest wrote before and after is there, and the account names the images there are."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.driver.start_instance(definition)
    cut, value = 1, 0
    while True:
        value = value % 250 + 2
        if operation == "delete" and not host.driver.list_snapshots("web1").snapshots:
            host.driver.create_snapshot("web1", "second", external=True)
        _write(host, value)
        killed = cut_short(CREATE if operation == "create" else DELETE, cut=cut) is None
        # Until a job that waits there is finalized, a write would not end.
        waits = any(job["status"] == "pending" for job in _ask(host, "query-jobs"))
        after = value if waits else value + 1
        if not waits:
            _write(host, after, "1M")
        if both:
            _kill_qemu(host)
        found = host.driver.recover("web1").instances
        assert all(one.outcome in ("completed", "undone") for one in found), f"cut {cut}: {found}"
        assert not [one for one in host.files() if one.endswith("snapshotting.json")], f"cut {cut}: {found}"
        assert _overlays(host) == _accounted(host, disks), f"cut {cut}: {found}"
        for chain in _chains(host, disks):
            assert _holds(chain, value), f"cut {cut}: {found}, {chain}"
            assert waits or _holds(chain, after, "1M"), f"cut {cut}: {found}, {chain}"
        if both:
            host.driver.start_instance(definition)
        assert _state(host) is InstanceState.RUNNING
        _write(host, value, "2M")
        for chain in _chains(host, disks):
            assert _holds(chain, value, "2M"), f"cut {cut}: {found}, {chain}"
        assert not _ask(host, "query-jobs")
        if operation == "create" and host.driver.list_snapshots("web1").snapshots:
            host.driver.delete_snapshot("web1", "second")
        if not killed:
            break
        cut += STRIDES[operation]
    assert cut > 3 * STRIDES[operation]
    host.driver.stop_instance("web1", force=True)
    if host.driver.list_snapshots("web1").snapshots:
        host.driver.delete_snapshot("web1", "second")


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("step", ["_note_equal", "finish"])
def test_killed_while_overlay_and_image_are_equal(host: Any, cut_short: Any, step: str, both: bool) -> None:
    """The guest's writes wait then; before it is written down the overlay counts, and from then on the image."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.driver.start_instance(definition)
    host.driver.create_snapshot("web1", "second", external=True)
    _write(host, 0x11)
    where = {
        "_note_equal": "hvcore_kvm.snapshots.external.ExternalSnapshots._note_equal",
        "finish": "hvcore_kvm.snapshots.overlay_settling.finish_commit",
    }[step]
    before = f"import os, unittest.mock; unittest.mock.patch('{where}', lambda *_: os.kill(os.getpid(), 9)).start()"
    assert cut_short(DELETE, cut=100_000, before=before) is None
    assert [job["status"] for job in _ask(host, "query-jobs")] == ["pending", "pending"]
    names = [one.name for one in host.driver.list_snapshots("web1").snapshots]
    assert names == (["second"] if step == "_note_equal" else [])
    if both:
        _kill_qemu(host)
    (found,) = [one for one in host.driver.recover("web1").instances if one.operation == "delete_snapshot"]
    assert found.outcome == ("undone" if step == "_note_equal" else "completed")
    if both:
        host.driver.start_instance(definition)
    assert not _ask(host, "query-jobs")
    assert _overlays(host) == _accounted(host, disks)
    assert len(_overlays(host)) == (2 if step == "_note_equal" else 0)
    _write(host, 0x22, "1M")
    for chain in _chains(host, disks):
        assert _holds(chain, 0x11)
        assert _holds(chain, 0x22, "1M")


def _taken_with_one_upon_it(host: Any, value: int) -> None:
    """The snapshots "second" and "third", and what was written before, between and after."""
    _write(host, value, "3M")
    host.driver.create_snapshot("web1", "second", external=True)
    _write(host, value, "4M")
    host.driver.create_snapshot("web1", "third", external=True)


def _third_holds(host: Any, disks: Any, value: int) -> bool:
    """Whether what lies below the newest overlays is what it was."""
    return all(_holds(chain[:-1], value, offset) for chain in _chains(host, disks) for offset in ("3M", "4M"))


@pytest.mark.parametrize("both", [False, True])
def test_killed_at_a_cut_of_a_deletion_below_another(host: Any, cut_short: Any, both: bool) -> None:
    """What the guest wrote before and after is there, and what the newer snapshot holds, whatever the account names."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.driver.start_instance(definition)
    cut, value, outcomes = 1, 0, set()
    while True:
        value = value % 250 + 2
        known = [one.name for one in host.driver.list_snapshots("web1").snapshots]
        if "second" not in known:
            if "third" in known:
                host.driver.delete_snapshot("web1", "third")
            _taken_with_one_upon_it(host, held := value)
        _write(host, value)
        killed = cut_short(DELETE, cut=cut) is None
        _write(host, value + 1, "1M")
        if both:
            _kill_qemu(host)
        found = host.driver.recover("web1").instances
        outcomes |= {one.outcome for one in found if one.operation == "delete_snapshot"}
        assert not [one for one in host.files() if one.endswith("snapshotting.json")], f"cut {cut}: {found}"
        assert _overlays(host) == _accounted(host, disks), f"cut {cut}: {found}"
        for chain in _chains(host, disks):
            assert _holds(chain, value), f"cut {cut}: {found}, {chain}"
            assert _holds(chain, value + 1, "1M"), f"cut {cut}: {found}, {chain}"
        assert _third_holds(host, disks, held), f"cut {cut}: {found}"
        names = [one.name for one in host.driver.list_snapshots("web1").snapshots]
        assert names in (["second", "third"], ["third"]), f"cut {cut}: {found}"
        if both:
            host.driver.start_instance(definition)
        assert _state(host) is InstanceState.RUNNING
        _write(host, value, "2M")
        for chain in _chains(host, disks):
            assert _holds(chain, value, "2M"), f"cut {cut}: {found}, {chain}"
        assert not _ask(host, "query-jobs")
        if not killed:
            break
        cut += 5
    assert cut > 20
    assert outcomes == {"completed", "undone"}
    host.driver.delete_snapshot("web1", "third")
    assert all(_holds(chain, value) for chain in _chains(host, disks))
    assert not _overlays(host)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("step", ["finalize", "between", "_note_equal", "finish"])
def test_killed_while_a_deletion_below_another_ends(host: Any, cut_short: Any, step: str, both: bool) -> None:
    """QEMU has the overlays of no disk, of one or of both; the same is read with them and without them."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.driver.start_instance(definition)
    _taken_with_one_upon_it(host, 0x11)
    kill = "import os, unittest.mock; die = lambda *_: os.kill(os.getpid(), 9); "
    if step in ("finalize", "between"):
        # Before the first of the two that are let go, or before the second.
        before = kill + (
            "from hvcore_kvm.monitor import Monitor; ask = Monitor.execute; finalized = []\n"
            "def execute(self, command, *rest):\n"
            "    finalized.extend([1] if command == 'job-finalize' else [])\n"
            f"    return die() if len(finalized) == {1 if step == 'finalize' else 2} else ask(self, command, *rest)\n"
            "Monitor.execute = execute"
        )
    else:
        where = {
            "_note_equal": "hvcore_kvm.snapshots.external.ExternalSnapshots._note_equal",
            "finish": "hvcore_kvm.snapshots.overlay_settling.finish_commit",
        }[step]
        before = f"{kill}unittest.mock.patch('{where}', die).start()"
    assert cut_short(DELETE, cut=100_000, before=before) is None
    _write(host, 0x22)
    if both:
        _kill_qemu(host)
    (found,) = [one for one in host.driver.recover("web1").instances if one.operation == "delete_snapshot"]
    completed = step == "finish" or (step == "_note_equal" and not both)
    assert found.outcome == ("completed" if completed else "undone")
    known = host.driver.list_snapshots("web1").snapshots
    assert [(one.name, one.revertible) for one in known] == [("second", False)] * (not completed) + [("third", True)]
    if both:
        host.driver.start_instance(definition)
    assert not _ask(host, "query-jobs")
    assert _overlays(host) == _accounted(host, disks)
    assert all(_holds(chain, 0x22) for chain in _chains(host, disks))
    assert _third_holds(host, disks, 0x11)
    if step == "between" and not both:
        with pytest.raises(InvalidParameters) as refused:
            host.driver.delete_snapshot("web1", "third")
        assert refused.value.findings.codes == ("snapshot-order",)
    if not completed:
        host.driver.delete_snapshot("web1", "second")
    _write(host, 0x33, "1M")
    assert _third_holds(host, disks, 0x11)
    host.driver.delete_snapshot("web1", "third")
    assert not _overlays(host)
    for chain in _chains(host, disks):
        assert [_holds(chain, *one) for one in ((0x22,), (0x33, "1M"), (0x11, "3M"), (0x11, "4M"))] == [True] * 4
    nodes = [row["node-name"] for row in _ask(host, "query-named-block-nodes", flat=True)]
    assert not [name for name in nodes if name.startswith("layer")]


@pytest.mark.parametrize("operation", ["create", "revert", "delete"])
def test_killed_at_a_cut_while_it_is_stopped(host: Any, cut_short: Any, operation: str) -> None:
    """The disks are what they were, or of a revert what they were to be, and nothing else is left."""
    disks = _disks(host)
    definition = host.instance(disks=disks)
    host.driver.start_instance(definition)
    _write(host, 0x11)
    host.driver.stop_instance("web1", force=True)
    words = {
        "name": "web1",
        "memory": definition.memory,
        "disks": [{"path": one.path, "format": one.format, "uuid": one.uuid} for one in disks],
        "params": dict(definition.params),
    }
    cut, value = 1, 0x20
    while True:
        value += 1
        if operation != "create" and not host.driver.list_snapshots("web1").snapshots:
            host.driver.create_snapshot(definition, "second", external=True)
        for chain in _chains(host, disks):
            command = ["qemu-io", "-f", chain[-1][1], "-c", f"write -P {value:#x} 0 64k", chain[-1][0]]
            subprocess.run(command, capture_output=True, check=True)
        program = {"create": CREATE_STILL, "revert": REVERT, "delete": DELETE}[operation]
        killed = cut_short(program, words, cut=cut) is None
        found = host.driver.recover("web1").instances
        assert all(one.outcome in ("completed", "undone") for one in found), f"cut {cut}: {found}"
        assert not [one for one in host.files() if one.endswith("snapshotting.json")], f"cut {cut}: {found}"
        assert _overlays(host) == _accounted(host, disks), f"cut {cut}: {found}"
        now = [_holds(chain, value) for chain in _chains(host, disks)]
        if operation == "revert":
            assert now in ([True, True], [False, False])
            assert now == [True, True] or all(_holds(chain, 0x11) for chain in _chains(host, disks))
            assert killed or now == [False, False]
            assert {one.outcome for one in found} <= {"undone" if now[0] else "completed"}, f"cut {cut}: {found}"
        else:
            assert now == [True, True], f"cut {cut}: {found}"
        if operation == "create" and host.driver.list_snapshots("web1").snapshots:
            host.driver.delete_snapshot("web1", "second")
        if not killed:
            break
        cut += 7
    assert cut > 14
