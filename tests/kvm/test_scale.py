"""Many instances, one of them hung: the others are not affected, and nothing grows with their number."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

import hvcore
from hvcore import Cause, InstanceState

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

COUNT = 50


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_one_hung_instance_among_fifty(host: Any, accel: str) -> None:
    """List and info of fifty take no descriptor and no thread with them; the hung one is reported, not waited for."""
    names = [f"web{number:02}" for number in range(COUNT)]
    before = len(os.listdir("/proc/self/fd"))
    for name in names:
        host.driver.start_instance(host.instance(name, accel=accel, memory="32MiB"))
    assert len(os.listdir("/proc/self/fd")) == before
    hung = names[7]
    os.kill(host.pid(hung), signal.SIGSTOP)
    threads = threading.active_count()
    for _ in range(3):
        listed = host.driver.list_instances().instances
        assert [row.name for row in listed if row.alive] == names
        infos = {info.name: info for info in host.driver.get_all_instances_info(timeout=3).instances}
        assert list(infos) == names
        assert {info.state for name, info in infos.items() if name != hung} == {InstanceState.RUNNING}
        assert (infos[hung].state, infos[hung].reason.cause) == (InstanceState.UNKNOWN, Cause.NOT_ANSWERING)
        assert host.driver.get_instance_info(names[-1]).state is InstanceState.RUNNING
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads
    for name in names:
        assert host.driver.stop_instance(name, force=True).changed
    assert host.driver.list_instances() == hvcore.InstanceListing(instances=())
