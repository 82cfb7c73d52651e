"""Saving and restoring on the modelled world: at every effect a failure is undone, and a crash is put in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvcore import Driver, Instance, InstanceState, OperationFailed
from hvcore_fake import EFFECTS, Fault, FaultPlan, HostCrash, World

Load = Callable[..., Driver]
Files = Callable[[], dict[str, bytes]]

WEB = Instance(name="web1")
POINTS = [(effect, when) for effect in EFFECTS["save_instance"] for when in ("before", "after")]
BACK = [(effect, when) for effect in EFFECTS["restore_instance"] for when in ("before", "after")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "saved"
    place.mkdir()
    return place / "web1"


def test_a_guest_does_not_notice(load: Load, path: Path) -> None:
    """What it was about to do it does as much later as it was in the file."""
    driver = load()
    world = World.of(driver)
    driver.start_instance(Instance(name="web1", params={"power_off_after": 100}))
    world.advance(60)
    driver.save_instance("web1", str(path))
    world.advance(1000)
    driver.restore_instance(str(path))
    world.advance(39)
    assert driver.get_instance_info("web1").state is InstanceState.RUNNING
    world.advance(2)
    assert driver.get_instance_info("web1").state is InstanceState.SHUTDOWN_BY_USER


@pytest.mark.parametrize(("effect", "when"), POINTS)
def test_a_save_that_fails_is_undone(load: Load, path: Path, effect: str, when: str) -> None:
    """The same process runs on, and there is no file; the next save succeeds."""
    driver = load(faults=[{"kind": "raise", "operation": "save_instance", "effect": effect, "when": when}])
    driver.start_instance(WEB)
    before = driver.get_instance_info("web1")
    with pytest.raises(OperationFailed):
        driver.save_instance("web1", str(path))
    after = driver.get_instance_info("web1")
    assert (after.state, after.pid) == (before.state, before.pid)
    assert list(path.parent.iterdir()) == []
    driver.save_instance("web1", str(path))
    assert driver.restore_instance(str(path)).after is InstanceState.RUNNING


@pytest.mark.parametrize(("effect", "when"), POINTS)
def test_a_save_cut_off_is_undone_or_complete(load: Load, path: Path, effect: str, when: str) -> None:
    """It runs on without a file, or it is saved in one."""
    crash = FaultPlan([Fault(kind="crash", operation="save_instance", effect=effect, when=when)])
    driver = load(faults=crash)
    driver.start_instance(WEB)
    with pytest.raises(HostCrash):
        driver.save_instance("web1", str(path))
    later = load()
    [found] = later.recover().instances
    state = later.get_instance_info("web1").state
    undone = effect == "file" or (effect, when) == ("kill", "before")
    assert (found.operation, found.outcome) == ("save_instance", "undone" if undone else "completed")
    assert (state, path.exists()) == ((InstanceState.RUNNING, False) if undone else (InstanceState.SAVED, True))
    assert [file for file in path.parent.iterdir() if file != path] == []
    if not undone:
        assert later.restore_instance(str(path)).after is InstanceState.RUNNING


@pytest.mark.parametrize(("effect", "when"), BACK)
def test_a_restore_that_fails_is_undone(load: Load, files: Files, path: Path, effect: str, when: str) -> None:
    """It is saved as before, byte for byte, and its file can be restored."""
    driver = load(faults=[{"kind": "raise", "operation": "restore_instance", "effect": effect, "when": when}])
    driver.start_instance(WEB)
    driver.save_instance("web1", str(path))
    before, content = files(), path.read_bytes()
    with pytest.raises(OperationFailed):
        driver.restore_instance(str(path))
    assert files() == before
    assert path.read_bytes() == content
    assert driver.restore_instance(str(path)).after is InstanceState.RUNNING


@pytest.mark.parametrize(("effect", "when"), BACK)
def test_a_restore_cut_off_is_undone_or_complete(load: Load, path: Path, effect: str, when: str) -> None:
    """It is saved and can be restored, or it runs; what has begun to run is not undone."""
    driver = load()
    driver.start_instance(WEB)
    driver.save_instance("web1", str(path))
    crash = FaultPlan([Fault(kind="crash", operation="restore_instance", effect=effect, when=when)])
    with pytest.raises(HostCrash):
        load(faults=crash).restore_instance(str(path))
    later = load()
    [found] = later.recover().instances
    complete = effect == "commit" or (effect, when) == ("resume", "after")
    assert (found.operation, found.outcome) == ("restore_instance", "completed" if complete else "undone")
    if not complete:
        assert later.get_instance_info("web1").state is InstanceState.SAVED
        later.restore_instance(str(path))
    assert later.get_instance_info("web1").state is InstanceState.RUNNING
