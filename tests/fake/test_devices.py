"""Devices of modelled instances: guests that let go at once, late or never; failures undone, crashes put in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import (
    Capability,
    DeadlineExceeded,
    Disk,
    Driver,
    HypervisorRefused,
    Instance,
    InstanceState,
    InvalidParameters,
    LiveParameters,
    Medium,
    Nic,
    NotRunning,
    OperationFailed,
    OutcomeUnknown,
    Processors,
    SpawnFailed,
    UnsupportedOperation,
)
from hvcore_fake import EFFECTS, Fault, FaultPlan, HostCrash, World

Load = Callable[..., Driver]
Files = Callable[[], dict[str, bytes]]

WEB = Instance(name="web1", memory="256MiB")
UUID = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"
MIB = 2**20


def points(operation: str, *without: str) -> list[tuple[str, str]]:
    """Every point of an operation at which a fault can strike, those of some effects left out."""
    return [(e, when) for e in EFFECTS[operation] for when in ("before", "after") if e not in without]


def slow(**params: Any) -> Instance:
    return attrs.evolve(WEB, params=params)


def devices(driver: Driver) -> list[tuple[str, str, str]]:
    return [(row.kind, row.uuid, row.state) for row in driver.get_instance_info("web1").devices]


def backends(world: World) -> list[str]:
    process = world.process("web1")
    return [] if process is None else [backend.ident for backend in process.backends]


@pytest.fixture
def disk(raw_disk: Disk) -> Disk:
    return attrs.evolve(raw_disk, uuid=UUID)


def test_a_disk_comes_and_goes(driver: Driver, world: World, disk: Disk) -> None:
    """A guest that lets go at once: added, listed, removed, and nothing is open for it any more."""
    driver.start_instance(WEB)
    assert driver.hot_add_device("web1", disk).done
    assert devices(driver) == [("disk", UUID, "present")]
    assert backends(world) == [UUID]
    assert driver.hot_del_device("web1", UUID.upper()).done
    assert (devices(driver), backends(world)) == ([], [])
    assert "DEVICE_DELETED" in [event.name for event in driver.events().events]


def test_a_nic_gets_its_identity(driver: Driver) -> None:
    """One that brings no uuid gets one, and so does the next; each is removed by it."""
    driver.start_instance(WEB)
    uuids = [driver.hot_add_device("web1", Nic()).device for _ in range(2)]
    driver.hot_del_device("web1", uuids[0])
    uuids.append(driver.hot_add_device("web1", Nic()).device)
    assert len(set(uuids[1:])) == 2
    assert [uuid for _, uuid, _ in devices(driver)] == uuids[1:]


def test_a_guest_that_lets_go_late(driver: Driver, world: World, disk: Disk) -> None:
    """Pending until it does; finished by the next operation on its devices."""
    driver.start_instance(slow(unplug_time=60))
    driver.hot_add_device("web1", disk)
    assert not driver.hot_del_device("web1", UUID, timeout=20).done
    assert (devices(driver), backends(world)) == ([("disk", UUID, "removing")], [UUID])
    with pytest.raises(InvalidParameters, match="has it already"):
        driver.hot_add_device("web1", disk)
    world.advance(60)
    assert backends(world) == [UUID]
    assert devices(driver) == []
    assert driver.recover("web1").instances[0].detail == f"{UUID} removed"
    assert backends(world) == []
    assert driver.recover("web1").instances == ()


def test_a_guest_that_never_lets_go(driver: Driver, world: World, disk: Disk) -> None:
    """It keeps what it has until a reset, as in QEMU."""
    driver.start_instance(slow(unplug="ignore"))
    driver.hot_add_device("web1", disk)
    assert not driver.hot_del_device("web1", UUID, timeout=600).done
    world.advance(10**6)
    assert devices(driver) == [("disk", UUID, "removing")]
    driver.reboot_instance("web1", mode="reset")
    assert driver.hot_del_device("web1", UUID).done
    assert backends(world) == []


def test_a_guest_that_refuses(driver: Driver, world: World, disk: Disk) -> None:
    """It says so, and everything is as before."""
    driver.start_instance(slow(unplug="refuse"))
    driver.hot_add_device("web1", disk)
    with pytest.raises(HypervisorRefused, match="does not let go"):
        driver.hot_del_device("web1", UUID)
    assert (devices(driver), backends(world)) == ([("disk", UUID, "present")], [UUID])
    driver.hot_mod_device("web1", LiveParameters(values={"unplug": "obey"}))
    assert driver.hot_del_device("web1", UUID).done


def test_a_paused_guest_notices_when_it_runs(driver: Driver, disk: Disk) -> None:
    """While its virtual CPUs stand it lets go of nothing."""
    driver.start_instance(WEB)
    driver.hot_add_device("web1", disk)
    driver.pause_instance("web1")
    assert not driver.hot_del_device("web1", UUID, timeout=60).done
    driver.resume_instance("web1")
    assert driver.hot_del_device("web1", UUID, timeout=0.0).done


def test_a_test_lets_the_guest_let_go(driver: Driver, world: World, disk: Disk) -> None:
    driver.start_instance(slow(unplug="ignore"))
    driver.hot_add_device("web1", disk)
    driver.hot_del_device("web1", UUID, timeout=1)
    world.guest_lets_go("web1")
    assert devices(driver) == []


@pytest.mark.parametrize(("effect", "when"), points("hot_add_device"))
def test_an_addition_that_fails_is_undone(load: Load, files: Files, disk: Disk, effect: str, when: str) -> None:
    """Byte for byte, but for what the guest has said; the next one succeeds."""
    driver = load(faults=[{"kind": "raise", "operation": "hot_add_device", "effect": effect, "when": when}])
    driver.start_instance(WEB)
    before = files()
    with pytest.raises(OperationFailed):
        driver.hot_add_device("web1", disk)
    assert files() == before
    assert driver.hot_add_device("web1", disk).done


@pytest.mark.parametrize(("effect", "when"), points("hot_add_device"))
def test_an_addition_cut_off_is_undone_or_complete(load: Load, disk: Disk, effect: str, when: str) -> None:
    """The device is there, with what is behind it, or neither is."""
    crash = FaultPlan([Fault(kind="crash", operation="hot_add_device", effect=effect, when=when)])
    driver = load(faults=crash)
    driver.start_instance(WEB)
    with pytest.raises(HostCrash):
        driver.hot_add_device("web1", disk)
    later = load()
    [found] = later.recover("web1").instances
    there = effect in ("settle", "commit") or (effect, when) == ("device", "after")
    assert (found.operation, found.outcome) == ("hot_add_device", "completed" if there else "undone")
    assert devices(later) == ([("disk", UUID, "present")] if there else [])
    assert backends(World.of(later)) == ([UUID] if there else [])
    assert later.recover("web1").instances == ()
    if not there:
        assert later.hot_add_device("web1", disk).done


@pytest.mark.parametrize(("effect", "when"), points("hot_del_device"))
def test_a_removal_that_fails_is_undone_or_pending(load: Load, disk: Disk, effect: str, when: str) -> None:
    """It is there as before, or under way and finished by the next."""
    driver = load(faults=[{"kind": "raise", "operation": "hot_del_device", "effect": effect, "when": when}])
    driver.start_instance(slow(unplug_time=5))
    driver.hot_add_device("web1", disk)
    with pytest.raises(OperationFailed):
        driver.hot_del_device("web1", UUID)
    world = World.of(driver)
    assert (backends(world) == [UUID]) is (devices(driver) != [])
    assert driver.hot_del_device("web1", UUID).done if devices(driver) else True
    assert (devices(driver), backends(world)) == ([], [])


@pytest.mark.parametrize(("effect", "when"), points("hot_del_device"))
def test_a_removal_cut_off_is_put_in_order(load: Load, disk: Disk, effect: str, when: str) -> None:
    """What the guest has let go of is gone with what is behind it; what it has not stays with it."""
    crash = FaultPlan([Fault(kind="crash", operation="hot_del_device", effect=effect, when=when)])
    driver = load(faults=crash)
    driver.start_instance(slow(unplug_time=5))
    driver.hot_add_device("web1", disk)
    with pytest.raises(HostCrash):
        driver.hot_del_device("web1", UUID)
    later = load()
    assert later.recover("web1").instances[0].operation == "hot_del_device"
    world = World.of(later)
    assert (backends(world) == [UUID]) is (devices(later) != [])
    assert later.recover("web1").instances == ()
    world.advance(10)
    if devices(later):
        assert later.hot_del_device("web1", UUID).done
    later.recover("web1")
    assert (devices(later), backends(world)) == ([], [])


@pytest.mark.parametrize(("effect", "when"), points("hot_mod_device", "device", "request", "wait", "backend", "settle"))
@pytest.mark.parametrize("kind", ["raise", "crash"])
def test_a_change_happens_as_a_whole(load: Load, kind: str, effect: str, when: str) -> None:
    """All parameters or none, in the process and in the record, whatever fails and whoever dies."""
    plan = FaultPlan([Fault(kind=kind, operation="hot_mod_device", effect=effect, when=when)])
    driver = load(faults=plan)
    driver.start_instance(slow(shutdown_time=1, on_panic="shutdown"))
    with pytest.raises((HostCrash, OperationFailed)):
        driver.hot_mod_device("web1", LiveParameters(values={"shutdown_time": 9.0, "on_panic": "pause"}))
    later = load()
    later.recover("web1")
    process = World.of(later).process("web1")
    assert process is not None
    done = kind == "crash" and (effect == "commit" or (effect, when) == ("record", "after"))
    wanted = (9.0, "pause") if done else (1.0, "shutdown")
    assert (process.behaviour.shutdown_time, process.behaviour.on_panic) == wanted
    assert later.recover("web1").instances == ()


def test_parameters_change_all_or_none(driver: Driver, world: World) -> None:
    """Every finding at once: one that is wrong, one that is unknown, one that needs another start."""
    driver.start_instance(WEB)
    values = {"shutdown_time": 9.0, "on_panic": "explode", "boot_time": 5.0, "no_such": 1}
    with pytest.raises(InvalidParameters) as caught:
        driver.hot_mod_device("web1", LiveParameters(values=values))
    paths = sorted(finding.path for finding in caught.value.findings)
    assert paths == ["params.boot_time", "params.no_such", "params.on_panic"]
    process = world.process("web1")
    assert process is not None
    assert process.behaviour.shutdown_time == 1.0


def test_a_changed_parameter_has_its_effect_and_outlives_a_restart(driver: Driver) -> None:
    driver.start_instance(WEB)
    driver.hot_mod_device("web1", LiveParameters(values={"ignore_power_button": True}))
    with pytest.raises(DeadlineExceeded):
        driver.stop_instance("web1", timeout=60, escalate=False)
    driver.reboot_instance("web1", mode="hard")
    with pytest.raises(DeadlineExceeded):
        driver.stop_instance("web1", timeout=60, escalate=False)
    driver.hot_mod_device("web1", LiveParameters(values={"ignore_power_button": None}))
    driver.stop_instance("web1", timeout=60, escalate=False)


def test_a_medium_is_changed(driver: Driver, world: World) -> None:
    """Not behind a locked tray, unless by force; what is in it stays over a restart."""
    driver.start_instance(slow(cdroms=[{"path": "/srv/one.iso"}, {}], tray_locked=True))
    medium = Medium(drive="cdroms[1]", path="/srv/two.iso")
    with pytest.raises(DeadlineExceeded, match="locked the tray"):
        driver.hot_mod_device("web1", medium)
    assert driver.hot_mod_device("web1", attrs.evolve(medium, force=True)).device == "cdroms[1]"
    driver.reboot_instance("web1", mode="hard")
    process = world.process("web1")
    assert process is not None
    assert process.media == ("/srv/one.iso", "/srv/two.iso")
    with pytest.raises(InvalidParameters, match="2 CD-ROM drives"):
        driver.hot_mod_device("web1", Medium(drive="cdroms[2]"))


def test_processors_come_and_go(driver: Driver) -> None:
    """Up to the most it was started for, and down to what it began with once the guest lets go."""
    driver.start_instance(attrs.evolve(WEB, vcpus=1, params={"vcpus_max": 4, "unplug_time": 30}))
    assert driver.hot_mod_device("web1", Processors(count=4)).done
    assert driver.get_instance_info("web1").vcpus == 4
    assert not driver.hot_mod_device("web1", Processors(count=2), timeout=1).done
    assert driver.hot_mod_device("web1", Processors(count=2), timeout=60).done
    assert driver.get_instance_info("web1").vcpus == 2
    assert len(driver.get_instance_stats("web1").vcpu_times) == 2
    for count in (0, 5, True):
        with pytest.raises(InvalidParameters):
            driver.hot_mod_device("web1", Processors(count=count))


def test_a_disk_is_described_anew(driver: Driver, world: World, disk: Disk, tmp_path: Path) -> None:
    """Its image changes behind the device, or nothing does."""
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(512))
    driver.start_instance(attrs.evolve(WEB, disks=[disk]))
    with pytest.raises(InvalidParameters, match="there is no file"):
        driver.hot_mod_device("web1", attrs.evolve(disk, path=str(tmp_path / "missing")))
    driver.hot_mod_device("web1", attrs.evolve(disk, path=str(other)))
    process = world.process("web1")
    assert process is not None
    assert [backend.source for backend in process.backends] == [str(other)]
    assert driver.get_instance_info("web1").devices[0].source == str(other)


def test_a_disk_grows_and_never_shrinks(driver: Driver, disk: Disk) -> None:
    driver.start_instance(attrs.evolve(WEB, disks=[disk]))
    grown = driver.resize_disk("web1", UUID, MIB)
    assert (grown.before, grown.after) == (4096, MIB)
    assert driver.resize_disk("web1", UUID, MIB).before == MIB
    with pytest.raises(InvalidParameters, match="can only grow"):
        driver.resize_disk("web1", UUID, 4096)
    with pytest.raises(InvalidParameters, match="multiple of 512"):
        driver.resize_disk("web1", UUID, MIB + 1)


@pytest.mark.parametrize(("effect", "when"), points("resize_disk"))
def test_a_growth_that_fails_is_undone(load: Load, disk: Disk, effect: str, when: str) -> None:
    driver = load(faults=[{"kind": "raise", "operation": "resize_disk", "effect": effect, "when": when}])
    driver.start_instance(attrs.evolve(WEB, disks=[disk]))
    with pytest.raises(OperationFailed):
        driver.resize_disk("web1", UUID, MIB)
    assert driver.resize_disk("web1", UUID, MIB).before == 4096


def test_memory_follows_the_balloon(driver: Driver, world: World) -> None:
    """At the guest's speed, only while it runs, and the result says how far it got."""
    driver.start_instance(slow(balloon_rate=MIB, memory_min="64MiB"))
    first = driver.balloon_instance_memory("web1", 128 * MIB, timeout=28)
    assert 225 * MIB < first.reached < 229 * MIB
    driver.pause_instance("web1")
    now = driver.get_instance_info("web1").memory
    world.advance(1000)
    assert driver.get_instance_info("web1").memory == now
    driver.resume_instance("web1")
    world.advance(1000)
    info = driver.get_instance_info("web1")
    assert (info.memory, info.memory_max) == (128 * MIB, 256 * MIB)
    for memory in (32 * MIB, 512 * MIB, 128 * MIB + 1):
        with pytest.raises(InvalidParameters):
            driver.balloon_instance_memory("web1", memory)


