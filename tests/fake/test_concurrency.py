"""Many threads, many driver objects, many processes on one world."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvcore import (
    AlreadyRunning,
    Disk,
    Driver,
    HypervisorError,
    Instance,
    InstanceBusy,
    InstanceState,
    InvalidParameters,
)

Load = Callable[..., Driver]


def together(*jobs: Callable[[], object]) -> list[object]:
    """What some jobs that begin at the same moment returned or raised."""
    barrier = threading.Barrier(len(jobs))
    results: list[object] = [None] * len(jobs)

    def run(index: int, job: Callable[[], object]) -> None:
        barrier.wait()
        try:
            results[index] = job()
        except HypervisorError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=entry) for entry in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_drivers_see_the_same_world(load: Load) -> None:
    """What one does, the other sees and goes on with."""
    first, second = load(), load()
    first.start_instance(Instance(name="web1"))

    assert second.pause_instance("web1").changed
    assert first.get_instance_info("web1").state is InstanceState.PAUSED
    assert second.stop_instance("web1", force=True).changed
    assert not first.stop_instance("web1").changed


def test_an_instance_outlives_its_host_application(load: Load) -> None:
    """Closing a driver stops nothing."""
    driver = load()
    driver.start_instance(Instance(name="web1"))
    driver.close()

    assert load().get_instance_info("web1").state is InstanceState.RUNNING


def test_of_many_starts_at_once_one_wins(load: Load) -> None:
    """The others are told that it runs, or that somebody is at it."""
    drivers = [load(), load()] * 3
    results = together(*(lambda d=d: d.start_instance(Instance(name="web1")) for d in drivers))

    errors = [result for result in results if isinstance(result, HypervisorError)]
    assert len(errors) == len(drivers) - 1
    assert all(isinstance(error, AlreadyRunning | InstanceBusy) for error in errors)
    assert drivers[0].verify().codes == ()


def test_of_two_instances_that_want_one_disk_one_wins(load: Load, raw_disk: Disk) -> None:
    """Looking at the disk and taking it is one thing."""
    driver = load()
    results = together(
        *(lambda n=n: driver.start_instance(Instance(name=n, disks=[raw_disk])) for n in ("a", "b", "c"))
    )

    assert sum(isinstance(result, InvalidParameters) for result in results) == 2
    assert len(driver.list_instances().instances) == 1


def test_different_instances_do_not_disturb_each_other(load: Load) -> None:
    """Whole lives side by side, each event numbered once."""
    driver = load()

    def life(name: str) -> None:
        driver.start_instance(Instance(name=name))
        driver.stop_instance(name)
        driver.start_instance(Instance(name=name))

    names = [f"web{index}" for index in range(6)]
    assert together(*(lambda n=n: life(n) for n in names)) == [None] * 6
    assert [row.name for row in driver.list_instances().instances if row.alive] == names
    assert [event.name for event in driver.events().events].count("RESUME") == 12


def test_recover_leaves_an_operation_under_way_alone(load: Load) -> None:
    """A journal of somebody who lives is not taken for one of somebody who died."""
    driver, other = load(), load()
    starts = [lambda n=n: driver.start_instance(Instance(name=f"web{n}")) for n in range(4)]
    results = together(*starts, *[other.recover] * 4)

    assert not [result for result in results if isinstance(result, HypervisorError)]
    assert len(driver.list_instances().instances) == 4
    assert all(result.instances == () for result in results[4:])  # type: ignore[attr-defined]


def test_another_process_sees_the_same_world(load: Load, tmp_path: Path) -> None:
    """State is on disk, not in the process that made it."""
    driver = load()
    driver.start_instance(Instance(name="web1"))
    settings = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    code = (
        "import hvcore, json, sys; driver = hvcore.load_driver('fake', json.loads(sys.argv[1]));"
        "print(driver.stop_instance('web1', timeout=30).before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "running"
    assert driver.list_instances().instances == ()


@pytest.mark.parametrize("lines", range(1, 6))
def test_a_host_application_that_is_killed_leaves_what_recovery_puts_in_order(
    load: Load, tmp_path: Path, files: Callable[[], dict[str, bytes]], lines: int
) -> None:
    """SIGKILL wherever it happens to be: afterwards the instance runs or is stopped, and nothing leaks."""
    settings = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    code = (
        "import hvcore, itertools, json, sys; driver = hvcore.load_driver('fake', json.loads(sys.argv[1]))\n"
        "for _ in itertools.count():\n"
        "    for do in (driver.start_instance, driver.reboot_instance, driver.stop_instance):\n"
        "        do(hvcore.Instance(name='web1')); print(flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, json.dumps(settings)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.kill()

    driver = load()
    assert "failed" not in [found.outcome for found in driver.recover().instances]
    assert driver.verify().codes == ()
    driver.stop_instance("web1")
    driver.cleanup_instance("web1")
    assert files() == {}
