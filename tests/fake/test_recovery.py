"""The host application is killed at every effect of every operation; whoever comes next puts things in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from hvcore import (
    Capability,
    Cause,
    Directories,
    Disk,
    Driver,
    DriverContext,
    DriverDescription,
    Instance,
    InstanceNotFound,
    InstanceState,
    Recovery,
    UnsupportedOperation,
    hookimpl,
    load_plugin,
)
from hvcore_fake import EFFECTS, FakeDriver, Fault, FaultPlan, HostCrash, World

Load = Callable[..., Driver]
Files = Callable[[], dict[str, bytes]]

WEB = Instance(name="web1", memory="256MiB")
WHEN = ("before", "after")


def points(operation: str, *without: str) -> list[tuple[str, str]]:
    """Every point of an operation at which a fault can strike, those of some effects left out."""
    return [(effect, when) for effect in EFFECTS[operation] for when in WHEN if effect not in without]


def crashing(load: Load, operation: str, effect: str, when: str) -> Driver:
    """A driver whose host application dies at one point."""
    return load(faults=FaultPlan([Fault(kind="crash", operation=operation, effect=effect, when=when)]))


def outcomes(recovery: Recovery) -> list[tuple[str, str]]:
    return [(found.operation, found.outcome) for found in recovery.instances]


@pytest.mark.parametrize(("effect", "when"), points("start_instance"))
def test_a_start_cut_off_is_undone_or_complete(load: Load, files: Files, effect: str, when: str) -> None:
    """Afterwards there is nothing at all, or a running instance."""
    driver = crashing(load, "start_instance", effect, when)
    with pytest.raises(HostCrash):
        driver.start_instance(WEB)

    later = load()
    outcome = "completed" if effect == "commit" else "undone"
    assert outcomes(later.recover()) == [("start_instance", outcome)]
    if outcome == "undone":
        assert files() == {}
    else:
        assert later.get_instance_info("web1").state is InstanceState.RUNNING
        assert later.verify_instance("web1").codes == ()
    assert later.recover().instances == ()


@pytest.mark.parametrize(("effect", "when"), points("start_instance", "commit"))
def test_the_next_start_undoes_one_cut_off(load: Load, effect: str, when: str) -> None:
    """Nobody has to call recover: the next operation on the instance does it."""
    with pytest.raises(HostCrash):
        crashing(load, "start_instance", effect, when).start_instance(WEB)

    later = load()
    assert later.start_instance(WEB).after is InstanceState.RUNNING
    assert later.verify().codes == ()


@pytest.mark.parametrize(("effect", "when"), points("start_instance", "commit"))
def test_undoing_a_start_brings_back_the_last_ending(load: Load, files: Files, effect: str, when: str) -> None:
    """An instance that was shut down by its user is so again, byte for byte."""
    driver = load(faults=[{"kind": "crash", "operation": "start_instance", "effect": effect, "when": when, "nth": 2}])
    driver.start_instance(WEB)
    World.of(driver).guest_powers_off("web1")
    before = files()
    with pytest.raises(HostCrash):
        driver.start_instance(WEB)

    load().recover("web1")
    assert files() == before


@pytest.mark.parametrize(("effect", "when"), points("stop_instance"))
def test_a_stop_cut_off_is_undone_or_complete(load: Load, files: Files, effect: str, when: str) -> None:
    """Afterwards it runs as before, or it is stopped and holds nothing."""
    driver = crashing(load, "stop_instance", effect, when)
    driver.start_instance(Instance(name="web1", params={"ignore_power_button": True}))
    with pytest.raises(HostCrash):
        driver.stop_instance("web1", timeout=20)

    later = load()
    [(operation, outcome)] = outcomes(later.recover("web1"))
    info = later.get_instance_info("web1")
    assert operation == "stop_instance"
    if outcome == "undone":
        assert info.state is InstanceState.RUNNING
        assert later.verify_instance("web1").codes == ()
    else:
        assert (info.state, info.reason.cause) == (InstanceState.STOPPED, Cause.HOST_FORCE_STOP)
        assert not [path for path in files() if path.startswith("state")]


@pytest.mark.parametrize("when", WHEN)
def test_a_stop_cut_off_while_the_guest_powers_off(load: Load, when: str) -> None:
    """Before its time the guest runs on; after it, it has been stopped by the host."""
    driver = crashing(load, "stop_instance", "wait", when)
    driver.start_instance(WEB)
    with pytest.raises(HostCrash):
        driver.stop_instance("web1", timeout=20)

    later = load()
    assert later.recover().instances[0].outcome == ("undone" if when == "before" else "completed")
    cause = later.get_instance_info("web1").reason.cause
    assert cause is (Cause.STARTED if when == "before" else Cause.HOST_STOP)


COLD = [
    *(("soft", *point) for point in points("reboot_instance", "reset", "kill")),
    *(("hard", *point) for point in points("reboot_instance", "reset", "button", "wait")),
]


@pytest.mark.parametrize(("mode", "effect", "when"), COLD)
def test_a_restart_cut_off_ends_in_a_running_instance(load: Load, mode: str, effect: str, when: str) -> None:
    """The state before and the state after are both running: with the old definition or with the new one."""
    driver = crashing(load, "reboot_instance", effect, when)
    driver.start_instance(WEB)
    pid = driver.get_instance_info("web1").pid
    with pytest.raises(HostCrash):
        driver.reboot_instance(Instance(name="web1", memory="512MiB"), mode=mode)  # type: ignore[arg-type]

    later = load()
    [(_, outcome)] = outcomes(later.recover())
    info = later.get_instance_info("web1")
    assert info.state is InstanceState.RUNNING
    assert (info.pid == pid, info.memory) == ((True, 2**28) if outcome == "undone" else (False, 2**29))
    assert later.verify().codes == ()


def test_a_restart_that_cannot_be_completed_ends_stopped(load: Load, raw_disk: Disk, files: Files) -> None:
    """When the new life cannot begin any more, recovery says so and leaves nothing half done."""
    driver = crashing(load, "reboot_instance", "process", "before")
    driver.start_instance(Instance(name="web1", disks=[raw_disk]))
    with pytest.raises(HostCrash):
        driver.reboot_instance("web1", mode="hard")
    Path(raw_disk.path).unlink()

    later = load()
    assert outcomes(later.recover()) == [("reboot_instance", "failed")]
    assert later.get_instance_info("web1").state is InstanceState.STOPPED
    assert not [path for path in files() if path.startswith("state")]


@pytest.mark.parametrize(("operation", "first"), [("pause_instance", False), ("resume_instance", True)])
@pytest.mark.parametrize("when", WHEN)
def test_a_single_effect_cut_off_happened_or_did_not(load: Load, operation: str, first: bool, when: str) -> None:
    """Recovery says which, and changes nothing more."""
    driver = crashing(load, operation, operation.removesuffix("_instance"), when)
    driver.start_instance(WEB, paused=first)
    before = driver.get_instance_info("web1").state
    with pytest.raises(HostCrash):
        getattr(driver, operation)("web1")

    later = load()
    assert outcomes(later.recover()) == [(operation, "undone" if when == "before" else "completed")]
    assert (later.get_instance_info("web1").state is before) is (when == "before")


@pytest.mark.parametrize("when", WHEN)
def test_a_reset_cut_off_happened_or_did_not(load: Load, when: str) -> None:
    """Also when the guest has not got any further since: the process stays the same."""
    driver = crashing(load, "reboot_instance", "reset", when)
    driver.start_instance(WEB)
    pid = driver.get_instance_info("web1").pid
    with pytest.raises(HostCrash):
        driver.reboot_instance("web1", mode="reset")

    later = load()
    assert outcomes(later.recover()) == [("reboot_instance", "undone" if when == "before" else "completed")]
    assert later.get_instance_info("web1").pid == pid


@pytest.mark.parametrize(("effect", "when"), points("cleanup_instance"))
def test_a_cleanup_cut_off_is_completed(load: Load, files: Files, effect: str, when: str) -> None:
    """Once begun, nothing is kept."""
    driver = crashing(load, "cleanup_instance", effect, when)
    driver.start_instance(WEB)
    driver.stop_instance(WEB)
    with pytest.raises(HostCrash):
        driver.cleanup_instance(WEB)

    later = load()
    assert outcomes(later.recover()) == [("cleanup_instance", "completed")]
    assert files() == {}
    with pytest.raises(InstanceNotFound):
        later.get_instance_info("web1")


def test_what_is_left_half_done_is_told(load: Load) -> None:
    """Both verifications name the instance, before anybody recovers it."""
    driver = crashing(load, "start_instance", "process", "after")
    with pytest.raises(HostCrash):
        driver.start_instance(WEB)

    later = load()
    assert "unfinished-operation" in later.verify_instance("web1").codes
    assert [finding.path for finding in later.verify()] == ["web1", "web1"]
    assert later.verify().ok


def test_recovery_of_one_leaves_the_others(load: Load) -> None:
    """A name limits what is put in order."""
    driver = load(faults=[{"kind": "crash", "operation": "start_instance", "effect": "process", "times": 0}])
    for name in ("web1", "web2"):
        with pytest.raises(HostCrash):
            driver.start_instance(Instance(name=name))

    later = load()
    assert [found.name for found in later.recover("web2").instances] == ["web2"]
    assert [found.name for found in later.recover().instances] == ["web1"]


def test_a_journal_cut_off_in_its_first_line_is_put_away(load: Load, files: Files, tmp_path: Path) -> None:
    """Its writer had done nothing yet."""
    journals = tmp_path / "state" / "fake" / "journals"
    journals.mkdir(parents=True)
    (journals / "web1.jsonl").write_text('{"begin": "start_ins')

    assert outcomes(load().recover()) == [("unknown", "undone")]
    assert files() == {}


def test_recovery_in_an_empty_world_does_nothing(driver: Driver) -> None:
    """There is nothing to put in order before anything was started."""
    assert driver.recover().instances == ()
    assert driver.recover("web1").instances == ()


def test_what_is_stopped_is_found_by_recovery_of_all(load: Load) -> None:
    """A stopped instance is not listed; what was left half done with it is named, and put in order without a name."""
    first = crashing(load, "create_snapshot", "snapshot", "before")
    first.start_instance(WEB)
    first.stop_instance("web1", force=True)
    assert first.list_interrupted().names == ()
    with pytest.raises(HostCrash):
        first.create_snapshot(WEB, "first")

    later = load()
    assert later.list_instances().instances == ()
    assert later.list_interrupted().names == ("web1",)
    assert outcomes(later.recover()) == [("create_snapshot", "undone")]
    assert later.list_interrupted().names == ()
    assert later.recover().instances == ()


class _Older(FakeDriver):
    """A driver that was written before there was a hook for this."""

    hv_list_interrupted = None  # type: ignore[assignment]

    @hookimpl
    def hv_describe_driver(self) -> DriverDescription:
        """Claim what there was then."""
        found = super().hv_describe_driver()
        kept = tuple(each for each in found.claims if each.capability is not Capability.LIST_INTERRUPTED)
        return attrs.evolve(found, claims=kept)


def test_a_driver_without_the_hook_recovers_what_is_listed(load: Load, tmp_path: Path) -> None:
    """It is loaded, and goes on as before; asking it for the names is refused."""
    with pytest.raises(HostCrash):
        crashing(load, "pause_instance", "pause", "after").pause_instance(load().start_instance(WEB).name)

    directories = Directories(**{kind: str(tmp_path / kind) for kind in ("state", "data", "cache")}).below("fake")
    context = DriverContext(name="fake", directories=directories, host_id="older", settings={})
    with load_plugin(_Older(context), context, label="older") as older:
        assert outcomes(older.recover()) == [("pause_instance", "completed")]
        assert older.recover().instances == ()
        with pytest.raises(UnsupportedOperation, match="list-interrupted"):
            older.list_interrupted()