def test_a_guest_without_a_balloon_or_that_ignores_it(driver: Driver) -> None:
    driver.start_instance(slow(balloon=False))
    with pytest.raises(UnsupportedOperation):
        driver.balloon_instance_memory("web1", 128 * MIB)
    driver.reboot_instance(slow(balloon_rate=0), mode="hard")
    assert driver.balloon_instance_memory("web1", 128 * MIB).reached == 256 * MIB


def test_what_was_plugged_travels_and_is_saved(driver: Driver, disk: Disk, tmp_path: Path) -> None:
    """A saved instance has its devices, processors and memory when it is restored."""
    driver.start_instance(attrs.evolve(WEB, params={"vcpus_max": 2}))
    driver.hot_add_device("web1", disk)
    driver.hot_mod_device("web1", Processors(count=2))
    driver.balloon_instance_memory("web1", 128 * MIB)
    (tmp_path / "saved").mkdir()
    driver.save_instance("web1", str(tmp_path / "saved/web1"))
    driver.restore_instance(str(tmp_path / "saved/web1"))
    info = driver.get_instance_info("web1")
    assert (info.memory, info.vcpus) == (128 * MIB, 2)
    assert devices(driver) == [("disk", UUID, "present")]
    assert driver.hot_del_device("web1", UUID).done


