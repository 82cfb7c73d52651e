"""Many instances, one of them hung: the others are not affected, and nothing grows with their number."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Cause, InstanceState

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

COUNT = 50


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_one_hung_instance_among_fifty(make_host: Callable[..., Any], accel: str) -> None:
    """List and info of fifty take no descriptor and no thread with them; the hung one is reported, not waited for."""
    # Enough for the fifty on a busy machine: only the hung one takes all of it.
    host = make_host(query_timeout=5.0)
    names = [f"web{number:02}" for number in range(COUNT)]
    before = len(os.listdir("/proc/self/fd"))
    for name in names:
        host.driver.start_instance(host.instance(name, accel=accel, memory="32MiB"))
    assert len(os.listdir("/proc/self/fd")) == before
    hung = names[7]
    os.kill(host.pid(hung), signal.SIGSTOP)
    threads = threading.active_count()
    for _ in range(2):
        listed = host.driver.list_instances().instances
        assert [row.name for row in listed if row.alive] == names
        infos = {info.name: info for info in host.driver.get_all_instances_info().instances}
        assert list(infos) == names
        assert {info.state for name, info in infos.items() if name != hung} == {InstanceState.RUNNING}
        assert (infos[hung].state, infos[hung].reason.cause) == (InstanceState.UNKNOWN, Cause.NOT_ANSWERING)
        assert host.driver.get_instance_info(names[-1]).state is InstanceState.RUNNING
    assert len(os.listdir("/proc/self/fd")) == before
    assert threading.active_count() == threads
    for name in names:
        assert host.driver.stop_instance(name, force=True).changed
    assert host.driver.list_instances() == hvcore.InstanceListing(instances=())