def test_what_can_be_changed_is_told(driver: Driver, disk: Disk) -> None:
    """Before anything is tried, with the reasons."""
    driver.start_instance(WEB)
    assert driver.hotplug_supported("web1").supported
    assert driver.verify_hotplug_support("web1", "add", disk).supported
    missing = attrs.evolve(disk, path="/nowhere/disk")
    assert "there is no file" in driver.verify_hotplug_support("web1", "add", missing).reasons[0]
    assert not driver.verify_hotplug_support("web1", "remove", disk).supported
    assert not driver.verify_hotplug_support("web1", "add", Processors(count=1)).supported
    driver.stop_instance("web1", force=True)
    assert driver.hotplug_supported("web1").reasons == ("it is not running",)
    with pytest.raises(NotRunning):
        driver.hot_add_device("web1", disk)


def test_one_that_hangs_has_an_unknown_outcome(driver: Driver, world: World, disk: Disk) -> None:
    driver.start_instance(WEB)
    world.hang("web1")
    with pytest.raises(OutcomeUnknown):
        driver.hot_add_device("web1", disk)
    world.answer_again("web1")
    assert driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_an_image_it_cannot_read_is_refused_in_its_words(driver: Driver, tmp_path: Path, files: Files) -> None:
    """At a start and at an addition."""
    image = tmp_path / "new.qcow2"
    image.write_bytes(b"QFI\xfb" + (9).to_bytes(4, "big") + bytes(100))
    new = Disk(path=str(image), format="qcow2", uuid=UUID)
    with pytest.raises(SpawnFailed, match="Unsupported qcow2 version 9"):
        driver.start_instance(attrs.evolve(WEB, disks=[new]))
    assert files() == {}
    driver.start_instance(WEB)
    with pytest.raises(HypervisorRefused, match="Unsupported qcow2 version 9"):
        driver.hot_add_device("web1", new)
    assert devices(driver) == []


def test_counters_grow_while_it_runs(driver: Driver, world: World, disk: Disk) -> None:
    """And stand still while it does not."""
    driver.start_instance(attrs.evolve(WEB, disks=[disk]))
    world.advance(10)
    first = driver.get_instance_stats("web1")
    driver.pause_instance("web1")
    world.advance(100)
    assert driver.get_instance_stats("web1").vcpu_times == pytest.approx(first.vcpu_times)
    driver.resume_instance("web1")
    world.advance(10)
    second = driver.get_instance_stats("web1")
    assert second.vcpu_times == pytest.approx((20,), abs=0.01)
    assert second.disks[0].reads > first.disks[0].reads


def test_a_console_has_one_client_at_a_time(driver: Driver, world: World) -> None:
    """The one that has to go is told, the next in line is attached then."""
    driver.start_instance(attrs.evolve(WEB, consoles=["serial", "vnc"]))
    for program in ("one", "two"):
        world.attach_client("web1", program)
    gone = driver.disconnect_console("web1").holder
    assert gone is not None
    assert gone.program == "one"
    now = driver.get_instance_console("web1").holder
    assert now is not None
    assert now.program == "two"
    world.detach_client("web1", "two")
    assert driver.disconnect_console("web1").holder is None
    with pytest.raises(UnsupportedOperation):
        driver.disconnect_console("web1", "vnc")


def test_a_password_is_kept_nowhere(driver: Driver, world: World, tmp_path: Path) -> None:
    driver.start_instance(attrs.evolve(WEB, consoles=["serial", "vnc"]))
    result = driver.set_console_password("web1", "vnc", "dont-keep-me", expires=60)
    assert result.expires == pytest.approx(world.clock() + 60)
    assert driver.set_console_password("web1", "vnc", "", expires=60).expires is None
    with pytest.raises(InvalidParameters, match="knows no passwords"):
        driver.set_console_password("web1", "serial", "dont-keep-me")
    held = [path for path in tmp_path.rglob("*") if path.is_file() and b"dont-keep-me" in path.read_bytes()]
    assert held == []


def test_it_claims_what_it_models(driver: Driver) -> None:
    """Everything but a picture, for it has no display."""
    missing = [c.value for c in Capability if not driver.description.claim(c).offered]
    assert missing == ["screenshot"]
